"""The engine's loop: one step is drain, schedule, propose, forward, verify, fold, emit.

One thread owns the scheduler, the model and the drafter; the server is another process that sends and
receives the messages of `request.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from turbo_runtime.drafters.suffix import SuffixDrafter
from turbo_runtime.engine.model import Chunk, PagedModel
from turbo_runtime.engine.request import Cancel, EngineStats, SamplingParams, Step, Submit, TokenEvent
from turbo_runtime.engine.sampling import (
    GREEDY_BELOW,
    NoiseSource,
    answer_key,
    greedy_tokens,
    position_key,
    sampled_token,
)
from turbo_runtime.engine.scheduler import Scheduler, Sequence, Work
from turbo_runtime.engine.verify import Verdict, verify

log = logging.getLogger(__name__)


class Engine:
    """Serves sequences step by step."""

    def __init__(self, model: PagedModel, scheduler: Scheduler, drafter: SuffixDrafter) -> None:
        self.model = model
        self.scheduler = scheduler
        self.drafter = drafter
        self.noise = NoiseSource(model.vocabulary, model.device)
        self._keys: dict[str, int] = {}  # request id -> the answer's noise key
        self._events: list[TokenEvent] = []  # of the step in progress
        self._stats = EngineStats()

    @property
    def idle(self) -> bool:
        """Whether there is nothing to compute and nothing to tell."""
        return not (self.scheduler.running or self.scheduler.waiting or self._events)

    def accept(self, message: Submit | Cancel) -> None:
        """Take one message of the server in; what is wrong with it becomes an event of the next step."""
        if isinstance(message, Cancel):
            sequence = self.scheduler.find(message.request_id)
            if sequence:  # else it ended while the message was under way
                self._end(sequence)
            return
        try:
            self._check_ids(message)
            self.scheduler.add(message)
        except ValueError as error:
            self._events.append(TokenEvent(message.request_id, finish_reason="error", error=str(error)))
            return
        self._keys[message.request_id] = answer_key(message.params.seed, message.prompt, message.choice)
        self._count(prompts=1, prompt_tokens=len(message.prompt))

    def step(self) -> Step:
        """Compute one step for everything that runs."""
        plan = self.scheduler.plan()
        drafts = [self._propose(work) for work in plan.work]
        if plan.work:
            logits = self.model.forward([_chunk(w, d) for w, d in zip(plan.work, drafts, strict=True)])
            row = 0
            for work, drafted in zip(plan.work, drafts, strict=True):
                rows = len(drafted) + 1 if work.yields else 0
                self._advance(work, drafted, logits[row : row + rows])
                row += rows
        return Step(tuple(self._take_events()), self.stats())

    def stats(self) -> EngineStats:
        """The state now, and the counters."""
        running, waiting = self.scheduler.running, self.scheduler.waiting
        return replace(
            self._stats,
            running_requests=len(running),
            waiting_requests=len(waiting),
            running_tokens=sum(s.computed for s in running),
            waiting_tokens=sum(len(s.tokens) for s in waiting),
            kv_blocks_used=self.scheduler.ledger.num_used,
            preemptions=self.scheduler.preemptions,
        )

    def _check_ids(self, submit: Submit) -> None:
        """An id without an embedding would fail the pass of everybody in the step."""
        if not all(0 <= token < self.model.vocabulary for token in submit.prompt):
            raise ValueError(f"token ids must lie between 0 and {self.model.vocabulary - 1}")

    def _propose(self, work: Work) -> list[int]:
        if not work.yields or not work.draft_limit:
            return []
        sequence = work.sequence
        return self.drafter.propose(sequence.submit.request_id, sequence.tokens, work.draft_limit)

    def _advance(self, work: Work, drafted: list[int], logits: Tensor) -> None:
        """Verify one sequence's rows, book the result, tell it; a failure takes only this sequence down."""
        sequence = work.sequence
        if not work.yields:
            self.scheduler.fold(work, [])
            return
        request_id, params = sequence.submit.request_id, sequence.submit.params
        try:
            token_at = self._token_at(logits, params, self._keys[request_id], len(sequence.tokens))
            verdict = verify(
                token_at, drafted, stop_ids=params.stop_token_ids, room=self.scheduler.room(sequence)
            )
        except Exception as error:
            log.exception("request %s failed", request_id)
            self._end(sequence)
            self._events.append(
                TokenEvent(
                    request_id, finish_reason="error", error=f"the engine failed on this request: {error}"
                )
            )
            return
        self.scheduler.fold(work, list(verdict.tokens))
        self._count_verdict(verdict, len(drafted))
        self._events.append(
            TokenEvent(
                request_id, verdict.tokens, verdict.finish_reason, None, len(drafted), verdict.accepted
            )
        )
        if verdict.finish_reason:
            self._end(sequence)

    def _token_at(
        self, logits: Tensor, params: SamplingParams, key: int, position: int
    ) -> Callable[[int], int]:
        """The engine's token for each row of `logits`, the first of which is for `position`."""
        if params.temperature < GREEDY_BELOW:
            return greedy_tokens(logits).__getitem__
        return lambda row: sampled_token(logits[row], params, position_key(key, position + row), self.noise)

    def _end(self, sequence: Sequence) -> None:
        request_id = sequence.submit.request_id
        self.scheduler.finish(sequence)
        self._keys.pop(request_id, None)
        self.drafter.observe(request_id, sequence.tokens, sequence.prompt_length)

    def _take_events(self) -> list[TokenEvent]:
        events, self._events = self._events, []
        return events

    def _count(self, **increments: int) -> None:
        grown = {name: getattr(self._stats, name) + by for name, by in increments.items()}
        self._stats = replace(self._stats, **grown)

    def _count_verdict(self, verdict: Verdict, drafted: int) -> None:
        self._count(generated_tokens=len(verdict.tokens))
        if not drafted:
            return
        self._count(drafts=1, draft_tokens=drafted, accepted_tokens=verdict.accepted)
        per_position = list(self._stats.accepted_per_position)
        per_position += [0] * (drafted - len(per_position))
        for position in range(verdict.accepted):
            per_position[position] += 1
        self._stats = replace(self._stats, accepted_per_position=tuple(per_position))


def _chunk(work: Work, drafted: list[int]) -> Chunk:
    sequence = work.sequence
    tokens = sequence.tokens[work.start : work.start + work.count] + drafted
    return Chunk(tokens, work.start, sequence.table, len(drafted) + 1 if work.yields else 0)
