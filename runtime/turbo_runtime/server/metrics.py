"""Export of the contract's metrics to Prometheus."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest
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
from turbo_runtime.messages import DraftStats, EngineStats

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


class Metrics:
    """One registry for one served model, whose name is the label that vLLM's dashboards select on."""

    def __init__(self, model_name: str) -> None:
        # each counter would bring a second series that nobody reads
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._model = model_name
        self._stats = EngineStats()  # that the counters have counted
        self._capture_outcomes: Mapping[str, int] = {}
        self._collectors: dict[metrics.Metric, Any] = {}
        for metric in metrics.METRICS:
            collector = _build_collector(metric, self._registry)
            alone = metric.initialized and metric.labels == (metrics.MODEL_LABEL,)
            self._collectors[metric] = collector.labels(model_name) if alone else collector

    def _series(self, metric: metrics.Metric, *labels: str) -> Any:
        return self._collectors[metric].labels(self._model, *labels)

    def update(self, stats: EngineStats) -> None:
        """Raise the engine's counters by what happened after the last call."""
        counted, self._stats = self._stats, stats
        for metric, name in _COUNTERS.items():
            self._collectors[metric].inc(getattr(stats, name) - getattr(counted, name))
        for metric, name in _INDEXED_COUNTERS.items():
            counts = zip_longest(getattr(stats, name), getattr(counted, name), fillvalue=0)
            for index, (now, before) in enumerate(counts):
                self._series(metric, str(index)).inc(now - before)
        tokens = stats.generated_tokens - counted.generated_tokens
        tokens += stats.begun_prompt_tokens - counted.begun_prompt_tokens
        if tokens:  # else nothing was computed, or a part of a prompt
            self._collectors[metrics.ITERATION_TOKENS].observe(tokens)
        if stats.by_draft != counted.by_draft:
            self._update_drafts(stats, counted)
        self._series(metrics.DRAFT_ERROR).set(1 if stats.draft_error else 0)
        if stats.speedup is not None:
            self._series(metrics.SPEEDUP).set(stats.speedup)

    def _update_drafts(self, stats: EngineStats, counted: EngineStats) -> None:
        """A draft that is no longer in use leaves no series; if its name comes back, new ones begin."""
        before = {draft.name: draft for draft in counted.by_draft}
        self._collectors[metrics.DRAFT_INFO].clear()
        for draft in stats.by_draft:
            last = before.pop(draft.name, DraftStats(draft.name))
            for metric, name in _DRAFT_COUNTERS.items():
                self._series(metric, draft.name).inc(getattr(draft, name) - getattr(last, name))
            if draft.version:
                self._series(metrics.DRAFT_INFO, draft.name, draft.version).set(1)
        for name in before:
            for metric in _DRAFT_COUNTERS:
                self._collectors[metric].remove(self._model, name)

    def update_capture(self, outcomes: Mapping[str, int], size: int, problem: str) -> None:
        """Update the metrics of captured prompts; never called without a capture."""
        for outcome, count in outcomes.items():
            counted = self._capture_outcomes.get(outcome, 0)
            self._series(metrics.CAPTURE_PROMPTS, outcome).inc(count - counted)
        self._capture_outcomes = dict(outcomes)
        self._series(metrics.CAPTURE_BYTES).set(size)
        self._series(metrics.CAPTURE_ERROR).set(1 if problem else 0)

    def set_load(self, load: load.Load, silent_seconds: float) -> None:
        """Set the gauges; never called before the engine is ready."""
        self._collectors[metrics.NUM_REQUESTS_RUNNING].set(load.running_requests)
        self._collectors[metrics.NUM_REQUESTS_WAITING].set(load.waiting_requests)
        self._collectors[metrics.KV_CACHE_USAGE].set(load.kv_cache_usage)
        self._series(metrics.HEARTBEAT_AGE).set(silent_seconds)

    def set_guarantee(self, guarantee: load.Guarantee) -> None:
        """Export which guarantee holds on this machine."""
        self._collectors[metrics.GUARANTEE_INFO].labels(guarantee).set(1)

    def observe_queue_time(self, seconds: float) -> None:
        """Observe that the engine took a request in after so long."""
        self._collectors[metrics.REQUEST_QUEUE_TIME].observe(seconds)

    def observe_tokens(self, seconds: float, *, first: bool) -> None:
        """Observe a step's tokens, `seconds` after the request (`first`) or after the step before."""
        self._collectors[metrics.TIME_TO_FIRST_TOKEN if first else metrics.INTER_TOKEN_LATENCY].observe(
            seconds
        )

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
        self._collectors[metrics.REQUEST_PROMPT_TOKENS].observe(num_prompt_tokens)
        self._collectors[metrics.REQUEST_GENERATION_TOKENS].observe(num_tokens)
        self._collectors[metrics.E2E_REQUEST_LATENCY].observe(total_seconds)
        if first_token_seconds is not None and num_tokens > 1:
            seconds = (total_seconds - first_token_seconds) / (num_tokens - 1)
            self._collectors[metrics.REQUEST_TIME_PER_OUTPUT_TOKEN].observe(seconds)

    def render(self) -> bytes:
        """Return the text of `/metrics`."""
        return generate_latest(self._registry)


def _build_collector(metric: metrics.Metric, registry: CollectorRegistry) -> Any:
    if metric.kind == "histogram":
        return Histogram(metric.name, metric.help, metric.labels, registry=registry, buckets=metric.buckets)
    collector_class = Counter if metric.kind == "counter" else Gauge
    return collector_class(metric.name, metric.help, metric.labels, registry=registry)
