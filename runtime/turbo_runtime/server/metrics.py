"""Metrics of a serving pod, each declared once, and their export to Prometheus."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import prometheus_client
from prometheus_client import Counter, Gauge, Histogram

from turbo_runtime.contract.documents import Load
from turbo_runtime.messages import EngineStats
from turbo_runtime.server.latency import LatencyCounter

MODEL_LABEL = "model_name"  # of every metric but GUARANTEE_INFO, as in vLLM


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """A metric's declaration. A gauge that is not `initialized` is absent until it is set."""

    kind: type[Counter | Gauge | Histogram]
    name: str
    help: str
    # Field that a counter follows: of EngineStats, by draft of DraftStats; of a list, the label is the index.
    source: str = ""
    labels: tuple[str, ...] = ()  # in addition to MODEL_LABEL
    buckets: tuple[float, ...] = ()  # of a histogram
    initialized: bool = True


_counter, _gauge = partial(Metric, Counter), partial(Metric, Gauge)
_by_draft = partial(_counter, labels=("draft",))
_unset_gauge, _histogram = partial(_gauge, initialized=False), partial(Metric, Histogram)

# Seconds. Wide: the same names serve a CPU node and a large GPU.
_FIRST_TOKEN = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160)
_PER_TOKEN = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2.5, 5)
_WHOLE = (0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 240, 480)
_TOKENS = tuple(float(1 << power) for power in range(18))

# Metrics that vLLM has keep vLLM's names and meanings, so that its dashboards and autoscalers read both
# engines alike.
NUM_REQUESTS_RUNNING = _gauge("vllm:num_requests_running", "requests decoded together now")
NUM_REQUESTS_WAITING = _gauge("vllm:num_requests_waiting", "requests queued now")
KV_CACHE_USAGE = _gauge("vllm:kv_cache_usage_perc", "used share of the KV cache, 0 to 1")
PROMPT_TOKENS = _counter(
    "vllm:prompt_tokens",
    "tokens of prompts, cached ones too, counted with their first output token",
    "begun_prompt_tokens",
)
GENERATION_TOKENS = _counter("vllm:generation_tokens", "tokens generated", "generated_tokens")
NUM_PREEMPTIONS = _counter("vllm:num_preemptions", "requests put back for want of KV cache", "preemptions")
SPEC_NUM_DRAFTS = _counter(
    "vllm:spec_decode_num_drafts", "verification passes with a drafted token", "drafts"
)
SPEC_NUM_DRAFT_TOKENS = _counter("vllm:spec_decode_num_draft_tokens", "tokens drafted", "draft_tokens")
SPEC_NUM_ACCEPTED_TOKENS = _counter(
    "vllm:spec_decode_num_accepted_tokens", "drafted tokens accepted", "accepted_tokens"
)
PREFIX_CACHE_QUERIES = _counter(
    "vllm:prefix_cache_queries", "prompt tokens looked up in the prefix cache", "prefix_cache_queries"
)
PREFIX_CACHE_HITS = _counter(
    "vllm:prefix_cache_hits", "prompt tokens found in the prefix cache", "prefix_cache_hits"
)
SPEC_NUM_ACCEPTED_TOKENS_PER_POS = _counter(
    "vllm:spec_decode_num_accepted_tokens_per_pos",
    "drafted tokens accepted at a position",
    "accepted_per_position",
    labels=("position",),
)
REQUEST_SUCCESS = _counter(  # finished_reason is stop, length, abort or error
    "vllm:request_success", "outputs finished, by reason", labels=("finished_reason",)
)
TIME_TO_FIRST_TOKEN = _histogram(
    "vllm:time_to_first_token_seconds", "seconds to the first token", buckets=_FIRST_TOKEN
)
INTER_TOKEN_LATENCY = _histogram(
    "vllm:inter_token_latency_seconds", "seconds between steps of an output", buckets=_PER_TOKEN
)
REQUEST_TIME_PER_OUTPUT_TOKEN = _histogram(
    "vllm:request_time_per_output_token_seconds",
    "seconds per token after the first, of a complete output",
    buckets=_PER_TOKEN,
)
E2E_REQUEST_LATENCY = _histogram(
    "vllm:e2e_request_latency_seconds", "seconds of a complete output", buckets=_WHOLE
)
REQUEST_QUEUE_TIME = _histogram(
    "vllm:request_queue_time_seconds", "seconds until the engine took a request in", buckets=_WHOLE
)
REQUEST_PROMPT_TOKENS = _histogram(
    "vllm:request_prompt_tokens", "tokens of a complete output's prompt", buckets=_TOKENS
)
REQUEST_GENERATION_TOKENS = _histogram(
    "vllm:request_generation_tokens", "tokens of a complete output", buckets=_TOKENS
)
ITERATION_TOKENS = _histogram(
    "vllm:iteration_tokens_total",
    "tokens of an engine step: of outputs, and of prompts that it finished",
    buckets=_TOKENS,
)
CACHE_CONFIG_INFO = _gauge(
    "vllm:cache_config_info",
    "1; the labels have the tokens of a block of the KV cache, and the number of blocks",
    labels=("block_size", "num_gpu_blocks"),
)
# Metrics that only Turbo has.
GUARANTEE_INFO = _gauge(
    "turbo:guarantee_info",
    "bitwise: the same bytes as without speculation; distribution: the same distribution",
    labels=("guarantee",),
)
STEP_SECONDS = _counter("turbo:step_seconds", "seconds of the engine's steps", "step_seconds")
FORWARD_SECONDS = _counter(
    "turbo:forward_seconds", "seconds of all steps in the model's forward pass", "forward_seconds"
)
# The growth of the second over that of the first is the speedup of any window.
GENERATION_SECONDS = _counter(
    "turbo:generation_seconds", "seconds of steps that generated tokens", "generation_seconds"
)
BASELINE_GENERATION_SECONDS = _counter(
    "turbo:baseline_generation_seconds",
    "seconds that as many tokens would take without drafts",
    "baseline_generation_seconds",
)
AUDITS = _counter("turbo:audits", "outputs replayed without speculation", "audits")
AUDIT_MISMATCHES = _counter(
    "turbo:audit_mismatches", "replayed outputs that came out otherwise", "audit_mismatches"
)
VERIFIED_DRAFT_LENGTH = _counter(
    "turbo:verified_draft_length",
    "how often so many drafts were verified for an output in a step",
    "verified_draft_length",
    labels=("drafts",),
)
SPEEDUP = _unset_gauge("turbo:speedup", "tokens per second lately over those without drafts")
HEARTBEAT_AGE = _unset_gauge(
    "turbo:engine_heartbeat_age_seconds", "seconds since the engine last finished a step or a rest"
)
DRAFT_ERROR = _unset_gauge(  # /version says why
    "turbo:draft_error", "1 while drafts are not what was asked for, or there are none for a fault"
)
DRAFT_INFO = _unset_gauge(
    "turbo:draft_info", "the version of the draft weights in use", labels=("draft", "version")
)
# What SPEC_NUM_* count of all requests, of those that chose a draft: default, or a name in --draft-config.
DRAFTS_BY_DRAFT = _by_draft(
    "turbo:spec_decode_num_drafts",
    "verification passes with a drafted token, of requests by the draft they have",
    "drafts",
)
DRAFT_TOKENS_BY_DRAFT = _by_draft(
    "turbo:spec_decode_num_draft_tokens", "draft tokens proposed, by the request's draft", "draft_tokens"
)
ACCEPTED_TOKENS_BY_DRAFT = _by_draft(
    "turbo:spec_decode_num_accepted_tokens",
    "draft tokens accepted, by the request's draft",
    "accepted_tokens",
)
OWN_DRAFT_TOKENS_BY_DRAFT = _by_draft(
    "turbo:spec_decode_num_head_draft_tokens",
    "draft tokens proposed by the draft's own layers",
    "own_draft_tokens",
)
OWN_ACCEPTED_TOKENS_BY_DRAFT = _by_draft(
    "turbo:spec_decode_num_head_accepted_tokens",
    "draft tokens of the draft's own layers accepted",
    "own_accepted_tokens",
)
CAPTURE_PROMPTS = _counter(  # kept, not_sampled, refused, ambiguous, unredacted, deleted, overrun or failed
    "turbo:capture_prompts", "prompts by whether they were kept to learn from", labels=("outcome",)
)
CAPTURE_BYTES = _unset_gauge("turbo:capture_bytes", "bytes of the folder that prompts are kept in")
CAPTURE_ERROR = _unset_gauge(  # the log says why
    "turbo:capture_error", "1 while prompts are not kept as was asked for"
)

METRICS = tuple(value for value in list(globals().values()) if isinstance(value, Metric))


class Metrics:
    """One registry for one served model, whose name is the label that vLLM's dashboards select on."""

    def __init__(self, model_name: str) -> None:
        # each counter would bring a second series that nobody reads
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = prometheus_client.CollectorRegistry()
        self._model = model_name
        self._stats: EngineStats | None = None
        self.finished_requests = self.failed_requests = 0
        self.first_token_time: float | None = None  # epoch seconds, of the first of all outputs
        # The same as two histograms, in narrower buckets.
        self.time_to_first_token, self.time_per_output_token = LatencyCounter(), LatencyCounter()
        self._collectors: dict[Metric, Any] = {}
        for metric in METRICS:
            options: dict[str, Any] = {"buckets": metric.buckets} if metric.buckets else {}
            labels = metric.labels if metric is GUARANTEE_INFO else (MODEL_LABEL, *metric.labels)
            self._collectors[metric] = metric.kind(
                metric.name, metric.help, labels, registry=self._registry, **options
            )
            if metric.initialized and not metric.labels:
                self._series(metric)

    def _series(self, metric: Metric, *labels: str) -> Any:
        return self._collectors[metric].labels(self._model, *labels)

    def _set_counter(self, metric: Metric, count: float, *labels: str) -> None:
        """The engine counts by itself."""
        series = self._series(metric, *labels)
        series.reset()
        series.inc(count)

    def observe_first_token(self, seconds: float) -> None:
        """Note the first token of an output, and when the first of all came."""
        self.observe(TIME_TO_FIRST_TOKEN, seconds)
        self.time_to_first_token.add(seconds)
        if self.first_token_time is None:
            self.first_token_time = round(time.time(), 3)

    def update(self, stats: EngineStats) -> None:
        """Note the state after a step."""
        counted, self._stats = self._stats or EngineStats(), stats
        tokens = stats.generated_tokens - counted.generated_tokens
        tokens += stats.begun_prompt_tokens - counted.begun_prompt_tokens
        if tokens:  # else nothing was computed, or a part of a prompt
            self.observe(ITERATION_TOKENS, tokens)

    def _export_stats(self, stats: EngineStats) -> None:
        drafts = stats.by_draft if stats.by_draft != EngineStats().by_draft else ()
        self._collectors[DRAFT_INFO].clear()
        for metric in filter(lambda each: each.source, METRICS):
            if not metric.labels:
                self._set_counter(metric, getattr(stats, metric.source))
            elif "draft" in metric.labels:
                self._collectors[metric].clear()  # a draft that is no longer in use leaves no series
                for draft in drafts:
                    self._set_counter(metric, getattr(draft, metric.source), draft.name)
            else:
                for index, count in enumerate(getattr(stats, metric.source)):
                    self._set_counter(metric, count, str(index))
        for draft in drafts:
            if draft.version:
                self._series(DRAFT_INFO, draft.name, draft.version).set(1)
        self._series(DRAFT_ERROR).set(1 if stats.draft_error else 0)
        if stats.speedup is not None:
            self._series(SPEEDUP).set(stats.speedup)

    def set_capture(self, outcomes: Mapping[str, int], size: int, problem: str) -> None:
        """Set the metrics of captured prompts; never called without a capture."""
        for outcome, count in outcomes.items():
            self._set_counter(CAPTURE_PROMPTS, count, outcome)
        self._series(CAPTURE_BYTES).set(size)
        self._series(CAPTURE_ERROR).set(1 if problem else 0)

    def set_cache(self, block_size: int, kv_blocks: int) -> None:
        """Set what the KV cache consists of; never called before the engine is ready."""
        self._series(CACHE_CONFIG_INFO, str(block_size), str(kv_blocks)).set(1)

    def set_load(self, load: Load, silent_seconds: float) -> None:
        """Set the gauges; never called before the engine is ready."""
        self._series(NUM_REQUESTS_RUNNING).set(load.running_requests)
        self._series(NUM_REQUESTS_WAITING).set(load.waiting_requests)
        self._series(KV_CACHE_USAGE).set(load.kv_cache_usage)
        self._series(HEARTBEAT_AGE).set(silent_seconds)
        self._collectors[GUARANTEE_INFO].labels(load.guarantee).set(1)

    def observe(self, histogram: Metric, value: float) -> None:
        """Observe one value."""
        self._series(histogram).observe(value)

    def observe_finish(
        self, reason: str, num_prompt_tokens: int, num_tokens: int, ttft: float | None, seconds: float
    ) -> None:
        """Observe the end of an answer; `ttft`, the seconds to its first token, is None when none came."""
        self._series(REQUEST_SUCCESS, reason).inc()
        self.finished_requests += 1
        self.failed_requests += reason == "error"
        if reason not in ("stop", "length"):  # what was cut measures neither the engine nor the demand
            return
        self.observe(REQUEST_PROMPT_TOKENS, num_prompt_tokens)
        self.observe(REQUEST_GENERATION_TOKENS, num_tokens)
        self.observe(E2E_REQUEST_LATENCY, seconds)
        if ttft is not None and num_tokens > 1:
            per_token = (seconds - ttft) / (num_tokens - 1)
            self.observe(REQUEST_TIME_PER_OUTPUT_TOKEN, per_token)
            self.time_per_output_token.add(per_token)

    def render(self) -> bytes:
        """Return the text of `/metrics`."""
        if self._stats is not None:
            self._export_stats(self._stats)
        return prometheus_client.generate_latest(self._registry)
