"""The laws that every step of a rollout must keep, whatever it is made by. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from turbo_dev.simulated_variants import footprint
from turbo_operator.rollout import Bounds, Step, VariantState, has_taken_over


class BrokenLawError(AssertionError):
    """A step did what no step may do."""


def law(holds: bool, sentence: str) -> None:
    """Raise BrokenLawError with the sentence where a law does not hold."""
    if not holds:
        raise BrokenLawError(sentence)


@dataclass(slots=True, kw_only=True)
class Laws:
    """Judges steps by what is wanted of one TurboDeployment, and what its cluster has."""

    qualities: dict[str, tuple[str, int | None]] = field(default_factory=dict)  # accelerator, ticks to start
    nodes: dict[str, int] = field(default_factory=dict)  # accelerators that nodes have
    replicas: int = 1
    bounds: Bounds = field(default_factory=Bounds)
    over_limits: bool = False  # what served when the rollout began was above a limit that was lowered
    proven: str | None = None  # the checker's own record of who had all replicas available last

    def judge(self, states: Sequence[VariantState], step: Step) -> None:
        """What one step must keep, whatever it is made by."""
        before = {state.plan_hash: state for state in states}
        after = step.replicas
        goal = footprint(self.qualities[step.target][0]) if step.target is not None else None
        most = self.bounds.most(goal, self.replicas)
        law(step.target is None or step.fitting >= most, f"{step.fitting} are said to fit, and {most} do")
        answered = sum(state.answering for state in states)
        stays = sum(min(state.answering, after.get(name, 0)) for name, state in before.items())
        asked = self.replicas
        if self.over_limits and step.target is not None:  # more may not serve
            one = footprint(self.qualities[step.target][0])
            asked = max(step.fitting, replace(self.bounds, stock={}, by_type={}).most(one, asked))
        least = asked - self._may_miss()
        law(stays >= min(answered, least), f"{answered} answered, {stays} stay, and {least} must")
        grows = any(count > (before[name].replicas if name in before else 0) for name, count in after.items())
        if grows:
            surge = 1 if self.bounds.max_surge is None else self.bounds.max_surge
            now = {name: state.replicas for name, state in before.items()}
            total = 0
            for variant in step.variants:  # one is written after the other
                now[variant.plan_hash] = variant.replicas
                total = max(total, sum(now.values()))
            total = total if total > sum(state.replicas for state in states) else 0
            law(total <= self.replicas + surge, f"{total} replicas of {self.replicas} wanted, surge {surge}")
            self._within_bounds(before, step)
        keeper = self.proven
        if keeper in before and step.target != keeper:
            ready = has_taken_over(states, step.target, step.fitting)
            law(keeper in after or ready, f"{keeper} served last and is removed")

    def _within_bounds(self, before: Mapping[str, VariantState], step: Step) -> None:
        """Accelerators and money of all pods that there are or will be. Above a limit that was lowered
        nothing grows but what takes over.
        """
        after, grown = step.replicas, []
        took_over = all(
            count <= (before[name].replicas if name in before else 0)
            for name, count in after.items()
            if name != step.target
        )
        bounds = self.bounds
        if self.over_limits and took_over:
            bounds = replace(bounds, max_total=None, max_per_hour=None)
        for name in {*before, *after}:
            state = before.get(name) or VariantState(name, exists=False)
            grown.append(
                (footprint(self.qualities[name][0]), max(state.held, after.get(name, 0) + state.ending))
            )
        was = bounds.exceeded([(footprint(self.qualities[n][0]), s.held) for n, s in before.items()])
        if was is None or (self.over_limits and not took_over):
            broken = bounds.exceeded(grown)
            law(broken is None, f"what is asked for and what ends come to more than is allowed: {broken}")

    def has_all(self, state: VariantState) -> bool:
        """Whether a variant has all its replicas available, or as many as fit."""
        fitting = max(1, self.bounds.most(state.footprint, self.replicas))
        return self.replicas > 0 and state.available >= fitting

    def _may_miss(self) -> int:
        if self.bounds.max_unavailable is not None:
            return self.bounds.max_unavailable
        unlimited = self.bounds.max_total is None and self.bounds.max_per_hour is None
        if unlimited and min(self.nodes.values()) >= 40 and self.bounds.max_surge != 0:
            return 0
        return 1 if self.replicas > 1 else 0
