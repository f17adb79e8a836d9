"""The speedup by drafts, from what pods report: seconds of answering, and what as many tokens would have
taken without drafts. Pure and frozen: each look adds what pods did since the look before.

Pods of vLLM do not report the latter. There a canary is compared by what a token of a request took on its pod
and on the others, in the same time and behind the same Service.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace

from turbo_operator.snapshot import PodView
from turbo_runtime.contract.documents import Load

WINDOW_SECONDS = 600.0  # of the speedup that is shown
MIN_INCREMENTS = 4  # from which an error can be told
MIN_SECONDS = 10.0  # of answering, below which a speedup is not known


@dataclass(frozen=True, slots=True)
class GenerationStats:
    """The work of pods in a period."""

    seconds: float = 0.0  # of steps that generated tokens
    plain_seconds: float = 0.0  # that as many tokens would have taken without drafts
    audits: int = 0
    mismatches: int = 0  # of those: answers that were not the same without drafts
    decode_seconds: float = 0.0  # of vLLM's requests that have ended, from their first to their last token
    decode_tokens: int = 0  # that came in those

    @classmethod
    def of(cls, load: Load) -> GenerationStats | None:
        """Read what a pod did since its start; None of a runtime that does not report it."""
        seconds, plain_seconds = load.generation_seconds, load.baseline_generation_seconds
        decoded = load.decode_seconds or 0.0, load.decode_tokens or 0
        if seconds is None or plain_seconds is None:
            return None if load.decode_seconds is None else cls(0.0, 0.0, 0, 0, *decoded)
        return cls(seconds, plain_seconds, load.audits or 0, load.audit_mismatches or 0, *decoded)

    def __add__(self, other: GenerationStats) -> GenerationStats:
        return GenerationStats(*map(operator.add, astuple(self), astuple(other)))

    def since(self, before: GenerationStats | None) -> GenerationStats:
        """Return what came after `before`; all of it where the process has started anew meanwhile."""
        if before is None or self.decode_tokens < before.decode_tokens or self.audits < before.audits:
            return self
        if self.seconds < before.seconds:
            if not self.decode_tokens:
                return self
            before = replace(before, seconds=self.seconds, plain_seconds=self.plain_seconds)  # an estimate
        return GenerationStats(*map(operator.sub, astuple(self), astuple(before)))

    @property
    def speedup(self) -> float | None:
        """The speed over no drafts; None where too little was answered to tell."""
        return self.plain_seconds / self.seconds if self.seconds >= MIN_SECONDS else None

    @property
    def seconds_per_token(self) -> float | None:
        """What a token of a request of vLLM's took; None where too little was answered to tell."""
        known = self.decode_tokens > 0 and self.decode_seconds >= MIN_SECONDS
        return self.decode_seconds / self.decode_tokens if known else None


@dataclass(frozen=True, slots=True)
class RatioStats:
    """Sums over increments of two counters, from which the error of their ratio follows.

    The ratio estimator of survey sampling: W. G. Cochran, Sampling Techniques, section 6.4.
    """

    count: int = 0
    upper: float = 0.0
    lower: float = 0.0
    upper_squares: float = 0.0
    lower_squares: float = 0.0
    products: float = 0.0

    def add(self, upper: float, lower: float) -> RatioStats:
        """Return these with one more increment; with none where nothing was done in it."""
        if lower <= 0.0:
            return self
        new = RatioStats(1, upper, lower, upper * upper, lower * lower, upper * lower)
        return RatioStats(*map(operator.add, astuple(self), astuple(new)))

    @property
    def relative_error(self) -> float:
        """The standard error of the ratio over the ratio; 0 where too few increments tell of one."""
        if self.count < MIN_INCREMENTS or self.upper <= 0.0:
            return 0.0
        ratio = self.upper / self.lower
        residuals = self.upper_squares - 2.0 * ratio * self.products + ratio * ratio * self.lower_squares
        return math.sqrt(max(0.0, residuals) * self.count / (self.count - 1)) / self.upper


@dataclass(frozen=True, slots=True)
class CanaryRun:
    """A new draft on a variant of its own, in addition to what serves."""

    variant: str  # plan hash of its pods, which says what they load
    since: float  # epoch seconds, when a node had its pod; until then, the last look
    began: float | None = None  # when a pod was first seen to use it
    # By its pods before anything counts, since their memory begins empty.
    warmup: GenerationStats = GenerationStats()
    canary: GenerationStats = GenerationStats()  # by its pods, since they were warm
    baseline: GenerationStats = GenerationStats()  # by all others, since then
    by_token: bool = False  # whether pods are compared by what a token took
    # What `canary` and `baseline` are the sums of.
    canary_ratio: RatioStats = RatioStats()
    baseline_ratio: RatioStats = RatioStats()

    def seconds(self, stats: GenerationStats) -> float:
        """Return the seconds of answering that the comparison rests on."""
        return stats.decode_seconds if self.by_token else stats.seconds

    def with_increments(self, canary: GenerationStats, baseline: GenerationStats) -> CanaryRun:
        """Return the run with what its pods and all others did since the look before."""

        def ratio(stats: RatioStats, new: GenerationStats) -> RatioStats:
            done = (
                (new.decode_tokens, new.decode_seconds) if self.by_token else (new.plain_seconds, new.seconds)
            )
            return stats.add(*done)

        return replace(
            self,
            canary=self.canary + canary,
            baseline=self.baseline + baseline,
            canary_ratio=ratio(self.canary_ratio, canary),
            baseline_ratio=ratio(self.baseline_ratio, baseline),
        )

    @property
    def relative_error(self) -> float:
        """The standard error of the one speed over the other, as a share of it."""
        return math.hypot(self.canary_ratio.relative_error, self.baseline_ratio.relative_error)

    @property
    def speeds(self) -> tuple[float | None, float | None]:
        """The speed of its pods and of all others: over no drafts, or by what a token took over that of the
        others; None where too little was answered to tell.
        """
        if not self.by_token:
            return self.canary.speedup, self.baseline.speedup
        new, old = self.canary.seconds_per_token, self.baseline.seconds_per_token
        return (None, None) if new is None or old is None else (old / new, 1.0)


@dataclass(frozen=True, slots=True)
class SpeedupTracker:
    """The speedup of one deployment's pods, and of its canary run."""

    last: Mapping[str, GenerationStats] = field(default_factory=dict)  # by pod, its last report
    recent: tuple[tuple[float, GenerationStats], ...] = ()  # the increments of all pods, the latest last
    run: CanaryRun | None = None

    def update(self, pods: Sequence[PodView], now: float, warm_seconds: float) -> SpeedupTracker:
        """Add what pods have reported since the last look. What a pod did before its first report counts only
        where it has the draft of the canary, which it has had from its start.
        """
        run, last, total = self.run, {}, GenerationStats()
        canary = baseline = GenerationStats()
        for pod in pods:
            stats = GenerationStats.of(pod.load.load) if pod.load else None
            if stats is None:
                if pod.name in self.last:
                    last[pod.name] = self.last[pod.name]
                continue
            last[pod.name] = stats
            is_canary = run is not None and pod.plan_hash == run.variant
            is_new = pod.name not in self.last and not is_canary
            increment = GenerationStats() if is_new else stats.since(self.last.get(pod.name))
            total += increment
            if is_canary:
                canary += increment
            else:
                baseline += increment
        if run is not None and run.seconds(run.warmup) < warm_seconds:
            run = replace(run, warmup=run.warmup + canary)  # a wrong answer counts from the start
        elif run is not None:
            run = run.with_increments(canary, baseline)
        recent = self.recent if total == GenerationStats() else (*self.recent, (now, total))
        return SpeedupTracker(last, tuple(item for item in recent if item[0] > now - WINDOW_SECONDS), run)

    @property
    def overall(self) -> float | None:
        """The speedup of all pods over the window; None where it is not known."""
        return sum((stats for _, stats in self.recent), GenerationStats()).speedup
