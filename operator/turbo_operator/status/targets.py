"""Whether requests keep spec.targets, from the latencies that pods report. Pure and frozen.

A histogram says of a request only between which bounds its time lies. So some requests surely kept a target,
and others possibly; a target is met, or missed, where both counts say so.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from turbo_operator import api
from turbo_operator.api import TargetsMetReason
from turbo_operator.api.condition_state import ConditionState, false, true, unknown
from turbo_operator.api.requirements import Latency, Targets
from turbo_operator.snapshot import PodView, Snapshot
from turbo_operator.status.fields import FRESH_SECONDS, tokens_per_second
from turbo_runtime.contract.documents import LatencyHistogram, Load

WINDOW_SECONDS = 600.0
MIN_REQUESTS = 20  # below which nothing is said, and enough that one may miss
_ROUNDING = 1e-6  # of a bound, which is written in decimal digits


@dataclass(frozen=True, slots=True)
class LatencyCounts:
    """Requests, and of these those that surely, and that possibly, took no longer than a target."""

    requests: int = 0
    surely: int = 0
    possibly: int = 0

    @classmethod
    def of(cls, histogram: LatencyHistogram | None, target: Latency | None) -> LatencyCounts:
        """Count what a process reports; nothing where it or the target is missing."""
        if histogram is None or target is None:
            return cls()
        bound = target.max.seconds * (1 + _ROUNDING)
        buckets = list(zip(histogram.above, histogram.up_to, histogram.counts, strict=True))
        return cls(
            sum(histogram.counts),
            sum(count for _, up_to, count in buckets if up_to <= bound),
            sum(count for above, _, count in buckets if above < target.max.seconds * (1 - _ROUNDING)),
        )

    def __add__(self, other: LatencyCounts) -> LatencyCounts:
        return LatencyCounts(*map(operator.add, _counts(self), _counts(other)))

    def since(self, before: LatencyCounts) -> LatencyCounts:
        """Return what came after `before`; all of it where the process has restarted since."""
        if self.requests < before.requests:
            return self
        return LatencyCounts(*map(operator.sub, _counts(self), _counts(before)))


_counts = operator.attrgetter("requests", "surely", "possibly")
_Both = tuple[LatencyCounts, LatencyCounts]  # of the time to the first token, and per output token
_NONE: _Both = (LatencyCounts(), LatencyCounts())


@dataclass(frozen=True, slots=True)
class TargetTracker:
    """The requests of the last ten minutes, as the targets see them."""

    targets: Targets | None = None
    began: float = 0.0  # epoch seconds
    last: Mapping[str, _Both] = field(default_factory=dict)  # by pod, what it had counted
    recent: tuple[tuple[float, _Both], ...] = ()  # what came since the look before, the latest last

    def update(self, targets: Targets | None, pods: Sequence[PodView], now: float) -> TargetTracker:
        """Add what pods have reported since the last look. What one did before its first report may be old.
        Other targets count other requests, from now on.
        """
        known = self if targets == self.targets and self.began else TargetTracker(targets, now)
        if targets is None:
            return known
        last, total = {}, _NONE
        for pod in pods:
            before = known.last.get(pod.name)
            if pod.load is not None:
                counts = _counted(targets, pod.load.load)
                last[pod.name] = counts
                if before is not None:
                    total = _sum(total, (counts[0].since(before[0]), counts[1].since(before[1])))
            elif before is not None:
                last[pod.name] = before
        recent = known.recent if total == _NONE else (*known.recent, (now, total))
        kept = tuple(item for item in recent if item[0] > now - WINDOW_SECONDS)
        return TargetTracker(targets, known.began, last, kept)

    @property
    def overall(self) -> _Both:
        """What came in the whole window."""
        overall = _NONE
        for _, both in self.recent:
            overall = _sum(overall, both)
        return overall


def _counted(targets: Targets, load: Load) -> _Both:
    return (
        LatencyCounts.of(load.time_to_first_token, targets.time_to_first_token),
        LatencyCounts.of(load.time_per_output_token, targets.time_per_output_token),
    )


def _sum(one: _Both, other: _Both) -> _Both:
    return one[0] + other[0], one[1] + other[1]


def targets_met(
    td: api.TurboDeployment, observed: Snapshot, tracker: TargetTracker, now: float
) -> ConditionState | None:
    """Whether requests of the last ten minutes kept spec.targets; None without targets."""
    targets = td.spec.targets
    if targets is None or targets == Targets():
        return None
    pods = [pod for pod in observed.pods if pod.is_serving and pod.ready]
    if not pods:
        return unknown(TargetsMetReason.NO_TRAFFIC, "No pod answers.")
    found = list(_latencies(targets, pods, tracker))
    if (state := _throughput(targets, observed, pods, now)) is not None:
        found.append(state)
    missed = [state for state in found if state.status == "False"]
    if missed:
        return false(missed[0].reason, " ".join(state.message for state in missed))
    open_ones = [state for state in found if state.status == "Unknown"]
    if not open_ones:
        return true(TargetsMetReason.MET, "Requests of the last ten minutes kept spec.targets.")
    last = td.status.condition(api.ConditionType.TARGETS_MET)
    if now - tracker.began < WINDOW_SECONDS and last and last.observed_generation == td.metadata.generation:
        return ConditionState(last.status, last.reason, last.message)  # an operator that starts knows less
    return open_ones[0]


def _latencies(targets: Targets, pods: Sequence[PodView], tracker: TargetTracker) -> Iterator[ConditionState]:
    """Say of each latency that has a target whether it is kept."""
    words = (
        (targets.time_to_first_token, "time_to_first_token", "had their first token within"),
        (targets.time_per_output_token, "time_per_output_token", "took for each output token at most"),
    )
    reasons = TargetsMetReason.FIRST_TOKEN_MISSED, TargetsMetReason.OUTPUT_TOKEN_MISSED
    for (target, name, what), counts, reason in zip(words, tracker.overall, reasons, strict=True):
        if target is None:
            continue
        if all(pod.load is None or getattr(pod.load.load, name) is None for pod in pods):
            yield unknown(TargetsMetReason.METRICS_MISSING, "No pod reports how long requests take.")
            continue
        yield _latency(target, counts, reason, f"of the last ten minutes {what} {target.max}")


def _latency(target: Latency, counts: LatencyCounts, reason: TargetsMetReason, what: str) -> ConditionState:
    if not counts.requests:
        return unknown(TargetsMetReason.NO_TRAFFIC, "No request was answered in the last ten minutes.")
    needed = max(MIN_REQUESTS, -(-100 // (100 - target.percentile)))
    if counts.requests < needed:
        message = f"Fewer than {needed} requests were answered in the last ten minutes, too few to tell."
        return unknown(TargetsMetReason.INSUFFICIENT_SAMPLES, message)
    if 100 * counts.possibly < target.percentile * counts.requests:
        return false(reason, f"Fewer than {target.percentile} % of the requests {what}.")
    if 100 * counts.surely >= target.percentile * counts.requests:
        return true(TargetsMetReason.MET, f"At least {target.percentile} % of the requests {what}.")
    message = (
        f"Whether {target.percentile} % of the requests {what} is too close to tell: engines count requests "
        "in buckets of time, those of vLLM as wide as from 25ms to 50ms."
    )
    return unknown(TargetsMetReason.INCONCLUSIVE, message)


def _throughput(
    targets: Targets, observed: Snapshot, pods: Sequence[PodView], now: float
) -> ConditionState | None:
    """Say whether pods put out as much as is wanted, or all that requests need."""
    if targets.tokens_per_second is None:
        return None
    rate = tokens_per_second(observed, now)
    if rate is None:
        message = f"Not every pod has reported in the last {FRESH_SECONDS:.0f} s."
        return unknown(TargetsMetReason.METRICS_MISSING, message)
    if rate < float(targets.tokens_per_second) and all(
        pod.load is not None and pod.load.load.waiting_requests > 0 for pod in pods
    ):
        wanted = f"{targets.tokens_per_second} tokens per second"
        message = f"Requests wait in every pod, and together the pods put out fewer than {wanted}."
        return false(TargetsMetReason.THROUGHPUT_MISSED, message)
    return true(TargetsMetReason.MET, "No request waits for want of throughput.")
