"""Prometheus metrics under the names of the contract. Gauges and engine counters follow `EngineStats`;
latencies are the server's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import zip_longest

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

# Seconds. Wide: the same names serve a CPU node and a large GPU.
_FIRST_TOKEN = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160)
_PER_TOKEN = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2.5, 5)
_TOKENS = tuple(float(1 << power) for power in range(18))
COMPLETE = ("stop", "length")  # reasons for which a whole answer ends
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
        self._running = self._gauge(metrics.NUM_REQUESTS_RUNNING, "requests decoded together now")
        self._waiting = self._gauge(metrics.NUM_REQUESTS_WAITING, "requests queued now")
        self._kv_usage = self._gauge(metrics.KV_CACHE_USAGE, "used share of the KV cache, 0 to 1")
        self._counters = {
            "begun_prompt_tokens": self._counter(
                metrics.PROMPT_TOKENS,
                "tokens of prompts, cached ones too, counted with their first answer token",
            ),
            "generated_tokens": self._counter(metrics.GENERATION_TOKENS, "tokens generated"),
            "preemptions": self._counter(metrics.NUM_PREEMPTIONS, "requests put back for want of KV cache"),
            "drafts": self._counter(metrics.SPEC_NUM_DRAFTS, "verification passes with a drafted token"),
            "draft_tokens": self._counter(metrics.SPEC_NUM_DRAFT_TOKENS, "tokens drafted"),
            "accepted_tokens": self._counter(metrics.SPEC_NUM_ACCEPTED_TOKENS, "drafted tokens accepted"),
            "prefix_cache_queries": self._counter(
                metrics.PREFIX_CACHE_QUERIES, "prompt tokens looked up in the prefix cache"
            ),
            "prefix_cache_hits": self._counter(
                metrics.PREFIX_CACHE_HITS, "prompt tokens found in the prefix cache"
            ),
            "step_seconds": self._counter(metrics.STEP_SECONDS, "seconds of the engine's steps"),
            "forward_seconds": self._counter(metrics.FORWARD_SECONDS, "seconds of them in the model"),
            "answering_seconds": self._counter(
                metrics.ANSWERING_SECONDS, "seconds of steps that brought answers tokens"
            ),
            "plain_answering_seconds": self._counter(
                metrics.PLAIN_ANSWERING_SECONDS, "seconds that as many tokens would take without drafts"
            ),
            "audits": self._counter(metrics.AUDITS, "answers replayed without speculation"),
            "audit_mismatches": self._counter(
                metrics.AUDIT_MISMATCHES, "replayed answers that came out otherwise"
            ),
        }
        self._by_place = {
            "accepted_per_position": self._labelled(
                metrics.SPEC_NUM_ACCEPTED_TOKENS_PER_POS,
                "drafted tokens accepted at a position",
                metrics.POSITION_LABEL,
            ),
            "chosen_drafts": self._labelled(
                metrics.CHOSEN_DRAFTS,
                "how often so many drafts were verified for an answer in a step",
                metrics.DRAFTS_LABEL,
            ),
        }
        self._by_draft = {
            "drafts": self._labelled(
                metrics.DRAFTS_BY_DRAFT,
                "verification passes with a drafted token, of requests by the draft they have",
                metrics.DRAFT_LABEL,
            ),
            "draft_tokens": self._labelled(
                metrics.DRAFT_TOKENS_BY_DRAFT, "tokens drafted for them", metrics.DRAFT_LABEL
            ),
            "accepted_tokens": self._labelled(
                metrics.ACCEPTED_TOKENS_BY_DRAFT, "of these, tokens accepted", metrics.DRAFT_LABEL
            ),
            "own_draft_tokens": self._labelled(
                metrics.OWN_DRAFT_TOKENS_BY_DRAFT,
                "tokens drafted for them by the draft's own layers",
                metrics.DRAFT_LABEL,
            ),
            "own_accepted_tokens": self._labelled(
                metrics.OWN_ACCEPTED_TOKENS_BY_DRAFT, "of these, tokens accepted", metrics.DRAFT_LABEL
            ),
        }
        self._success = self._labelled(
            metrics.REQUEST_SUCCESS, "answers finished, by reason", metrics.FINISHED_REASON_LABEL
        )
        self._first_token = self._histogram(
            metrics.TIME_TO_FIRST_TOKEN, "seconds to the first token", _FIRST_TOKEN
        )
        self._inter_token = self._histogram(
            metrics.INTER_TOKEN_LATENCY, "seconds between steps of an answer", _PER_TOKEN
        )
        self._per_token = self._histogram(
            metrics.REQUEST_TIME_PER_OUTPUT_TOKEN,
            "seconds per token after the first, of a complete answer",
            _PER_TOKEN,
        )
        self._whole = self._histogram(metrics.E2E_REQUEST_LATENCY, "seconds of a complete answer", _WHOLE)
        self._queue = self._histogram(
            metrics.REQUEST_QUEUE_TIME, "seconds until the engine took a request in", _WHOLE
        )
        self._prompt = self._histogram(
            metrics.REQUEST_PROMPT_TOKENS, "tokens of a complete answer's prompt", _TOKENS
        )
        self._answer = self._histogram(
            metrics.REQUEST_GENERATION_TOKENS, "tokens of a complete answer", _TOKENS
        )
        self._iteration = self._histogram(
            metrics.ITERATION_TOKENS,
            "tokens of an engine step: of answers, and of prompts that it finished",
            _TOKENS,
        )
        self._speedup = self._info(metrics.SPEEDUP, "tokens per second lately over those without drafts")
        self._heartbeat_age = self._info(
            metrics.HEARTBEAT_AGE, "seconds since the engine last finished a step or a rest"
        )
        self._draft_problem = self._info(
            metrics.DRAFT_PROBLEM, "1 while drafts are not what was asked for, or there are none for a fault"
        )
        self._captures = self._labelled(
            metrics.CAPTURE_PROMPTS,
            "prompts by whether they were kept to learn from",
            metrics.OUTCOME_LABEL,
        )
        self._captured: dict[str, int] = {}
        self._capture_bytes = self._info(
            metrics.CAPTURE_BYTES, "bytes of the folder that prompts are kept in"
        )
        self._capture_problem = self._info(
            metrics.CAPTURE_PROBLEM, "1 while prompts are not kept as was asked for"
        )
        self._draft_info = self._info(
            metrics.DRAFT_INFO,
            "the version of the draft weights in use",
            metrics.DRAFT_LABEL,
            metrics.VERSION_LABEL,
        )

    def follow(self, stats: EngineStats) -> None:
        """Raise the engine's counters by what happened since the last call."""
        for name, counter in self._counters.items():
            counter.inc(getattr(stats, name) - getattr(self._seen, name))
        for name, by_place in self._by_place.items():
            counts = zip_longest(getattr(stats, name), getattr(self._seen, name), fillvalue=0)
            for place, (now, before) in enumerate(counts):
                by_place.labels(self._model, str(place)).inc(now - before)
        brought = stats.generated_tokens - self._seen.generated_tokens
        brought += stats.begun_prompt_tokens - self._seen.begun_prompt_tokens
        if brought:  # else nothing was computed, or a part of a prompt
            self._iteration.observe(brought)
        if stats.by_draft != self._seen.by_draft:
            self._follow_drafts(stats.by_draft)
        self._draft_problem.labels(self._model).set(1 if stats.draft_problem else 0)
        if stats.speedup is not None:
            self._speedup.labels(self._model).set(stats.speedup)
        self._seen = stats

    def _follow_drafts(self, drafts: Iterable[DraftStats]) -> None:
        """A draft that is in use no more leaves no series behind; of its name's next use others begin."""
        before = {draft.name: draft for draft in self._seen.by_draft}
        self._draft_info.clear()
        for draft in drafts:
            seen = before.pop(draft.name, DraftStats(draft.name))
            for name, counter in self._by_draft.items():
                counter.labels(self._model, draft.name).inc(getattr(draft, name) - getattr(seen, name))
            if draft.version:
                self._draft_info.labels(self._model, draft.name, draft.version).set(1)
        for name in before:
            for counter in self._by_draft.values():
                counter.remove(self._model, name)

    def follow_capture(self, outcomes: Mapping[str, int], size: int, problem: str) -> None:
        """Raise and set what is told of captured prompts; never called where none are wanted."""
        for outcome, count in outcomes.items():
            self._captures.labels(self._model, outcome).inc(count - self._captured.get(outcome, 0))
        self._captured = dict(outcomes)
        self._capture_bytes.labels(self._model).set(size)
        self._capture_problem.labels(self._model).set(1 if problem else 0)

    def observe_load(self, load: load.Load) -> None:
        """Set the gauges."""
        self._running.set(load.running_requests)
        self._waiting.set(load.waiting_requests)
        self._kv_usage.set(load.kv_cache_usage)

    def observe_heartbeat(self, age: float) -> None:
        """Set for how long the engine has been silent; never called before it is ready."""
        self._heartbeat_age.labels(self._model).set(age)

    def announce(self, guarantee: load.Guarantee) -> None:
        """Export which guarantee holds on this machine."""
        Gauge(
            metrics.GUARANTEE_INFO,
            "bytes: the same text as without speculation; law: the same distribution",
            [metrics.GUARANTEE_LABEL],
            registry=self._registry,
        ).labels(guarantee).set(1)

    def tokens(self, seconds: float, first: bool) -> None:
        """See `answers.Watch`."""
        (self._first_token if first else self._inter_token).observe(seconds)

    def queued(self, seconds: float) -> None:
        """See `answers.Watch`."""
        self._queue.observe(seconds)

    def finished(self, reason: str, prompt: int, tokens: int, to_first: float | None, total: float) -> None:
        """See `answers.Watch`."""
        self._success.labels(self._model, reason).inc()
        if reason not in COMPLETE:  # what was cut is no measure of the engine, nor of what is asked of it
            return
        self._prompt.observe(prompt)
        self._answer.observe(tokens)
        self._whole.observe(total)
        if to_first is not None and tokens > 1:
            self._per_token.observe((total - to_first) / (tokens - 1))

    def page(self) -> bytes:
        """The text of `/metrics`."""
        return generate_latest(self._registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, [metrics.MODEL_LABEL], registry=self._registry).labels(self._model)

    def _info(self, name: str, text: str, *labels: str) -> Gauge:
        """A gauge that is not there until it is set."""
        return Gauge(name, text, [metrics.MODEL_LABEL, *labels], registry=self._registry)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, [metrics.MODEL_LABEL], registry=self._registry).labels(self._model)

    def _labelled(self, name: str, text: str, label: str) -> Counter:
        return Counter(name, text, [metrics.MODEL_LABEL, label], registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, [metrics.MODEL_LABEL], registry=self._registry, buckets=buckets).labels(
            self._model
        )
