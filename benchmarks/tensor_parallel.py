"""One model in one process and cut up among two: greedy texts, and the bytes of weights that a rank has.

SmolLM2-135M in float32 has 9 query heads over 3 KV heads: one rank has two thirds of attention, and both half
of all else. Both ways compute the same sums in another order. So a text may differ where the best two tokens
are as close as rounding, and nowhere else.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines import run, settle_process, tokenizer
from harness import Bar, arguments, finish, prompts

from turbo_dev.model import ensure
from turbo_dev.progress import say, step
from turbo_runtime.contract.config import GuaranteeChoice, RuntimeConfig
from turbo_runtime.messages import GenerationRequest, SamplingParams

if TYPE_CHECKING:  # torch comes in only after the threads are settled
    from turbo_runtime.engine.loop import Engine

AT_A_TIME = 8
NEAR = 1e-3  # of logits, between the best two of a row
BARS = (
    Bar("prompts", at_least=100),
    Bar("differences_beyond_rounding", at_most=0),
    Bar("equal_texts", at_least=100),
    Bar("largest_weights_share", at_most=0.55),
)


def main() -> int:
    """Compute all texts both ways; exit status by the bars."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--prompts", type=int, default=100, help="how many, of all domains in turn")
    parser.add_argument("--max-tokens", type=int, default=32)
    options = parser.parse_args()
    threads = options.threads or 1
    settle_process(threads)
    figures, rows = compare(options.prompts, options.max_tokens, threads, "auto")
    return finish("tensor_parallel", figures, rows, BARS, options)


def compare(
    count: int, max_tokens: int, threads: int, guarantee: GuaranteeChoice
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Figures, and a row for each number of ranks; `threads` each."""
    from peers.weights import float32_folder

    from turbo_dev.ranks import weight_bytes
    from turbo_runtime.engine.startup.builder import start_engine

    texts: list[dict[str, list[int]]] = []
    weights: list[list[int]] = []
    rows: list[dict[str, Any]] = []
    engines: list[Engine] = []
    config = RuntimeConfig(
        model=str(float32_folder(Path(ensure()))),
        dtype="float32",
        device="cpu",
        threads=threads,
        kv_cache_gib=0.5,
        max_model_len=2048,
        guarantee=guarantee,
    )
    requests = _requests(config, count, max_tokens)
    for ranks in (1, 2):
        with step(f"texts of {ranks} ranks", "5 min"):
            engine, ready = start_engine(replace(config, tensor_parallel_size=ranks), time.monotonic())
            try:
                answers = run(engine, requests, AT_A_TIME)
                weights.append(engine.model.everywhere(weight_bytes))
            finally:
                engine.model.followers.stop()
        engines.append(engine)
        texts.append({name: answer.tokens for name, answer in answers.items()})
        stats = engine.stats()
        rows.append(
            {
                "ranks": ranks,
                "guarantee": ready.guarantee,
                "weights_mib": [round(part / 2**20) for part in weights[-1]],
                "kv_blocks": ready.kv_blocks,
                "drafted": stats.draft_tokens,
                "accepted": stats.accepted_tokens,
                "forward_seconds": round(stats.forward_seconds, 1),
            }
        )
    expected, actual = texts
    gaps = {
        request.request_id: _gap(engines[0], request.prompt, expected[name], actual[name])
        for request in requests
        if expected[name := request.request_id] != actual[name]
    }
    for name, gap in gaps.items():
        say(f"   {name} differs, where the best two logits are {gap:.2g} apart")
    figures = {
        "prompts": len(expected),
        "equal_texts": len(expected) - len(gaps),
        "differences_beyond_rounding": sum(gap > NEAR for gap in gaps.values()),
        "largest_weights_share": max(weights[1]) / weights[0][0],
    }
    return figures, rows


def _requests(config: RuntimeConfig, count: int, max_tokens: int) -> list[GenerationRequest]:
    encode, _ = tokenizer(config)
    found = prompts()
    chosen = found[:: max(1, len(found) // count)][:count]
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens)
    return [GenerationRequest(row["id"], tuple(encode(row["prompt"])), params) for row in chosen]


def _gap(engine: Engine, prompt: tuple[int, ...], expected: list[int], actual: list[int]) -> float:
    """Between the best two logits where two texts part."""
    from turbo_runtime.kv_cache.block_pool import blocks_for
    from turbo_runtime.models.step_batch import Chunk

    place = next(i for i, pair in enumerate(zip(expected, actual, strict=False)) if pair[0] != pair[1])
    tokens = [*prompt, *expected[:place]]
    chunk = Chunk(tokens, 0, list(range(blocks_for(len(tokens)))), 1, len(prompt))
    best, second = engine.model.forward([chunk]).logits[0].topk(2).values.tolist()
    return float(best - second)


if __name__ == "__main__":
    sys.exit(main())
