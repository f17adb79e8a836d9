"""Tokens per second at 1, 8, 32 and 64 requests at a time, plain and with drafts; how much of a step is not
the model's forward; and whether memory stays where it is over ten thousand requests.

The first two are of the real model, whose steps take as long as they do; plain and with drafts in turn, from
memories that were emptied. Tokens are counted until the last request has its first one: the end of a run,
when ever fewer requests run, belongs to the slowest. The third is of a tiny model behind small caches that
are full before memory is looked at: what still grows is kept for nothing.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines import WhileFull, as_new, fresh, run, settle_process, timed, tokenizer
from harness import Bar, arguments, finish, prompts

from turbo_dev.model import ensure
from turbo_dev.progress import say, step
from turbo_runtime.contract.config import DraftMethod, RuntimeConfig
from turbo_runtime.messages import GenerationRequest, SamplingParams

if TYPE_CHECKING:
    from turbo_runtime.engine.loop import Engine

BARS = (
    Bar("outside_share_max", at_most=0.25),
    Bar("memory_requests", at_least=10_000),
    Bar("caches_full", at_least=1),
    Bar("memory_growth_mib", at_most=2),
    Bar("blocks_held", at_most=0),
)
CONCURRENCY = (1, 8, 32, 64)
SHORTEST, LONGEST = 32, 96  # tokens of an answer at most: of one length, they would all end at once
REQUESTS = {1: 6, 8: 48, 32: 160, 64: 256}  # of each measurement
RUNS, QUICK_RUNS = 3, 1
SHORT_REQUESTS, WARM_SHARE = 10_000, 0.3


@dataclass(frozen=True)
class Measured:
    """One measurement."""

    tokens: int
    seconds: float
    outside: float  # share of it that is not the model's forward
    tokens_per_draft: float | None

    @property
    def speed(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds


def main() -> int:
    """Run all parts; exit status by the bars."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--runs", type=int, help=f"of each measurement (default: {RUNS})")
    parser.add_argument("--quick", action="store_true", help="one run, 1,000 short requests: for development")
    options = parser.parse_args()
    settle_process(options.threads)
    from turbo_runtime.engine.startup.builder import start_engine

    config = RuntimeConfig(
        str(ensure()),
        dtype="float32",
        threads=options.threads,
        max_num_seqs=max(CONCURRENCY),
        max_model_len=1024,
    )
    with step("start the engine", "15 s"):
        engine, ready = start_engine(config, time.monotonic())
    requests = _requests(config, ready.eos_token_ids)
    runs = options.runs or (QUICK_RUNS if options.quick else RUNS)
    rows, figures = _speeds(engine, requests, runs)
    del engine
    count = SHORT_REQUESTS // 10 if options.quick else SHORT_REQUESTS
    with step(f"{count} short requests to a tiny model", "1 min"):
        figures |= _memory(count)
    sizes = ("memory_requests", "caches_full")
    bars = [bar for bar in BARS if not (options.quick and bar.figure in sizes)]
    return finish("load", figures, rows, bars, options)


def _requests(config: RuntimeConfig, stop: Sequence[int]) -> list[GenerationRequest]:
    encode, _ = tokenizer(config)
    params = SamplingParams(temperature=0.0, stop_token_ids=frozenset(stop))
    lengths = random.Random(0)
    rows = sorted(prompts(), key=lambda row: row["id"][::-1])  # an order that mixes the domains
    return [
        GenerationRequest(
            row["id"],
            tuple(encode(row["prompt"])),
            replace(params, max_tokens=lengths.randint(SHORTEST, LONGEST)),
        )
        for row in rows
    ]


def _speeds(
    engine: Engine, requests: Sequence[GenerationRequest], runs: int
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    rows, figures, outside = [], dict[str, float](), list[float]()
    for at_a_time in CONCURRENCY:
        plain, drafted = list[Measured](), list[Measured]()
        for number in range(runs):
            first = number * REQUESTS[at_a_time] % len(requests)
            asked = (list(requests) * 2)[first : first + REQUESTS[at_a_time]]
            order: list[tuple[DraftMethod, list[Measured]]] = [("off", plain), ("auto", drafted)]
            for drafting, found in order if number % 2 else order[::-1]:
                found.append(_measured(engine, asked, at_a_time, drafting))
                say(f"   {at_a_time} at a time, drafting {drafting}: {found[-1].speed:.1f} tokens/s")
        ratios = [
            with_drafts.speed / without.speed for with_drafts, without in zip(drafted, plain, strict=True)
        ]
        figures[f"speedup_{at_a_time}"] = round(statistics.median(ratios), 3)
        for name, found in (("off", plain), ("auto", drafted)):
            share = statistics.median(each.outside for each in found)
            outside.append(share)
            speeds = [each.speed for each in found]
            drafts = [each.tokens_per_draft for each in found if each.tokens_per_draft is not None]
            rows.append(
                {
                    "at_a_time": at_a_time,
                    "drafting": name,
                    "tokens_per_s": statistics.median(speeds),
                    "from": min(speeds),
                    "to": max(speeds),
                    "outside_share": share,
                    "tokens_per_draft": statistics.median(drafts) if drafts else None,
                }
            )
    figures["outside_share_max"] = round(max(outside), 3)
    return rows, figures


def _measured(
    engine: Engine, requests: Sequence[GenerationRequest], at_a_time: int, drafting: DraftMethod
) -> Measured:
    server = fresh(engine)
    asked = [as_new(request, request.request_id, draft_method=drafting) for request in requests]
    with timed(server.model, "execute") as inside:
        counted = WhileFull(len(asked), at_a_time)
        began = time.perf_counter()
        run(server, asked, at_a_time, watch=lambda step: counted.see(step, time.perf_counter() - began))
        seconds = time.perf_counter() - began
    stats = server.stats()
    per_draft = 1 + stats.accepted_tokens / stats.drafts if stats.drafts else None
    return Measured(counted.tokens, counted.seconds, 1 - sum(inside) / seconds, per_draft)


def _memory(count: int) -> dict[str, float]:
    """Resident memory after the first share of the requests, when all caches are full, and after all."""
    from proofs.growth import Growth

    with tempfile.TemporaryDirectory() as folder:
        growth = Growth(Path(folder))
        warm = int(count * WARM_SHARE)
        before, full = growth.ask(warm), growth.full
        after = growth.ask(count - warm)
        growth.close()
    return {
        "memory_requests": count,
        "caches_full": full,
        "memory_mib": round(after, 1),
        "memory_growth_mib": round(after - before, 2),
        "blocks_held": growth.engine.scheduler.block_pool.num_used,
    }


if __name__ == "__main__":
    sys.exit(main())
