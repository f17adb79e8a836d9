"""The laws that every step of a rollout must keep, whatever it is made by. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from turbo_dev.simulated_variants import footprint
from turbo_operator.rollout import Bounds, Step, VariantState, has_taken_over


@dataclass(slots=True)
class Record:
    """What a plan has been since it was made, or since another one took over."""

    available: int = 0  # replicas that answered, at most
    to_keep: int = 0  # of which as many were available as were wanted, or as any plan could have


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
    canaries: set[str] = field(default_factory=set)  # variants of one pod that tested a draft
    records: dict[str, Record] = field(default_factory=dict)
    wanted_before: int = 0  # replicas, at the last look
    now: float = 1_700_000_000.0  # seconds since the epoch

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
        self._keeps_what_served(states, step)

    def _keeps_what_served(self, states: Sequence[VariantState], step: Step) -> None:
        """Until the target has all its replicas, what once had them goes only beside what had as many. A
        canary is no plan.
        """
        plans = [state for state in states if state.plan_hash not in self.canaries]
        most = {state.plan_hash: self.bounds.most(state.footprint, self.replicas) for state in plans}
        # More were wanted a moment ago: that fewer are is no merit of a plan.
        could_have = [
            self.bounds.most(state.footprint, max(self.replicas, self.wanted_before)) for state in plans
        ]
        self.wanted_before = self.replicas
        is_over = has_taken_over(states, step.target, step.fitting)
        for state in plans if self.replicas else ():
            record = self.records.setdefault(state.plan_hash, Record())
            record.available = max(record.available, state.answering)
            if state.available >= max(1, state.replicas, *could_have):
                record.to_keep = state.available
            # What fewer are wanted or fit is lost with no plan; what runs is there, over a lowered limit too.
            record.to_keep = min(record.to_keep, self.replicas, max(state.replicas, most[state.plan_hash]))
            if is_over and state.plan_hash != step.target:
                record.available, record.to_keep = state.answering, 0
        gone = {name: self.records.pop(name) for name in self.records.keys() - step.replicas.keys()}
        # What asks for replicas may be about to have them, unless it has not answered for long.
        asked = (
            state.replicas
            for state in plans
            if state.plan_hash in step.replicas and not state.is_silent(self.now)
        )
        kept = max((*asked, *(record.available for record in self.records.values())), default=0)
        for name, record in gone.items():
            law(
                record.to_keep <= kept,
                f"{name} had all its {record.to_keep} replicas and is removed; {kept} are kept",
            )

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

    def _may_miss(self) -> int:
        if self.bounds.max_unavailable is not None:
            return self.bounds.max_unavailable
        unlimited = self.bounds.max_total is None and self.bounds.max_per_hour is None
        if unlimited and min(self.nodes.values()) >= 40 and self.bounds.max_surge != 0:
            return 0
        return 1 if self.replicas > 1 else 0
