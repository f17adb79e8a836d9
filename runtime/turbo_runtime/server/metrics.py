"""Export of the contract's metrics to Prometheus."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

from turbo_runtime.contract import load, metrics
from turbo_runtime.messages import EngineStats

COMPLETE = ("stop", "length")  # reasons for which a whole answer ends

# The field of EngineStats that each counter follows
_COUNTERS = {
    metrics.PROMPT_TOKENS: "begun_prompt_tokens",
    metrics.GENERATION_TOKENS: "generated_tokens",
    metrics.NUM_PREEMPTIONS: "preemptions",
    metrics.SPEC_NUM_DRAFTS: "drafts",
    metrics.SPEC_NUM_DRAFT_TOKENS: "draft_tokens",
    metrics.SPEC_NUM_ACCEPTED_TOKENS: "accepted_tokens",
    metrics.PREFIX_CACHE_QUERIES: "prefix_cache_queries",
    metrics.PREFIX_CACHE_HITS: "prefix_cache_hits",
    metrics.STEP_SECONDS: "step_seconds",
    metrics.FORWARD_SECONDS: "forward_seconds",
    metrics.GENERATION_SECONDS: "generation_seconds",
    metrics.BASELINE_GENERATION_SECONDS: "baseline_generation_seconds",
    metrics.AUDITS: "audits",
    metrics.AUDIT_MISMATCHES: "audit_mismatches",
}
# Fields that are lists; the label is the index
_INDEXED_COUNTERS = {
    metrics.SPEC_NUM_ACCEPTED_TOKENS_PER_POS: "accepted_per_position",
    metrics.VERIFIED_DRAFT_LENGTH: "verified_draft_length",
}
# Fields of DraftStats
_DRAFT_COUNTERS = {
    metrics.DRAFTS_BY_DRAFT: "drafts",
    metrics.DRAFT_TOKENS_BY_DRAFT: "draft_tokens",
    metrics.ACCEPTED_TOKENS_BY_DRAFT: "accepted_tokens",
    metrics.OWN_DRAFT_TOKENS_BY_DRAFT: "own_draft_tokens",
    metrics.OWN_ACCEPTED_TOKENS_BY_DRAFT: "own_accepted_tokens",
}


_KINDS: dict[str, Any] = {"counter": Counter, "gauge": Gauge, "histogram": Histogram}


class Metrics:
    """One registry for one served model, whose name is the label that vLLM's dashboards select on."""

    def __init__(self, model_name: str) -> None:
        # each counter would bring a second series that nobody reads
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._model = model_name
        self._stats: EngineStats | None = None
        self._collectors: dict[metrics.Metric, Any] = {}
        for metric in metrics.METRICS:
            options = {"buckets": metric.buckets} if metric.buckets else {}
            collector = _KINDS[metric.kind](
                metric.name, metric.help, metric.labels, registry=self._registry, **options
            )
            alone = metric.initialized and metric.labels == (metrics.MODEL_LABEL,)
            self._collectors[metric] = collector.labels(model_name) if alone else collector

    def _series(self, metric: metrics.Metric, *labels: str) -> Any:
        return self._collectors[metric].labels(self._model, *labels)

    def update(self, stats: EngineStats) -> None:
        """Note the state after a step."""
        counted, self._stats = self._stats or EngineStats(), stats
        tokens = stats.generated_tokens - counted.generated_tokens
        tokens += stats.begun_prompt_tokens - counted.begun_prompt_tokens
        if tokens:  # else nothing was computed, or a part of a prompt
            self.observe(metrics.ITERATION_TOKENS, tokens)

    def _export_stats(self, stats: EngineStats) -> None:
        """A draft that is no longer in use leaves no series."""
        for metric, name in _COUNTERS.items():
            _set_counter(self._collectors[metric], getattr(stats, name))
        for metric, name in _INDEXED_COUNTERS.items():
            for index, count in enumerate(getattr(stats, name)):
                _set_counter(self._series(metric, str(index)), count)
        for metric in (metrics.DRAFT_INFO, *_DRAFT_COUNTERS):
            self._collectors[metric].clear()
        for draft in stats.by_draft if stats.by_draft != EngineStats().by_draft else ():
            for metric, name in _DRAFT_COUNTERS.items():
                _set_counter(self._series(metric, draft.name), getattr(draft, name))
            if draft.version:
                self._series(metrics.DRAFT_INFO, draft.name, draft.version).set(1)
        self._series(metrics.DRAFT_ERROR).set(1 if stats.draft_error else 0)
        if stats.speedup is not None:
            self._series(metrics.SPEEDUP).set(stats.speedup)

    def set_capture(self, outcomes: Mapping[str, int], size: int, problem: str) -> None:
        """Set the metrics of captured prompts; never called without a capture."""
        for outcome, count in outcomes.items():
            _set_counter(self._series(metrics.CAPTURE_PROMPTS, outcome), count)
        self._series(metrics.CAPTURE_BYTES).set(size)
        self._series(metrics.CAPTURE_ERROR).set(1 if problem else 0)

    def set_load(self, load: load.Load, silent_seconds: float) -> None:
        """Set the gauges; never called before the engine is ready."""
        self._collectors[metrics.NUM_REQUESTS_RUNNING].set(load.running_requests)
        self._collectors[metrics.NUM_REQUESTS_WAITING].set(load.waiting_requests)
        self._collectors[metrics.KV_CACHE_USAGE].set(load.kv_cache_usage)
        self._series(metrics.HEARTBEAT_AGE).set(silent_seconds)
        self._collectors[metrics.GUARANTEE_INFO].labels(load.guarantee).set(1)

    def observe(self, histogram: metrics.Metric, value: float) -> None:
        """Observe one value."""
        self._collectors[histogram].observe(value)

    def observe_finish(
        self,
        reason: str,
        num_prompt_tokens: int,
        num_tokens: int,
        first_token_seconds: float | None,
        total_seconds: float,
    ) -> None:
        """Observe the end of an answer; `first_token_seconds` is None when no token ever came."""
        self._series(metrics.REQUEST_SUCCESS, reason).inc()
        if reason not in COMPLETE:  # what was cut measures neither the engine nor the demand
            return
        self.observe(metrics.REQUEST_PROMPT_TOKENS, num_prompt_tokens)
        self.observe(metrics.REQUEST_GENERATION_TOKENS, num_tokens)
        self.observe(metrics.E2E_REQUEST_LATENCY, total_seconds)
        if first_token_seconds is not None and num_tokens > 1:
            seconds = (total_seconds - first_token_seconds) / (num_tokens - 1)
            self.observe(metrics.REQUEST_TIME_PER_OUTPUT_TOKEN, seconds)

    def render(self) -> bytes:
        """Return the text of `/metrics`."""
        if self._stats is not None:
            self._export_stats(self._stats)
        return generate_latest(self._registry)


def _set_counter(series: Counter, count: float) -> None:
    """The engine counts by itself."""
    series.reset()
    series.inc(count)
