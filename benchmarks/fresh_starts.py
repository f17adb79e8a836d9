"""Drafting begins soon in a process that was just started: how many steps in a row, at most, go without a
drafted token in twelve of them, and how much sooner the tokens come. Each starts the engine, answers some
prompts at a time to warm up, with drafts and without, then others one after the other, in turn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from engines import Answer, as_new, fresh, run, settle_process, tokenizer
from harness import Bar, arguments, finish, prompts

from turbo_dev.model import ensure
from turbo_runtime.contract.config import RuntimeConfig
from turbo_runtime.messages import GenerationRequest, SamplingParams, StepOutput

if TYPE_CHECKING:
    from turbo_runtime.engine.loop import Engine

BARS = (Bar("processes", at_least=12), Bar("steps_without_a_draft", at_most=32), Bar("median", at_least=2.0))
DOMAIN = "json"  # drafts pay there
WARM, ASKED, TOKENS = 8, 4, 64


def main() -> int:
    """Start all processes, one after the other; exit status by the bars."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--processes", type=int, default=12, help="default: %(default)s")
    parser.add_argument("--max-draft-tokens", type=int, help="default: the engine's")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    parser.set_defaults(threads=1)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(_start(options)))
        return 0
    rows: list[dict[str, Any]] = []
    for number in range(options.processes):
        command = [sys.executable, __file__, "--one", *sys.argv[1:]]
        said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        rows.append({"process": number + 1, **json.loads(said.splitlines()[-1])})
        print(rows[-1], flush=True)
    figures = {
        "processes": len(rows),
        "steps_without_a_draft": max(row["without_a_draft"] for row in rows),
        "median": round(statistics.median(row["speedup"] for row in rows), 3),
        "worst": round(min(row["speedup"] for row in rows), 3),
    }
    return finish("fresh_starts", figures, rows, BARS, options)


def _start(options: argparse.Namespace) -> dict[str, float]:
    """What one process sees."""
    settle_process(options.threads)
    from turbo_runtime.engine.startup.builder import start_engine

    config = RuntimeConfig(str(ensure()), dtype="float32", threads=options.threads, max_model_len=1024)
    engine, ready = start_engine(config, time.monotonic())
    limit = options.max_draft_tokens or config.max_draft_tokens
    half = engine.scheduler.block_pool.num_blocks // 2  # of the KV cache for each
    drafts = fresh(engine, blocks=half, max_draft_tokens=limit)
    plain = fresh(engine, blocks=half, first_block=half, max_draft_tokens=0)
    encode, _ = tokenizer(config)
    stop = frozenset(ready.eos_token_ids)
    params = SamplingParams(temperature=0.0, max_tokens=TOKENS, stop_token_ids=stop)
    texts = [row["prompt"] for row in prompts() if row["domain"] == DOMAIN][: WARM + ASKED]
    asked = [GenerationRequest(f"r{n}", tuple(encode(text)), params) for n, text in enumerate(texts)]
    for server, method in ((drafts, "auto"), (plain, "off")):
        run(server, [as_new(one, one.request_id, draft_method=method) for one in asked[:WARM]], WARM)
    counted = _Counted(drafts)
    seconds = {True: 0.0, False: 0.0}
    answers = dict[bool, dict[str, Answer]]()
    for number, request in enumerate(asked[WARM:]):
        for drafting in (True, False) if number % 2 else (False, True):
            began = time.perf_counter()
            server, method = (drafts, "auto") if drafting else (plain, "off")
            watch = counted.see if drafting else None
            answers[drafting] = run(
                server, [as_new(request, request.request_id, draft_method=method)], 1, watch=watch
            )
            seconds[drafting] += time.perf_counter() - began
        if answers[True] != answers[False]:
            sys.exit("the answer with drafts is another one than without")
    return {
        "speedup": seconds[False] / seconds[True],
        "without_a_draft": counted.longest,
        "drafted_per_step": counted.drafted / counted.steps,
    }


class _Counted:
    """Steps that give tokens, and how many in a row go without a draft."""

    def __init__(self, engine: Engine) -> None:
        self._before = self._first = engine.stats().draft_tokens
        self.longest = self.steps = self._row = 0

    @property
    def drafted(self) -> int:
        """Tokens verified since the beginning."""
        return self._before - self._first

    def see(self, step: StepOutput) -> None:
        """A step of the engine."""
        if step.events:
            self.steps += 1
            self._row = 0 if step.stats.draft_tokens > self._before else self._row + 1
            self.longest = max(self.longest, self._row)
            self._before = step.stats.draft_tokens


if __name__ == "__main__":
    raise SystemExit(main())
