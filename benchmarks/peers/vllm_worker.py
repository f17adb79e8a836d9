"""vLLM on CPU in this process, plain or with the speculation that `settings` say."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from peers.worker import Answerer, Job, Result, Setup, serve, timed


def load(setup: Setup) -> Answerer:
    """An engine for `at_a_time` requests; its prefix cache is on, as it is by default, and empty when a run
    begins. Its blocks are the smallest that its CPU kernels take: by those of 128 tokens, its default, short
    prompts would share nothing.
    """
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"  # GiB, more than it can fill
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # no other process, as it is with us
    os.environ["VLLM_LOGGING_LEVEL"] = "WARNING"
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    import torch
    from vllm import LLM, SamplingParams

    engine: Any = LLM(
        setup.model,
        dtype="float32",
        max_model_len=setup.max_length,
        max_num_seqs=setup.at_a_time,
        block_size=32,
        **setup.settings,
    )
    if (threads := torch.get_num_threads()) != setup.threads:  # it has settings of its own for them
        raise RuntimeError(f"vLLM computes with {threads} threads instead of {setup.threads}")

    def answer(job: Job, prompts: list[list[int]]) -> list[list[int]]:
        params = SamplingParams(
            temperature=0.0, max_tokens=job.max_tokens, stop_token_ids=job.stop, detokenize=False
        )
        asked = [{"prompt_token_ids": prompt} for prompt in prompts]
        # it batches what one call brings
        calls = [asked] if job.at_a_time > 1 else [[one] for one in asked]
        told = [one for call in calls for one in engine.generate(call, params, use_tqdm=False)]
        return [list(one.outputs[0].token_ids) for one in told]

    def forget() -> None:
        if not engine.reset_prefix_cache():
            raise RuntimeError("the prefix cache was not emptied")
        engine.collective_rpc(_forget_answers)

    instructions = torch.backends.cpu.get_cpu_capability()

    def run(job: Job) -> Result:
        before = list[int]()

        def measured(prompts: list[list[int]]) -> list[list[int]]:
            before[:] = _drafted(engine)  # of the last call: what is under the clock, not what warms
            return answer(job, prompts)

        result = timed(job, measured, forget, instructions)
        drafts, accepted = (now - then for now, then in zip(_drafted(engine), before, strict=True))
        return replace(result, drafts=drafts, accepted=accepted)

    return run


def _drafted(engine: Any) -> tuple[int, int]:
    """Verifications with drafts and drafted tokens accepted so far; 0 where no statistics are kept."""
    if not engine.llm_engine.log_stats:
        return 0, 0
    counts = {metric.name: metric.value for metric in engine.get_metrics() if hasattr(metric, "value")}
    drafts = counts.get("vllm:spec_decode_num_drafts", 0)
    return int(drafts), int(counts.get("vllm:spec_decode_num_accepted_tokens", 0))


def _forget_answers(worker: Any) -> None:
    """What suffix decoding keeps of answers; n-grams are looked up in the request itself."""
    kept: Any = getattr(getattr(worker.model_runner, "drafter", None), "suffix_cache", None)
    if kept is not None:
        for request in list(kept.cached_requests):
            kept.evict_cached_response(request)


if __name__ == "__main__":
    serve(load)
