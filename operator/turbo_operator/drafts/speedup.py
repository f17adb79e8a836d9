"""What drafts gain, from what pods say they did: seconds of answering, and what as many tokens would have
taken without drafts. Pure and frozen: each look adds what pods did since the look before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from turbo_operator.snapshot import PodView
from turbo_runtime.contract.load import Load

WINDOW_SECONDS = 600.0  # of the gain that is shown
LEAST_SECONDS = 10.0  # of answering, below which a gain is not known


@dataclass(frozen=True, slots=True)
class GenerationStats:
    """What pods did in a while."""

    seconds: float = 0.0  # of steps that brought answers tokens
    plain_seconds: float = 0.0  # that as many tokens would have taken without drafts
    audits: int = 0
    mismatches: int = 0  # of those: answers that were not the same without drafts

    @classmethod
    def of(cls, load: Load) -> GenerationStats | None:
        """Since the pod's start; None of a runtime that does not tell."""
        if load.answering_seconds is None or load.plain_answering_seconds is None:
            return None
        return cls(
            load.answering_seconds,
            load.plain_answering_seconds,
            load.audits or 0,
            load.audit_mismatches or 0,
        )

    def __add__(self, other: GenerationStats) -> GenerationStats:
        return GenerationStats(
            self.seconds + other.seconds,
            self.plain_seconds + other.plain_seconds,
            self.audits + other.audits,
            self.mismatches + other.mismatches,
        )

    def since(self, before: GenerationStats | None) -> GenerationStats:
        """What came after `before`; all of it where the process has started anew meanwhile."""
        if before is None or self.seconds < before.seconds or self.audits < before.audits:
            return self
        return GenerationStats(
            self.seconds - before.seconds,
            self.plain_seconds - before.plain_seconds,
            self.audits - before.audits,
            self.mismatches - before.mismatches,
        )

    @property
    def gain(self) -> float | None:
        """Speed over no drafts; None where too little was answered to tell."""
        return self.plain_seconds / self.seconds if self.seconds >= LEAST_SECONDS else None


@dataclass(frozen=True, slots=True)
class CanaryRun:
    """A new draft on a variant of its own, beside what serves."""

    variant: str  # plan hash of its pods, which says what they load
    since: float  # epoch seconds, when a node had its pod; until then, the last look
    began: float | None = None  # when a pod was first seen to use it
    warm: GenerationStats = GenerationStats()  # by its pods before anything counts: their memory begins empty
    tried: GenerationStats = GenerationStats()  # by its pods, since they were warm
    stable: GenerationStats = GenerationStats()  # by all others, since then


@dataclass(frozen=True, slots=True)
class SpeedupTracker:
    """What is known of one deployment's pods."""

    last: Mapping[str, GenerationStats] = field(default_factory=dict)  # by pod, what it said last
    recent: tuple[tuple[float, GenerationStats], ...] = ()  # the increments of all pods, the latest last
    trial: CanaryRun | None = None

    def heard(self, pods: Sequence[PodView], now: float, warm_seconds: float) -> SpeedupTracker:
        """With what pods have said since the last look. What a pod did before it was first heard counts only
        where it bears the draft on trial, which it has had from its start.
        """
        trial, last, together = self.trial, {}, GenerationStats()
        tried = stable = GenerationStats()
        for pod in pods:
            told = GenerationStats.of(pod.load.load) if pod.load else None
            if told is None:
                if pod.name in self.last:
                    last[pod.name] = self.last[pod.name]
                continue
            last[pod.name] = told
            on_trial = trial is not None and pod.plan_hash == trial.variant
            new = pod.name not in self.last and not on_trial
            more = GenerationStats() if new else told.since(self.last.get(pod.name))
            together += more
            tried, stable = (tried + more, stable) if on_trial else (tried, stable + more)
        if trial is not None:
            trial = _counted(trial, tried, stable, warm_seconds)
        recent = self.recent if together == GenerationStats() else (*self.recent, (now, together))
        return SpeedupTracker(last, tuple(each for each in recent if each[0] > now - WINDOW_SECONDS), trial)

    def trying(self, trial: CanaryRun | None) -> SpeedupTracker:
        """With another trial, or none."""
        return replace(self, trial=trial)

    @property
    def overall(self) -> float | None:
        """Of all pods over the window; None where it is not known."""
        return sum((each for _, each in self.recent), GenerationStats()).gain


def _counted(
    trial: CanaryRun, tried: GenerationStats, stable: GenerationStats, warm_seconds: float
) -> CanaryRun:
    """A wrong answer counts from the start."""
    if trial.warm.seconds < warm_seconds:
        return replace(trial, warm=trial.warm + tried)
    return replace(trial, tried=trial.tried + tried, stable=trial.stable + stable)
