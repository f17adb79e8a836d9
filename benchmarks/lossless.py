"""The same text with speculation on and off, byte for byte, and the same logits bit for bit, on the real
model.

50 requests, every other one sampled with a seed, are answered 4 at a time without speculation; then again
with it, in another order and beside other requests that come and go. Then 200 positions are computed in four
ways, and logits compared. Last, the verifier is broken from outside, and the same comparison must notice.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from harness import Bar, arguments, finish, prompts

from turbo_dev.model import ensure
from turbo_runtime.contract import RuntimeConfig
from turbo_runtime.engine.request import SamplingParams, Submit
from turbo_runtime.engine.threads import settle_threads

if TYPE_CHECKING:
    from torch import Tensor

    from turbo_runtime.engine.loop import Engine

BARS = (
    Bar("requests", at_least=50),
    Bar("byte_differences", at_most=0),
    Bar("accepted_drafts", at_least=500),
    Bar("rejected_drafts", at_least=500),
    Bar("logit_positions", at_least=200),
    Bar("logit_differences", at_most=0),
    Bar("broken_verifier_caught", at_least=1),
)
AT_A_TIME = 4
ANSWER_TOKENS = 96
LOGIT_ANSWERS, LOGIT_POSITIONS_EACH = 5, 40
BROKEN_REQUESTS = 8
SAMPLING = (  # of the requests with a temperature, in turn
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=0.7, top_p=0.9),
    SamplingParams(temperature=1.0, top_k=40),
    SamplingParams(temperature=0.8, top_k=20, top_p=0.95),
)


def main() -> int:
    """Run all parts; exit status by the bars."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--model", help="another model than SmolLM2-135M-Instruct")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    options = parser.parse_args()
    settle_threads(options.threads)
    from turbo_runtime.engine.start import start_engine

    model = options.model or str(ensure())
    config = RuntimeConfig(model=model, dtype=options.dtype, threads=options.threads)
    engine, ready = start_engine(config, time.monotonic())
    print(f"{ready.dtype}, guarantee {ready.guarantee}, products: {ready.arithmetic}", flush=True)
    encode, decode = _tokenizer(config)
    requests = _requests(encode, ready.eos_token_ids)
    mates = [_as(r, f"mate-{i}", seed=1000 + i, max_tokens=24) for i, r in enumerate(requests[::2])]

    began = time.monotonic()
    alone = _answers(_fresh(engine), [_as(r, r.request_id, drafting="off") for r in requests], [])
    off_seconds = time.monotonic() - began
    speculating = _fresh(engine)
    began = time.monotonic()
    mixed = _answers(speculating, requests[::-1], mates)
    on_seconds = time.monotonic() - began
    stats = speculating.stats()

    rows = []
    for request in requests:
        plain, fast = alone[request.request_id], mixed[request.request_id]
        rows.append(
            {
                "request": request.request_id,
                "temperature": request.params.temperature,
                "prompt_tokens": len(request.prompt),
                "answer_tokens": len(plain),
                "same_bytes": decode(plain).encode() == decode(fast).encode() and plain == fast,
            }
        )
    different_logits = _logit_differences(engine, requests, alone)
    with _broken_verifier():
        subset = requests[:BROKEN_REQUESTS]
        broken = _answers(_fresh(engine), subset, [])
    caught = sum(broken[r.request_id] != alone[r.request_id] for r in subset)
    figures = {
        "requests": len(requests),
        "byte_differences": sum(not row["same_bytes"] for row in rows),
        "answer_tokens": sum(len(alone[r.request_id]) for r in requests),
        "drafted": stats.draft_tokens,
        "accepted_drafts": stats.accepted_tokens,
        "rejected_drafts": stats.draft_tokens - stats.accepted_tokens,
        "logit_positions": LOGIT_ANSWERS * LOGIT_POSITIONS_EACH,
        "logit_differences": different_logits,
        "broken_verifier_caught": caught,
        "seconds_off": round(off_seconds, 1),
        "seconds_on_with_mates": round(on_seconds, 1),
    }
    return finish("lossless", figures, rows, BARS, options)


def _tokenizer(config: RuntimeConfig) -> tuple[Callable[[str], list[int]], Callable[[Sequence[int]], str]]:
    """(chat prompt -> ids, ids -> text), from the files that the server would read."""
    from transformers import AutoTokenizer

    from turbo_runtime.engine.tokenizer import export_tokenizer

    with tempfile.TemporaryDirectory() as folder:
        export_tokenizer(config.model, config.revision, Path(folder))
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)

    def encode(prompt: str) -> list[int]:
        chat = [{"role": "user", "content": prompt}]
        return list(tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False))

    return encode, tokenizer.decode


def _requests(encode: Callable[[str], list[int]], stop: tuple[int, ...]) -> list[Submit]:
    """One request per shipped prompt: greedy and sampled in turn, each sampled one with a seed of its own."""
    requests = []
    for number, row in enumerate(prompts()):
        params = SAMPLING[number // 2 % len(SAMPLING)] if number % 2 else SamplingParams(temperature=0.0)
        params = replace(params, seed=number, max_tokens=ANSWER_TOKENS, stop_token_ids=frozenset(stop))
        requests.append(Submit(row["id"], tuple(encode(row["prompt"])), params))
    return requests


def _as(request: Submit, request_id: str, **params: Any) -> Submit:
    return replace(request, request_id=request_id, params=replace(request.params, **params))


def _fresh(engine: Engine) -> Engine:
    """The same weights, nothing else kept: drafts must not come from an earlier run of the same requests."""
    from turbo_runtime.drafters.drafters import Drafters
    from turbo_runtime.engine.blocks import BlockLedger
    from turbo_runtime.engine.loop import Engine
    from turbo_runtime.engine.scheduler import Scheduler

    old = engine.scheduler
    scheduler = Scheduler(
        BlockLedger(old.ledger.num_blocks),
        max_running=old.max_running,
        max_step_tokens=old.max_step_tokens,
        max_draft_tokens=old.max_draft_tokens,
        max_length=old.max_length,
    )
    return Engine(engine.model, scheduler, Drafters())


@dataclass(frozen=True, slots=True)
class Mate:
    """Another sequence of the batch: its tokens and its blocks."""

    tokens: Sequence[int]
    table: list[int]


def _computed(
    engine: Engine,
    tokens: Sequence[int],
    prompt_length: int,
    table: list[int],
    length: int,
    mate: Mate | None = None,
) -> Tensor:
    """Logits (tokens, vocabulary) of a sequence that is computed in runs of `length`."""
    import torch

    from turbo_runtime.engine.model import Chunk

    parts = []
    for start in range(0, len(tokens), length):
        run = tokens[start : start + length]
        # the mate changes its length from step to step, as a batch does
        other = []
        if mate:
            beside = mate.tokens[: 1 + start % len(mate.tokens)]
            other = [Chunk(beside, 0, mate.table, 1, len(mate.tokens))]
        forward = engine.model.forward([*other, Chunk(run, start, table, len(run), prompt_length)])
        parts.append(forward.logits[len(other) :])
    return torch.cat(parts)


def _answers(engine: Engine, requests: Sequence[Submit], mates: Sequence[Submit]) -> dict[str, list[int]]:
    """Token ids by request id: `AT_A_TIME` of `requests` at any moment, a mate with every third of them."""
    queue, beside = deque(requests), deque(mates)
    measured = {request.request_id for request in requests}
    answers: dict[str, list[int]] = {}
    live = started = 0
    while queue or not engine.idle:
        while queue and live < AT_A_TIME:
            engine.accept(queue.popleft())
            live += 1
            started += 1
            if beside and started % 3 == 0:
                engine.accept(beside.popleft())
        for event in engine.step().events:
            if event.error:
                raise RuntimeError(f"{event.request_id}: {event.error}")
            answers.setdefault(event.request_id, []).extend(event.tokens)
            live -= event.finish_reason is not None and event.request_id in measured
    return answers


def _logit_differences(engine: Engine, requests: Sequence[Submit], answers: dict[str, list[int]]) -> int:
    """Positions whose logits are not bit-equal in all of: at once, in chunks, row by row, as verification
    beside mates.
    """
    import torch

    from turbo_runtime.engine.blocks import blocks_for

    different = 0
    longest = sorted(requests, key=lambda r: len(answers[r.request_id]), reverse=True)[:LOGIT_ANSWERS]
    mate = list(longest[0].prompt)
    for request in longest:
        tokens = [*request.prompt, *answers[request.request_id]]
        wanted = range(len(tokens) - LOGIT_POSITIONS_EACH, len(tokens))
        blocks = blocks_for(len(tokens))
        tables = [list(range(n * blocks, (n + 1) * blocks)) for n in range(5)]
        beside = Mate(mate, list(range(5 * blocks, 5 * blocks + blocks_for(len(mate)))))

        at_once = _computed(engine, tokens, len(request.prompt), tables[0], len(tokens))
        ways = (
            _computed(engine, tokens, len(request.prompt), tables[1], 1),
            _computed(engine, tokens, len(request.prompt), tables[2], 5, beside),
            _computed(engine, tokens, len(request.prompt), tables[3], 9),
            _computed(engine, tokens, len(request.prompt), tables[4], 37, beside),
        )
        different += sum(any(not torch.equal(at_once[i], way[i]) for way in ways) for i in wanted)
    return different


@contextmanager
def _broken_verifier() -> Iterator[None]:
    """A verifier that accepts one draft too many: the first wrong one, in the place of the correction."""
    from turbo_runtime.engine import loop
    from turbo_runtime.engine.verify import Verdict, verify

    def too_trusting(token_at: Callable[[int], int], drafts: Sequence[int], **rest: Any) -> Verdict:
        verdict = verify(token_at, drafts, **rest)
        if verdict.finish_reason is None and verdict.accepted < len(drafts):
            wrong = drafts[verdict.accepted]
            return Verdict((*verdict.tokens[:-1], wrong), verdict.accepted + 1)
        return verdict

    with patch.object(loop, "verify", too_trusting):
        yield


if __name__ == "__main__":
    sys.exit(main())
