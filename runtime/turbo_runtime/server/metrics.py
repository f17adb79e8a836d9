"""Prometheus metrics under the names of the contract. Gauges and engine counters follow `EngineStats`;
latencies are the server's.
"""

from __future__ import annotations

from itertools import zip_longest

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

from turbo_runtime import contract
from turbo_runtime.engine.request import EngineStats

# Seconds. Wide: the same names serve a CPU node and a large GPU.
_FIRST_TOKEN = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160)
_PER_TOKEN = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2.5, 5)
_WHOLE = (0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 240, 480)


class Metrics:
    """One registry for one served model; vLLM's names carry its label `model_name`, on which its dashboards
    select.
    """

    def __init__(self, model_name: str) -> None:
        # each counter would bring a second series that nobody reads
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._model = model_name
        self._seen = EngineStats()
        self._running = self._gauge(contract.NUM_REQUESTS_RUNNING, "requests decoded together now")
        self._waiting = self._gauge(contract.NUM_REQUESTS_WAITING, "requests queued now")
        self._kv_usage = self._gauge(contract.KV_CACHE_USAGE, "used share of the KV cache, 0 to 1")
        self._counters = {
            "prompt_tokens": self._counter(contract.PROMPT_TOKENS, "prompt tokens computed"),
            "generated_tokens": self._counter(contract.GENERATION_TOKENS, "tokens generated"),
            "preemptions": self._counter(contract.NUM_PREEMPTIONS, "requests put back for want of KV cache"),
            "drafts": self._counter(contract.SPEC_NUM_DRAFTS, "verification passes with a drafted token"),
            "draft_tokens": self._counter(contract.SPEC_NUM_DRAFT_TOKENS, "tokens drafted"),
            "accepted_tokens": self._counter(contract.SPEC_NUM_ACCEPTED_TOKENS, "drafted tokens accepted"),
        }
        self._accepted_at = self._labelled(
            contract.SPEC_NUM_ACCEPTED_TOKENS_PER_POS,
            "drafted tokens accepted at a position",
            contract.POSITION_LABEL,
        )
        self._success = self._labelled(
            contract.REQUEST_SUCCESS, "answers finished, by reason", contract.FINISHED_REASON_LABEL
        )
        self._first_token = self._histogram(contract.TIME_TO_FIRST_TOKEN, "to the first token", _FIRST_TOKEN)
        self._inter_token = self._histogram(
            contract.INTER_TOKEN_LATENCY, "between steps of an answer", _PER_TOKEN
        )
        self._per_token = self._histogram(
            contract.REQUEST_TIME_PER_OUTPUT_TOKEN, "per token after the first, of a whole answer", _PER_TOKEN
        )
        self._whole = self._histogram(contract.E2E_REQUEST_LATENCY, "of a whole answer", _WHOLE)

    def follow(self, stats: EngineStats) -> None:
        """Raise the engine's counters by what happened since the last call."""
        for name, counter in self._counters.items():
            counter.inc(getattr(stats, name) - getattr(self._seen, name))
        positions = zip_longest(stats.accepted_per_position, self._seen.accepted_per_position, fillvalue=0)
        for position, (now, before) in enumerate(positions):
            self._accepted_at.labels(self._model, str(position)).inc(now - before)
        self._seen = stats

    def observe_load(self, load: contract.Load) -> None:
        """Set the gauges."""
        self._running.set(load.running_requests)
        self._waiting.set(load.waiting_requests)
        self._kv_usage.set(load.kv_cache_usage)

    def announce(self, guarantee: contract.Guarantee) -> None:
        """Export which guarantee holds on this machine."""
        Gauge(
            contract.GUARANTEE_INFO,
            "bytes: the same text as without speculation; law: the same distribution",
            [contract.GUARANTEE_LABEL],
            registry=self._registry,
        ).labels(guarantee).set(1)

    def tokens(self, seconds: float, first: bool) -> None:
        """See `answers.Watch`."""
        (self._first_token if first else self._inter_token).observe(seconds)

    def finished(self, reason: str, tokens: int, to_first: float | None, total: float) -> None:
        """See `answers.Watch`."""
        self._success.labels(self._model, reason).inc()
        self._whole.observe(total)
        if to_first is not None and tokens > 1:
            self._per_token.observe((total - to_first) / (tokens - 1))

    def page(self) -> bytes:
        """The text of `/metrics`."""
        return generate_latest(self._registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, [contract.MODEL_LABEL], registry=self._registry).labels(self._model)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, [contract.MODEL_LABEL], registry=self._registry).labels(self._model)

    def _labelled(self, name: str, text: str, label: str) -> Counter:
        return Counter(name, text, [contract.MODEL_LABEL, label], registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(
            name, f"seconds {text}", [contract.MODEL_LABEL], registry=self._registry, buckets=buckets
        ).labels(self._model)
