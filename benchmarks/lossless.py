"""The same text with speculation on and off, byte for byte: on a tiny model that every parameter is tried on,
on the real one, and as a law. Three broken verifiers must be caught by each of these proofs.

By the runner for CPUs, and by that for GPUs, on the CPU too, with an attention of the same signature. Answers
are computed alone and without drafts; then again by every drafter, with few and many drafts, in
batches of 1 to 32, in caches so small that sequences give way to one another, with prompts found computed and
prompts cut into chunks, for the model itself and for two LoRA adapters of it. All that is told of an answer
is compared: tokens, log probabilities, how it ended.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from engines import settle_process, tokenizer
from harness import Bar, arguments, finish

from turbo_dev import lora
from turbo_dev.model import ensure
from turbo_dev.progress import say, step
from turbo_runtime.contract.config import RuntimeConfig
from turbo_runtime.kv_cache.block_pool import BLOCK_SIZE
from turbo_runtime.messages import EngineStats, GenerationRequest

MODELS, RUNNERS = ("tiny", "real"), ("cpu", "cuda")
COSTLY = ("model", "eagle3")  # drafters with passes of their own; counted on the real model
BARS = (
    Bar("requests", at_least=2000),
    Bar("adapter_requests", at_least=1000),
    Bar("byte_differences", at_most=0),
    Bar("accepted_drafts", at_least=3000),
    Bar("rejected_drafts", at_least=3000),
    *(Bar(f"{drafter}_{which}", at_least=500) for drafter in COSTLY for which in ("accepted", "rejected")),
    Bar("preemptions", at_least=100),
    Bar("prefix_cache_hits", at_least=1000),
    *(
        Bar(f"{model}_{runner}_{which}", at_least=minimum)
        for model in MODELS
        for runner in RUNNERS
        for which, minimum in (("preemptions", 20), ("prefix_cache_hits", 1000))
    ),
    Bar("logit_positions", at_least=200),
    Bar("logit_differences", at_most=0),
    Bar("stream_differences", at_most=0),
    Bar("law_differences", at_most=0),
    Bar("chi_square_p_min", at_least=1e-4),
    Bar("broken_caught_on_tiny_model", at_least=3),
    Bar("broken_caught_on_real_model", at_least=3),
    Bar("broken_caught_by_streams", at_least=3),
    Bar("broken_caught_by_exact_law", at_least=3),
    Bar("broken_caught_by_chi_square", at_least=3),
)
WAYS, REQUESTS = 45, 60
QUICK_WAYS, QUICK_REQUESTS = 6, 8
ADAPTER_SCALE = 2e-3  # of what random adapters add to each weight: texts differ, and are texts
Rows = list[dict[str, Any]]


def main() -> int:
    """Run all parts; exit status by the bars."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--model", help="another model than SmolLM2-135M-Instruct")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--quick", action="store_true", help="fewer requests than the bar asks for")
    options = parser.parse_args()
    settle_process(options.threads)
    from proofs import law

    rows: Rows = []
    figures: dict[str, float] = {}
    with step("every parameter on a tiny model", "12 min"):
        ways = QUICK_WAYS if options.quick else WAYS
        figures["broken_caught_on_tiny_model"] = min(_tiny(rows, ways, runner) for runner in RUNNERS)
    with step("the real model", "20 min"):
        config = RuntimeConfig(
            model=options.model or str(ensure()),
            dtype=options.dtype,
            threads=options.threads,
            kv_cache_gib=1.0,
        )
        with tempfile.TemporaryDirectory() as folder:
            adapters = lora.write_random(Path(folder), _shell(config.model), scale=ADAPTER_SCALE)
            config = replace(config, lora_modules=tuple(f"{name}={it}" for name, it in adapters.items()))
            count = QUICK_REQUESTS if options.quick else REQUESTS
            parts = [_real(config, rows, count, runner) for runner in RUNNERS]
        figures["logit_positions"] = sum(part[0] for part in parts)
        figures["logit_differences"] = sum(part[1] for part in parts)
        figures["broken_caught_on_real_model"] = min(part[2] for part in parts)
    with step("the law", "2 min"):
        figures |= law.figures()
    totals = {
        "requests": sum(row["requests"] for row in rows),
        "adapter_requests": sum(row["adapter_requests"] for row in rows),
        "byte_differences": sum(row["differences"] for row in rows),
        "accepted_drafts": sum(row["accepted"] for row in rows),
        "rejected_drafts": sum(row["rejected"] for row in rows),
    }
    for which in ("preemptions", "prefix_cache_hits"):
        totals[which] = sum(row[which] for row in rows)
        for model, runner in itertools.product(MODELS, RUNNERS):
            own = [row for row in rows if (row["model"], row["runner"]) == (model, runner)]
            totals[f"{model}_{runner}_{which}"] = sum(row[which] for row in own)
    for drafter in COSTLY:
        own = [row for row in rows if row["model"] == "real" and row["drafter"] == drafter]
        for which in ("accepted", "rejected"):
            totals[f"{drafter}_{which}"] = sum(row[which] for row in own)
    sizes = totals.keys() - {"byte_differences"}
    bars = [bar for bar in BARS if not (options.quick and bar.figure in sizes)]
    return finish("lossless", {**totals, **figures}, rows, bars, options)


def _shell(model: str) -> Any:
    """A transformers model without weights."""
    import torch
    from transformers import AutoModelForCausalLM

    from turbo_runtime.model_files.source import find
    from turbo_runtime.models.loader import load_config

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(load_config(find(model, None)))


def _tiny(rows: Rows, count: int, runner: str) -> int:
    from proofs import tiny

    caught: list[int] = []

    def work(model: tiny.Tiny) -> None:
        for way, differences, stats in tiny.compare(model, tiny.ways(count)):
            cache = "small" if way.blocks < tiny.BLOCKS else "large"
            setting = _setting("tiny", runner, way.drafter, way.drafts, way.batch, way.step_tokens, cache)
            rows.append(_row(setting, model.requests, differences, stats))
        caught.append(tiny.caught(model))

    tiny.with_tiny(work, runner)
    return caught[0]


def _real(config: RuntimeConfig, rows: Rows, count: int, runner: str) -> tuple[int, int, int]:
    """Logit positions, those that differ, and the broken verifiers that are caught."""
    from proofs import real

    from turbo_dev.varlen_reference import varlen_attn_out
    from turbo_runtime.engine.startup.builder import start_engine
    from turbo_runtime.models.cuda_runner import CudaModelRunner

    op = varlen_attn_out if runner == "cuda" else None
    # Its pages have 256 tokens otherwise: no prompt would fill one, and no cache be small.
    small: dict[str, Any] = {
        "CudaModelRunner": partial(CudaModelRunner, page_size=BLOCK_SIZE),
        "PAGE_SIZE": BLOCK_SIZE,
    }
    with patch.multiple("turbo_runtime.engine.startup.sizing", **small):
        engine, ready = start_engine(config, time.monotonic(), op=op)
    say(f"   runner {runner}, {ready.dtype}, guarantee {ready.guarantee}, products: {ready.arithmetic}")
    encode, _ = tokenizer(config)
    requests = real.requests_of(encode, count, ready.eos_token_ids)
    alone = real.alone(engine, requests)
    for mix in real.MIXES:
        answers, stats = real.mixed(engine, requests, mix, alone)
        differences = sum(answers[name] != answer for name, answer in alone.items())
        cache = "small" if mix.longest < mix.batch else "large"
        setting = _setting("real", runner, mix.drafter, mix.drafts, mix.batch, mix.step_tokens, cache)
        rows.append(_row(setting, requests, differences, stats))
    compared, different = real.compared_logits(engine, requests, alone)
    return compared, different, real.caught(engine, requests, alone)


def _setting(
    model: str, runner: str, drafter: str, k: int, batch: int, step_tokens: int, cache: str
) -> dict[str, Any]:
    return {
        "model": model,
        "runner": runner,
        "drafter": drafter,
        "k": k,
        "batch": batch,
        "step_tokens": step_tokens,
        "cache": cache,
    }


def _row(
    setting: dict[str, Any], asked: Sequence[GenerationRequest], differences: int, stats: EngineStats
) -> dict[str, Any]:
    return {
        **setting,
        "requests": len(asked),
        "adapter_requests": sum(request.lora_id > 0 for request in asked),
        "differences": differences,
        "accepted": stats.accepted_tokens,
        "rejected": stats.draft_tokens - stats.accepted_tokens,
        "preemptions": stats.preemptions,
        "prefix_cache_hits": stats.prefix_cache_hits,
    }


if __name__ == "__main__":
    sys.exit(main())
