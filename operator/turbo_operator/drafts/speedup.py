"""The speedup by drafts, from what pods report: seconds of answering, and what as many tokens would have
taken without drafts. Pure and frozen: each look adds what pods did since the look before.

Pods of vLLM do not report the latter. There a canary is compared by what a token of a request took on its pod
and on the others, in the same time and behind the same Service.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

from turbo_operator.snapshot import PodView
from turbo_runtime.contract.documents import Load

WINDOW_SECONDS = 600.0  # of the speedup that is shown
MIN_BLOCKS = 8  # from which an error can be told
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
        return GenerationStats(*map(operator.add, _counts(self), _counts(other)))

    def since(self, before: GenerationStats | None) -> GenerationStats:
        """Return what came after `before`; all of it where the process has started anew meanwhile."""
        if before is None or self.decode_tokens < before.decode_tokens or self.audits < before.audits:
            return self
        if self.seconds < before.seconds:
            if not self.decode_tokens:
                return self
            before = replace(before, seconds=self.seconds, plain_seconds=self.plain_seconds)  # an estimate
        return GenerationStats(*map(operator.sub, _counts(self), _counts(before)))

    @property
    def speedup(self) -> float | None:
        """The speed over no drafts; None where too little was answered to tell."""
        return self.plain_seconds / self.seconds if self.seconds >= MIN_SECONDS else None

    @property
    def seconds_per_token(self) -> float | None:
        """What a token of a request of vLLM's took; None where too little was answered to tell."""
        known = self.decode_tokens > 0 and self.decode_seconds >= MIN_SECONDS
        return self.decode_seconds / self.decode_tokens if known else None


_counts = operator.attrgetter(*(each.name for each in fields(GenerationStats)))


@dataclass(frozen=True, slots=True)
class Block:
    """What the pods of a canary and all others did in the same stretch of time."""

    since: float = 0.0  # epoch seconds
    canary: GenerationStats = GenerationStats()
    baseline: GenerationStats = GenerationStats()

    def __add__(self, other: Block) -> Block:
        return Block(self.since, self.canary + other.canary, self.baseline + other.baseline)


@dataclass(frozen=True, slots=True)
class CanaryRun:
    """A new draft on a variant of its own, in addition to what serves.

    Looks a few seconds apart are no independent samples, since what slows a machine lasts. They are summed in
    blocks, from MIN_BLOCKS to twice as many: two become one as the run goes on, so that blocks outlast any
    such time (batch means).
    """

    variant: str  # plan hash of its pods, which says what they load
    since: float  # epoch seconds, when a node had its pod; until then, the last look
    began: float | None = None  # when a pod was first seen to use it
    # By its pods before anything counts, since their memory begins empty.
    warmup: GenerationStats = GenerationStats()
    by_token: bool = False  # whether pods are compared by what a token took
    blocks: tuple[Block, ...] = ()  # since its pods were warm
    current: Block = Block()  # that is not whole yet
    block_seconds: float = 0.0  # that a block takes at least

    @property
    def canary(self) -> GenerationStats:
        """What its pods have done since they were warm."""
        return sum(self.blocks, self.current).canary

    @property
    def baseline(self) -> GenerationStats:
        """What all others have done since then."""
        return sum(self.blocks, self.current).baseline

    @property
    def whole(self) -> Block:
        """What all have done in whole blocks, by which they are compared."""
        return sum(self.blocks, Block())

    def seconds(self, stats: GenerationStats) -> float:
        """Return the seconds of answering that the comparison rests on."""
        return stats.decode_seconds if self.by_token else stats.seconds

    def is_warm(self, now: float, seconds: float) -> bool:
        """Whether its pods have answered for as long, by the clock too: what requests at the same time take
        adds up faster.
        """
        return self.began is not None and min(now - self.began, self.seconds(self.warmup)) >= seconds

    def with_increments(self, canary: GenerationStats, baseline: GenerationStats, now: float) -> CanaryRun:
        """Return the run with what its pods and all others did since the look before."""
        block = self.current + Block(now, canary, baseline)
        is_known = min(*self._counters(block.canary), *self._counters(block.baseline)) > 0.0
        if now - block.since < self.block_seconds or not is_known:
            return replace(self, current=block)
        blocks, seconds = (*self.blocks, block), self.block_seconds
        if len(blocks) == 2 * MIN_BLOCKS:
            seconds = (now - blocks[0].since) / MIN_BLOCKS
            blocks = tuple(map(operator.add, blocks[::2], blocks[1::2]))
        return replace(self, blocks=blocks, current=Block(now), block_seconds=seconds)

    def _counters(self, stats: GenerationStats) -> tuple[float, float]:
        """Return the two counters whose ratio is a speed."""
        if self.by_token:
            return stats.decode_tokens, stats.decode_seconds
        return stats.plain_seconds, stats.seconds

    @property
    def relative_error(self) -> float:
        """The standard error of the one speed over the other, as a share of it; inf of too few blocks.

        The ratio estimator of survey sampling (W. G. Cochran, Sampling Techniques, section 6.4) of both at
        once, so that what slows the pods of either alike is no error.
        """
        if (count := len(self.blocks)) < MIN_BLOCKS:
            return math.inf
        whole = self.whole

        def residual(part: GenerationStats, total: GenerationStats) -> float:
            (upper, lower), (all_upper, all_lower) = self._counters(part), self._counters(total)
            return upper / all_upper - lower / all_lower

        residuals = [
            residual(block.canary, whole.canary) - residual(block.baseline, whole.baseline)
            for block in self.blocks
        ]
        return math.hypot(*residuals) * math.sqrt(count / (count - 1))

    @property
    def speeds(self) -> tuple[float | None, float | None]:
        """The speed of its pods and of all others in whole blocks: over no drafts, or by what a token took
        over that of the others; None where too little was answered to tell.
        """
        canary, baseline = self.whole.canary, self.whole.baseline
        if not self.by_token:
            return canary.speedup, baseline.speedup
        new, old = canary.seconds_per_token, baseline.seconds_per_token
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
        if run is not None and run.is_warm(now, warm_seconds):
            run = run.with_increments(canary, baseline, now)
        elif run is not None:  # a wrong answer counts from the start
            run = replace(run, warmup=run.warmup + canary, current=Block(now))
        recent = self.recent if total == GenerationStats() else (*self.recent, (now, total))
        return SpeedupTracker(last, tuple(item for item in recent if item[0] > now - WINDOW_SECONDS), run)

    @property
    def overall(self) -> float | None:
        """The speedup of all pods over the window; None where it is not known."""
        return sum((stats for _, stats in self.recent), GenerationStats()).speedup
