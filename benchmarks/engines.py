"""Engines in this process: made from one set of weights with nothing remembered, and run to the end."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from turbo_runtime.contract.config import RuntimeConfig
from turbo_runtime.engine.process import quiet_libraries
from turbo_runtime.engine.threads import ask_for_huge_pages, settle_threads
from turbo_runtime.messages import GenerationRequest, StepOutput, TokenEvent

if TYPE_CHECKING:  # torch comes in only after the threads are settled
    from turbo_runtime.drafters.proposer import Proposer
    from turbo_runtime.engine.loop import Engine
    from turbo_runtime.sampling.grammar.matcher import Grammars
    from turbo_runtime.speculation.controller import GoodputController

Encode = Callable[[str], list[int]]
Decode = Callable[[Sequence[int]], str]


def settle_process(threads: int | None) -> None:
    """Let this process compute as an engine of `turbo serve` does. Before torch is imported, and before
    anything is computed: glibc reads its settings as a process starts, so this one may start again.
    """
    environment = dict(os.environ)
    ask_for_huge_pages(environment)
    if environment != os.environ:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
    settle_threads(threads)
    quiet_libraries()


def tokenizer(config: RuntimeConfig) -> tuple[Encode, Decode]:
    """(chat prompt -> ids, ids -> text), from the files that the server would read."""
    from transformers import AutoTokenizer

    from turbo_runtime.models.loader import export_tokenizer

    with tempfile.TemporaryDirectory() as folder:
        export_tokenizer(config.model, config.revision, Path(folder))
        found: Any = AutoTokenizer.from_pretrained(folder)

    def encode(prompt: str) -> list[int]:
        chat = [{"role": "user", "content": prompt}]
        return list(found.apply_chat_template(chat, add_generation_prompt=True, return_dict=False))

    return encode, found.decode


def fresh(
    engine: Engine,
    grammars: Grammars | None = None,
    control: GoodputController | None = None,
    drafters: Proposer | None = None,
    **limits: int,
) -> Engine:
    """The same weights and a copy of what is known of step times, nothing else kept: no drafts, no prefix and
    no credit from an earlier run. What one of them learns of step times, no other one gets: a server without
    drafts would otherwise measure for one with drafts. `control` chooses drafts instead, with all that it
    knows, and `drafters` draft.

    `limits` are `blocks`, from `first_block` on, and those of the scheduler that should differ.
    """
    from turbo_runtime.drafters.proposer import Proposer
    from turbo_runtime.engine.loop import Engine
    from turbo_runtime.engine.scheduler import Scheduler
    from turbo_runtime.speculation.controller import GoodputController

    old = engine.scheduler
    scheduler = Scheduler(
        old.block_pool.part(limits.get("blocks", old.block_pool.num_blocks), limits.get("first_block", 0)),
        max_num_seqs=limits.get("max_num_seqs", old.max_num_seqs),
        max_num_batched_tokens=limits.get("max_num_batched_tokens", old.max_num_batched_tokens),
        max_draft_tokens=limits.get("max_draft_tokens", old.max_draft_tokens),
        max_length=limits.get("max_length", old.max_length),
        shared_tile=old.shared_tile,
    )
    if control is None:
        control = GoodputController(None, engine.model.padded_rows)
        control.cost = deepcopy(engine.speculation.control.cost, {id(engine.model): engine.model})
    return Engine(engine.model, scheduler, drafters or Proposer(), grammars, control)


@dataclass
class Answer:
    """All that one request was told."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[object] = field(default_factory=list)
    prompt_logprobs: tuple[object, ...] = ()
    finish_reason: str | None = None
    error: str | None = None

    def add(self, event: TokenEvent) -> None:
        """What a step brought."""
        self.tokens += event.tokens
        self.logprobs += event.logprobs
        self.prompt_logprobs += event.prompt_logprobs or ()
        self.finish_reason, self.error = event.finish_reason, event.error


def run(
    engine: Engine,
    requests: Iterable[GenerationRequest],
    at_a_time: int,
    *,
    check: bool = False,
    watch: Callable[[StepOutput], None] | None = None,
) -> dict[str, Answer]:
    """Answers by request id, with `at_a_time` requests in the engine while there are so many; `check`
    looks at every block after every step.
    """
    queue = deque(requests)
    answers: dict[str, Answer] = {}
    live = 0
    while queue or not engine.idle:
        while queue and live < at_a_time:
            request = queue.popleft()
            answers[request.request_id] = Answer()
            engine.accept(request)
            live += 1
        step = engine.step()
        for event in step.events:
            answers[event.request_id].add(event)
            live -= event.finish_reason is not None
        if check:
            engine.scheduler.check()
        if watch:
            watch(step)
    return answers


@contextmanager
def timed(owner: object, name: str) -> Iterator[list[float]]:
    """The seconds of each call of the owner's method, as it happens."""
    seconds: list[float] = []
    method: Callable[..., Any] = getattr(owner, name)

    def measured(*args: Any, **rest: Any) -> Any:
        began = time.perf_counter()
        try:
            return method(*args, **rest)
        finally:
            seconds.append(time.perf_counter() - began)

    with patch.object(owner, name, measured):
        yield seconds


class WhileFull:
    """Tokens and seconds of a run of requests that follow each other, from its beginning to the step in which
    the last of them has its first token: as many as may run do all that while. All of a run that has no more
    than run together, or that answers one at a time. Reads no clock.

    By that end two runs of the same requests have read the same prompts, and tokens count as they come: those
    of whole answers alone would be of others in each run, where drafts change which end first.
    """

    def __init__(self, requests: int, at_a_time: int) -> None:
        self._counts_all = at_a_time == 1 or requests <= at_a_time
        self._requests, self._begun, self._at = requests, set[str](), 0.0
        self.tokens, self.seconds = 0, 0.0

    def see(self, step: StepOutput, at: float) -> None:
        """What a step brought, which ended `at` seconds after the run's beginning."""
        if self._counts_all or len(self._begun) < self._requests:
            self.seconds += at - self._at
            self.tokens += sum(len(event.tokens) for event in step.events)
            self._begun |= {event.request_id for event in step.events}
        self._at = at


def as_new(request: GenerationRequest, request_id: str, **params: Any) -> GenerationRequest:
    """The request under another id, some of its parameters changed."""
    return replace(request, request_id=request_id, params=replace(request.params, **params))
