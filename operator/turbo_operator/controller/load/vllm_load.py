"""The load of a pod of vLLM, read from its Prometheus page. Pure.

Names are those of vLLM's page, which engine Turbo uses too: https://docs.vllm.ai/en/latest/design/metrics.html
What vLLM does not report is left unknown: of prompts that wait it reports the number alone, and of prompts
that it has read those whose requests have ended.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families

from turbo_runtime.contract.documents import LARGEST, LatencyHistogram, Load

_RUNNING, _WAITING = "vllm:num_requests_running", "vllm:num_requests_waiting"
_USAGE, _CACHE = "vllm:kv_cache_usage_perc", "vllm:cache_config_info"
_GENERATED = "vllm:generation_tokens_total"
_PROMPTS, _PROMPT_TOKENS = "vllm:request_prompt_tokens_count", "vllm:request_prompt_tokens_sum"
_DRAFTS, _DRAFT_TOKENS = "vllm:spec_decode_num_drafts_total", "vllm:spec_decode_num_draft_tokens_total"
_ACCEPTED = "vllm:spec_decode_num_accepted_tokens_total"
# Of requests that have ended: the time from their first to their last token, and their tokens.
_DECODE_SECONDS = "vllm:request_decode_time_seconds_sum"
_ENDED, _ENDED_TOKENS = "vllm:request_generation_tokens_count", "vllm:request_generation_tokens_sum"
_FINISHED = "vllm:request_success_total"  # of requests with an error, too
_TTFT = "vllm:time_to_first_token_seconds_bucket"
_TPOT = "vllm:request_time_per_output_token_seconds_bucket"
_COUNTS = (
    _RUNNING,
    _WAITING,
    _USAGE,
    _GENERATED,
    _PROMPTS,
    _PROMPT_TOKENS,
    _DRAFTS,
    _DRAFT_TOKENS,
    _ACCEPTED,
    _DECODE_SECONDS,
    _ENDED,
    _ENDED_TOKENS,
    _FINISHED,
)
_MAX_DIGITS = 9
# Most of a page are other histograms.
_WANTED = tuple(f"{name}{{" for name in (*_COUNTS, _CACHE, _TTFT, _TPOT))


def parse(page: str) -> Load:
    """Read a load; ValueError where the page is not of vLLM. Engines of one server count together."""
    totals: defaultdict[str, float] = defaultdict(float)
    buckets: defaultdict[str, defaultdict[float, float]] = defaultdict(lambda: defaultdict(float))
    num_engines, capacity, failed = 0, 0, 0.0
    lines = (line for line in page.splitlines(keepends=True) if line.startswith(_WANTED))
    for family in text_string_to_metric_families("".join(lines)):
        for sample in family.samples:
            if not 0.0 <= sample.value <= LARGEST:  # NaN neither: the pod's image is the user's choice
                raise ValueError(f"{sample.name} cannot be {sample.value}")
            totals[sample.name] += sample.value
            if sample.labels.get("finished_reason") == "error":
                failed += sample.value
            if "le" in sample.labels:
                buckets[sample.name][float(sample.labels["le"])] += sample.value
            if sample.name == _CACHE:
                num_engines, capacity = num_engines + 1, capacity + _cache_tokens(sample.labels)
    if _RUNNING not in totals:
        raise ValueError(f"the page has no {_RUNNING}")
    usage = totals[_USAGE] / max(1, num_engines)
    waiting, prompts, prompt_tokens = (int(totals[name]) for name in (_WAITING, _PROMPTS, _PROMPT_TOKENS))
    return Load(
        running_requests=int(totals[_RUNNING]),
        waiting_requests=waiting,
        running_tokens=round(usage * capacity),
        waiting_tokens=round(waiting * prompt_tokens / prompts) if prompts else 0,
        kv_cache_usage=min(1.0, usage),
        kv_cache_tokens=capacity,
        drafts=int(totals[_DRAFTS]),
        draft_tokens=int(totals[_DRAFT_TOKENS]),
        accepted_tokens=int(totals[_ACCEPTED]),
        generated_tokens=int(totals[_GENERATED]),
        guarantee="distribution",
        draining=False,
        prompts=prompts,
        prompt_tokens=prompt_tokens,
        finished_requests=int(totals[_FINISHED]),
        failed_requests=int(failed),
        decode_seconds=totals[_DECODE_SECONDS],
        decode_tokens=max(0, int(totals[_ENDED_TOKENS] - totals[_ENDED])),
        time_to_first_token=_histogram(buckets.get(_TTFT)),
        time_per_output_token=_histogram(buckets.get(_TPOT)),
    )


def _histogram(cumulative: Mapping[float, float] | None) -> LatencyHistogram | None:
    """Read the counts up to each bound; None where there are none, ValueError where they cannot be."""
    if cumulative is None:
        return None
    bounds = sorted(cumulative)
    if not bounds[0] >= 0.0:  # NaN neither
        raise ValueError(f"a bucket cannot end at {bounds[0]}")
    edges = itertools.pairwise([(0.0, 0.0), *((bound, cumulative[bound]) for bound in bounds)])
    buckets = [(low, high, int(count - before)) for (low, before), (high, count) in edges if count != before]
    if any(count < 0 for *_, count in buckets):
        raise ValueError("the buckets of a histogram cannot shrink")
    above, up_to, counts = zip(*buckets, strict=True) if buckets else ((), (), ())
    return LatencyHistogram(above, up_to, counts)


def _cache_tokens(labels: Mapping[str, str]) -> int:
    """Return the tokens of one engine's KV cache; 0 where it does not tell."""
    blocks, size = labels.get("num_gpu_blocks", ""), labels.get("block_size", "")
    fit = all(part.isdecimal() and len(part) <= _MAX_DIGITS for part in (blocks, size))
    return int(blocks) * int(size) if fit else 0
