"""What a step costs outside the model's forward pass: scheduling, drafting, sampling, verification, events.

All requests decode; steps with a prompt in them are not counted. Greedy requests, and mixed ones: every one
has temperature, top-p and a presence penalty, a quarter also a repetition penalty, a quarter a bias, and a
quarter a grammar. Without drafts, and with four a request, of which one in five is wrong.

And how often a step of the runner for GPUs waits for the device. Here it runs on the CPU, with an attention
of the same signature.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines import as_new, fresh, run, settle_process, timed, tokenizer
from harness import Bar, arguments, finish, prompts

from turbo_dev.model import ensure
from turbo_dev.progress import say, step
from turbo_runtime.contract.config import RuntimeConfig
from turbo_runtime.engine.process import freeze_heap
from turbo_runtime.messages import GenerationRequest, Grammar, SamplingParams

if TYPE_CHECKING:
    from turbo_runtime.engine.loop import Engine
    from turbo_runtime.sampling.grammar.matcher import Grammars

BARS = (Bar("mixed_256_ms", at_most=12.0), Bar("waits_per_step", at_most=1.0))
REQUESTS = (1, 8, 32, 64, 256)
QUICK_REQUESTS = (1, 32)
DRAFTS, WRONG = 4, 0.2
STEPS, FIRST = 8, 2  # steps that count, behind the first ones
PROMPT_TOKENS = 32
SYNC_REQUESTS = 4
TEXT = Grammar("regex", r"[A-Za-z0-9 ,.'\n-]*")


def main() -> int:
    """Run all sizes; exit status by the bars."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--quick", action="store_true", help="1 and 32 requests: for development")
    options = parser.parse_args()
    settle_process(options.threads)
    # these import torch
    from turbo_dev.varlen_reference import varlen_attn_out
    from turbo_runtime.engine.startup.builder import start_engine
    from turbo_runtime.models.loader import export_tokenizer
    from turbo_runtime.sampling.grammar.matcher import Grammars

    sizes = QUICK_REQUESTS if options.quick else REQUESTS
    config = RuntimeConfig(
        str(ensure()),
        dtype="float32",
        threads=options.threads,
        max_num_seqs=max(sizes),
        max_num_batched_tokens=2048,
        max_model_len=1024,
        max_draft_tokens=DRAFTS,
    )
    with tempfile.TemporaryDirectory() as folder, step("start the engine", "15 s"):
        exported = export_tokenizer(config.model, config.revision, Path(folder))
        engine, ready = start_engine(config, time.monotonic())
        grammars = Grammars(exported.file, ready.vocab_size, exported.end_ids | {*ready.eos_token_ids})
        grammars.matcher(grammars.compile(TEXT))  # which reads the file
    freeze_heap()
    rows, figures = _sizes(engine, grammars, _requests(config), sizes)
    with step("count how often a step waits for a device", "10 s"):
        on_device, _ = start_engine(
            replace(config, max_num_seqs=SYNC_REQUESTS), time.monotonic(), op=varlen_attn_out
        )
        figures["waits_per_step"] = _waits(on_device, grammars, _requests(config)[:SYNC_REQUESTS])
    grammars.close()
    bars = [bar for bar in BARS if bar.figure in figures]
    return finish("host_time", figures, rows, bars, options)


def _requests(config: RuntimeConfig) -> list[GenerationRequest]:
    """Greedy ones, of one length."""
    encode, _ = tokenizer(config)
    texts = [tuple(encode(row["prompt"]))[-PROMPT_TOKENS:] for row in prompts()]
    params = SamplingParams(temperature=0.0, max_tokens=(DRAFTS + 1) * (FIRST + STEPS + 4))
    return [
        GenerationRequest(str(n), texts[n % len(texts)], replace(params, seed=n))
        for n in range(max(REQUESTS))
    ]


def _mixed(request: GenerationRequest, number: int) -> GenerationRequest:
    params: dict[str, Any] = {"temperature": 0.8, "top_p": 0.95, "presence_penalty": 0.5}
    every: tuple[dict[str, Any], ...] = (
        {},
        {"repetition_penalty": 1.1},
        {"logit_bias": tuple((1000 + token, 1.0) for token in range(32))},
        {"grammar": TEXT, "min_tokens": request.params.max_tokens},
    )
    return as_new(request, request.request_id, **params, **every[number % len(every)])


def _sizes(
    engine: Engine, grammars: Grammars, greedy: Sequence[GenerationRequest], sizes: Sequence[int]
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    mixed = [_mixed(request, number) for number, request in enumerate(greedy)]
    rows, figures = [], dict[str, float]()
    for size in sizes:
        for name, requests in (("greedy", greedy[:size]), ("mixed", mixed[:size])):
            plain = fresh(engine, grammars)
            off = [as_new(each, each.request_id, draft_method="off") for each in requests]
            outside, answers = _measured(plain, off)
            say(f"   {size} requests, {name}: {outside:.2f} ms")
            drafting, _ = _measured(_drafting(engine, grammars, answers), requests)
            say(f"   {size} requests, {name}, with drafts: {drafting:.2f} ms")
            rows.append({"requests": size, "sampling": name, "plain_ms": outside, "drafting_ms": drafting})
            figures[f"{name}_{size}_ms"] = round(outside, 2)
            figures[f"{name}_{size}_drafting_ms"] = round(drafting, 2)
    return rows, figures


def _waits(engine: Engine, grammars: Grammars, requests: Sequence[GenerationRequest]) -> float:
    """The most of any step, with drafts and all parameters."""
    from turbo_dev import host_syncs
    from turbo_dev.drafting import EveryDraft

    server = fresh(engine, grammars, EveryDraft())
    most = 0
    for number, request in enumerate(requests):
        server.accept(_mixed(request, number))
    while not server.idle:
        with host_syncs.counted() as waits:
            server.step()
        most = max(most, sum(waits.values()))
    return float(most)


def _drafting(engine: Engine, grammars: Grammars, answers: dict[str, list[int]]) -> Engine:
    from proofs.guessing import Guessing

    from turbo_dev.drafting import EveryDraft

    server = fresh(engine, grammars, EveryDraft())
    server.speculation.drafters = Guessing(answers, engine.model.vocabulary, wrong=WRONG, seed=0)
    return server


def _measured(server: Engine, requests: Sequence[GenerationRequest]) -> tuple[float, dict[str, list[int]]]:
    """Median milliseconds of a step outside the forward pass while all decode, and the answers."""
    outside = list[float]()
    with timed(server, "step") as steps, timed(server.model, "execute") as passes:

        def watch(_: object) -> None:
            if len(server.scheduler.running) == len(requests) and passes:
                outside.append(steps[-1] - sum(passes))
            passes.clear()

        answers = run(server, requests, len(requests), watch=watch)
    failed = [answer.error for answer in answers.values() if answer.error]
    assert not failed, failed[0]
    counted = outside[FIRST : FIRST + STEPS]
    return statistics.median(counted) * 1000, {name: answer.tokens for name, answer in answers.items()}


if __name__ == "__main__":
    sys.exit(main())
