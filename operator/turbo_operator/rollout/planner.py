"""From the variants as they are to the next step of a rollout. Pure and stateless, like the planner of
LeaderWorkerSet: an operator that dies in the middle continues from what it observes.

With n wanted replicas, s of maxSurge and u of maxUnavailable, each step has

    old = max(0, n - available(new) - u)    of the variant that serves now
    new = min(n, n + s - old - others)      as far as accelerators and money allow

Pods that end still hold their accelerators, so no variant grows before they are gone. Counts lag behind
writes, so a count of an older generation is none. Without capacity for a surge, a replica has to go first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from turbo_operator.api import Provisioning
from turbo_operator.budget import Footprint
from turbo_operator.rollout.bounds import Bounds
from turbo_operator.rollout.variants import Variant, VariantState

NO_SURGE = "spec.rollout.maxSurge is 0"


@dataclass(frozen=True, slots=True)
class Wanted:
    """The goal of a rollout."""

    plan_hash: str | None  # to serve; None while there is no feasible plan
    replicas: int
    serving: str | None = None  # the last variant that had all its replicas available
    rolled_back: bool = False  # the plan made no progress: what served before serves on
    canary: str | None = None  # a variant of one pod that tests a draft
    canary_makes_room: bool = False  # its pod has to take the place of a replica
    over_limits: bool = False  # what served when the rollout began was above a limit of the spec
    step: int | None = None  # replicas that the plan may have until it has passed a step; None: all


@dataclass(frozen=True, slots=True)
class Step:
    """The variants that shall exist, in the order in which to write them; every other one goes."""

    variants: tuple[Variant, ...]
    target: str | None  # the variant that all replicas shall be of
    fitting: int  # of the wanted replicas, those that fit
    waits: str | None = None  # what blocks it other than a pod, as a sentence
    waits_for_spec: bool = False  # whether nothing but a change of the spec helps
    is_over: bool = False  # whether the target serves: nothing of another variant is needed any more

    @property
    def replicas(self) -> Mapping[str, int]:
        """By plan hash."""
        return {variant.plan_hash: variant.replicas for variant in self.variants}


def serving_variant(
    states: Sequence[VariantState], wanted: str | None, recorded: str | None, replicas: int, bounds: Bounds
) -> str | None:
    """Find the variant that serves until another one has all its replicas available.

    It is the recorded one while it exists, else the one before the wanted one with most replicas that answer;
    None where none has ever served. Another one serves once it has taken over, or has all its replicas, as
    many as the recorded one could have, and more of them available: one that was given up in the moment in
    which it got them, or that others still make up for. `states` are without canaries, which never serve.
    """

    def could_have(state: VariantState) -> int:
        return max(bounds.most(state.footprint, replicas), min(state.replicas, replicas))

    known = next((state for state in states if state.plan_hash == recorded), None)
    if known is not None:
        available = known.available if known.seen else known.answering
        since = [
            state.plan_hash
            for state in states
            if state.available > available and state.available >= max(could_have(known), could_have(state))
        ]
        return max(since, default=recorded) if replicas > 0 else recorded
    older = [state for state in states if state.answering > 0 and state.plan_hash != wanted]
    serving = max(older, key=lambda state: (state.answering, state.plan_hash), default=None)
    return None if serving is None else serving.plan_hash


def has_taken_over(states: Iterable[VariantState], plan_hash: str | None, replicas: int) -> bool:
    """Whether a variant has all its replicas available, of which there must be one."""
    return replicas > 0 and any(each.plan_hash == plan_hash and each.available >= replicas for each in states)


def next_step(
    states: Sequence[VariantState], wanted: Wanted, footprint: Footprint | None, bounds: Bounds, now: float
) -> Step:
    """Compute the next step; the same again where nothing has changed.

    `footprint` is what one replica of the wanted plan holds, `now` is in epoch seconds.
    """
    target = _target(states, wanted)
    if target is None:
        return Step((), None, 0)
    by_hash = {state.plan_hash: state for state in states}
    new = by_hash.get(target) or VariantState(target, exists=False)
    if target == wanted.plan_hash and footprint is not None:
        new = replace(new, footprint=footprint)
    # The one that serves comes last: what is of less use gives way first.
    others = sorted(
        (state for state in states if state.plan_hash != target),
        key=lambda state: (state.plan_hash == wanted.serving, state.answering, state.plan_hash),
    )
    if wanted.replicas == 0:
        # The others end first, so that they do even where the API server rejects the new one. What serves
        # stays at 0, since nothing has taken over from it.
        ending = [Variant(state.plan_hash, 0) for state in others if _stays(state, wanted)]
        return Step((*ending, Variant(target, 0)), target, 0)
    # A lack of capacity never takes away what runs: its pods may only be between two nodes.
    desired = wanted.replicas
    fitting = max(bounds.most(new.footprint, desired), min(new.replicas, desired))
    # What serves until another one has taken over is not given up for a canary, nor is it for one of a plan
    # that failed.
    is_alone = wanted.serving in (None, target, wanted.canary) and not wanted.rolled_back
    if wanted.canary is not None and wanted.canary != target and is_alone:
        canary = by_hash.get(wanted.canary) or VariantState(wanted.canary, exists=False)
        canary = replace(canary, footprint=new.footprint)
        step = _Rollout(new, others, wanted, fitting, desired, bounds, bounds, now).with_canary(canary)
        if step is not None:
            return step
    on_the_way = bounds
    if wanted.over_limits:
        # A limit was lowered below what serves: to take over, without a gap, is how it is kept again.
        desired = max(1, fitting, replace(bounds, stock={}, by_type={}).most(new.footprint, desired))
        on_the_way = replace(bounds, max_total=None, max_per_hour=None)
    return _Rollout(new, others, wanted, fitting, desired, bounds, on_the_way, now).step()


def _target(states: Sequence[VariantState], wanted: Wanted) -> str | None:
    """Choose the wanted plan; without one, or where it failed, what served before it."""
    if wanted.plan_hash is not None and not wanted.rolled_back:
        return wanted.plan_hash
    if wanted.serving is not None:
        return wanted.serving
    best = max(states, key=lambda state: (state.answering, state.replicas, state.plan_hash), default=None)
    return wanted.plan_hash if best is None else best.plan_hash  # rather one that failed than none at all


def _stays(state: VariantState, wanted: Wanted) -> bool:
    """Whether to keep a variant without replicas: it serves, or its pods have yet to end.

    Without a Deployment, running pods are orphans: it is made again to end them.
    """
    is_ending = state.exists and (state.held > 0 or not state.seen)
    return state.plan_hash == wanted.serving or is_ending or (not state.exists and state.replicas > 0)


@dataclass(frozen=True, slots=True)
class _Rollout:
    """One variant on its way to take over from the others."""

    new: VariantState
    others: Sequence[VariantState]  # the least useful first
    wanted: Wanted
    fitting: int  # of the wanted replicas, those that fit alone
    desired: int  # replicas, the new variant's and those that it takes over from
    bounds: Bounds
    on_the_way: Bounds  # that hold until it has taken over
    now: float  # epoch seconds

    @property
    def surge(self) -> int:
        return 1 if self.bounds.max_surge is None else self.bounds.max_surge

    @property
    def is_on_step(self) -> bool:
        """Whether the new variant is kept at a part of the replicas, and compared with what serves."""
        return self.wanted.step is not None and self.wanted.serving not in (None, self.new.plan_hash)

    @property
    def most(self) -> int:
        """Replicas that the new variant may grow to now."""
        step = self.wanted.step
        return min(self.fitting, step) if self.is_on_step and step is not None else self.fitting

    @property
    def taking_over(self) -> int:
        """Available replicas of the new variant in whose place others go; on a step one of these stays."""
        return min(self.new.available, self.desired - 1) if self.is_on_step else self.new.available

    @property
    def is_settled(self) -> bool:
        """Whether the counts of all variants are those of what was written last."""
        return all(state.seen for state in (self.new, *self.others))

    @property
    def finds_no_node(self) -> bool:
        """Whether a pod waits for a node that will not come; an elastic cluster may be adding one."""
        footprint = self.new.footprint
        fixed = footprint is None or footprint.accelerator.provisioning == Provisioning.FIXED
        return fixed and self.new.unschedulable and self.new.available < self.new.replicas

    def step(self) -> Step:
        """Move replicas from the others to the new variant, as far as bounds allow."""
        new, others, wanted, desired, fitting = self.new, self.others, self.wanted, self.desired, self.fitting
        surge, may_miss, crowded = self._slack()
        old = self._old_replicas(surge, may_miss)
        replicas = self._grown(old, surge)
        is_needed = (fitting < desired or self.is_on_step) and any(old.values())
        is_over = has_taken_over([new], new.plan_hash, fitting) and not is_needed
        remaining = [
            Variant(state.plan_hash, old[state.plan_hash])
            for state in others
            if old[state.plan_hash] > 0
            or (_stays(state, wanted) and not (is_over and state.held == 0 and state.seen))
        ]
        waits, broken = None, None
        if fitting < wanted.replicas:
            broken = self.bounds.exceeded([(new.footprint, fitting + 1)])
            waits = f"{fitting} of {wanted.replicas} replicas fit: {broken}."
        unmoved = replicas == new.replicas and all(state.replicas == old[state.plan_hash] for state in others)
        # A pod of the new plan that starts takes the next step once it is available, room or not.
        starts = new.available < new.replicas
        is_short = (replicas < self.most and not starts) or self.finds_no_node
        is_quiet = self.is_settled and all(state.held <= state.replicas for state in (new, *others))
        if is_short and unmoved and is_quiet and any(old.values()):
            holdings = [(state.footprint, state.held) for state in others]
            crowded = crowded or self.on_the_way.exceeded([*holdings, (new.footprint, replicas + 1)])
            if crowded:
                broken = crowded
                waits = f"The new plan waits for room beside the one that serves: {crowded}. Make room"
                if self.surge == 0 and not may_miss:  # room alone changes nothing
                    lack = "" if crowded == NO_SURGE else f" {crowded},"
                    waits = f"The new plan waits: {NO_SURGE},{lack} and no replica may be missing. Raise it"
                    waits += " and make room" if lack else ""
                    broken = NO_SURGE
                if (may_go := 1 + desired - fitting) > may_miss:
                    waits += f", or write spec.rollout.maxUnavailable: {may_go}, with which a replica goes "
                    waits += "before its successor is there"
                    is_last = sum(state.answering for state in (new, *others)) <= 1
                    waits += " and nothing answers until it is" if is_last else ""
                waits += "."
            if crowded and self._goes_on_by_itself(old, surge, may_miss):
                waits, broken = (
                    "The new plan waits until the replicas before it that start are available.",
                    None,
                )
        # What is lowered comes before what is raised, so that there are never too many. A new Deployment
        # comes first all the same: one that is rejected costs no replica.
        before = {state.plan_hash: state.replicas for state in others}
        remaining.sort(key=lambda variant: variant.replicas > before[variant.plan_hash])
        num_lowered = sum(variant.replicas <= before[variant.plan_hash] for variant in remaining)
        remaining.insert(num_lowered if new.exists else 0, Variant(new.plan_hash, replicas))
        is_spec = (broken or "").startswith("spec.")
        return Step(tuple(remaining), new.plan_hash, fitting, waits, is_spec, is_over)

    def _slack(self) -> tuple[int, int, str | None]:
        """Compute the effective maxSurge and maxUnavailable, and why the surge does not fit, as a clause.

        They depend on what the rollout is from and to, never on how far it is: what went first is not missed.
        """
        new, others, fitting, bounds, surge = self.new, self.others, self.fitting, self.on_the_way, self.surge
        serving = next((state for state in others if state.plan_hash == self.wanted.serving), None)
        old = serving or next((state for state in reversed(others) if state.replicas > 0), None)
        crowded = NO_SURGE if surge == 0 else None
        if self.finds_no_node:
            crowded = "no node has room for its pod"
        elif old is not None:
            # The mixtures on the way lie between these two.
            ways = [[(old.footprint, fitting + 1 - count), (new.footprint, count)] for count in (1, fitting)]
            crowded = next((broken for way in ways if (broken := bounds.exceeded(way))), crowded)
        written = bounds.max_unavailable
        if crowded is None or old is None:
            # Even where all may go at once, nobody needs to be without an answer.
            return surge, min(written or 0, self.desired - 1), None
        if bounds.max_surge is None:
            surge = 0
        if written is None:
            is_silent, is_served = False, any(state.answering for state in (new, *others))
            if serving is not None and serving.exists and not is_served:
                is_silent = serving.replicas == 0 or serving.is_silent(self.now)
            written = 1 if self.desired > 1 or is_silent else 0
        return surge, written, crowded

    def _old_replicas(self, surge: int, unavailable: int) -> dict[str, int]:
        """Compute the others' replicas: none but of what serves, restored as far as bounds allow."""
        others, least = self.others, self.desired - unavailable
        spare = self.taking_over + sum(state.answering for state in others) - least
        spare_available = self.taking_over + sum(state.available for state in others) - least
        old: dict[str, int] = {}
        for state in others:
            replicas, goal = state.replicas, self._count_substitutes(state, old)
            if state.plan_hash == self.wanted.serving:
                replicas, goal = self._restore_serving(state, old, surge, unavailable)
            # What answers only now takes the place of nothing that has done so for minReadySeconds.
            kept = max(state.answering - max(spare, 0), state.available - max(spare_available, 0))
            replicas = min(replicas, max(goal, kept))
            spare -= state.answering - min(state.answering, replicas)
            spare_available -= state.available - min(state.available, replicas)
            old[state.plan_hash] = replicas
        return old

    def _restore_serving(
        self, state: VariantState, old: Mapping[str, int], surge: int, unavailable: int
    ) -> tuple[int, int]:
        """Compute the replicas of the variant that serves, with those that it lost, and how many are to stay.

        `old` has the replicas of all others. What these answer with is not restored, and what is silent for
        long leaves them its place.
        """
        new, bounds, desired = self.new, self.bounds, self.desired
        others = [(other, old[other.plan_hash]) for other in self.others if other.plan_hash in old]
        next_holdings = [(other.footprint, number) for other, number in others]
        next_holdings.append((new.footprint, max(new.replicas, new.available + 1)))

        def lower_first(count: int) -> int:
            """Lower the count first only where that makes room for a new replica."""
            fewer = max(0, count - unavailable)
            crowded = self.on_the_way.exceeded([*next_holdings, (state.footprint, fewer)])
            return count if crowded or self.taking_over >= desired else fewer

        missing = max(0, desired - self.taking_over)
        answering = sum(min(other.answering, number) for other, number in others)
        lost = lower_first(max(0, missing - answering))
        # Above a lowered limit the new variant gets all its replicas before any is restored.
        holdings = [(other.footprint, other.held_with(number)) for other, number in others]
        holdings.append((new.footprint, new.held_with(desired if self.wanted.over_limits else 0)))
        # Where as few as may be missing are, they went first, for a pod that has found its node.
        may_miss = int(desired > 1) if bounds.max_unavailable is None else bounds.max_unavailable
        is_lost = state.replicas + (may_miss if new.replicas and state.exists else 0) < lost
        used = max(new.replicas, new.available) + sum(old.values())
        limit = min(lost, desired + surge - used) if is_lost and self.is_settled else 0
        replicas, more = state.replicas, 1 + state.ending
        while replicas < limit and not bounds.exceeded([*holdings, (state.footprint, replicas + more)]):
            replicas += 1
        return replicas, lost if state.is_silent(self.now) else lower_first(missing)

    def _count_substitutes(self, state: VariantState, old: Mapping[str, int]) -> int:
        """Count the replicas that stand in for those that do not fit. Unlike others, they may restart."""
        new, fitting = self.new, self.fitting
        number = min(state.replicas, self.desired - fitting - sum(old.values()))
        if number <= 0 or self.wanted.serving != new.plan_hash or state.is_silent(self.now):
            return 0
        holdings = [(each.footprint, old.get(each.plan_hash, 0)) for each in self.others]
        holdings += [(new.footprint, fitting), (state.footprint, number)]
        return 0 if self.bounds.exceeded(holdings) else number

    def _goes_on_by_itself(self, old: Mapping[str, int], surge: int, unavailable: int) -> bool:
        """Whether a replica gives way to the new variant once the others that start are available."""
        others = [
            state
            if state.is_silent(self.now)
            else replace(state, available=state.replicas, ready=state.replicas)
            for state in self.others
        ]
        then = replace(self, others=others)._old_replicas(surge, unavailable)
        return any(then[plan_hash] < count for plan_hash, count in old.items())

    def _grown(self, old: Mapping[str, int], surge: int) -> int:
        """Compute the replicas of the new variant: none takes an accelerator that another one still holds."""
        new, others, fitting, bounds = self.new, self.others, self.fitting, self.on_the_way
        total = sum(old.values())
        if not new.exists:  # it is created before the others are lowered
            total = sum(max(state.replicas, old[state.plan_hash]) for state in others)
        allowed = max(surge, self.surge)
        # What serves stays, whatever else has to go.
        kept = max(0, self.desired + allowed - total)
        replicas = max(min(new.replicas, fitting, kept), min(new.answering, fitting))
        after = [(state.footprint, old[state.plan_hash]) for state in others]
        while replicas > new.answering and others and bounds.exceeded([*after, (new.footprint, replicas)]):
            replicas -= 1
        holdings = [(state.footprint, state.held_with(old[state.plan_hash])) for state in others]
        limit = min(self.most, self.desired + surge - total) if self.is_settled else 0
        more = 1 + new.ending
        while replicas < limit and not bounds.exceeded([*holdings, (new.footprint, replicas + more)]):
            replicas += 1
        return replicas

    def with_canary(self, canary: VariantState) -> Step | None:
        """Add one pod of the canary, or replace one of several replicas; None while anything is under way."""
        new, fitting, bounds = self.new, self.fitting, self.bounds
        if any(state.held for state in self.others if state.plan_hash != canary.plan_hash):
            return None
        both = [(new.footprint, fitting), (canary.footprint, 1)]
        has_room = self.surge > 0 and bounds.exceeded(both) is None and not self.wanted.canary_makes_room
        may_miss = 1 if bounds.max_unavailable is None else bounds.max_unavailable
        goes_first = not has_room and 1 < fitting > self.wanted.replicas - may_miss
        takes_place = goes_first or (fitting > 1 and canary.available > 0)
        if not has_room and not takes_place:
            return None
        if not canary.exists and new.available < (fitting - 1 if takes_place else fitting):
            return None
        # Its Deployment comes first, so that one that is rejected costs no replica.
        kept = fitting - 1 if takes_place and canary.exists and canary.seen else fitting
        holdings = [(new.footprint, new.held_with(kept)), (canary.footprint, 1 + canary.ending)]
        is_there = canary.exists and canary.replicas > 0
        is_within = new.seen and sum(number for _, number in holdings) <= fitting + self.surge
        replicas = 1 if is_there or (is_within and bounds.exceeded(holdings) is None) else 0
        beside = replace(self, others=[canary], fitting=kept, desired=kept)
        grown = beside._grown({canary.plan_hash: replicas}, 1)
        variants = (Variant(new.plan_hash, grown), Variant(canary.plan_hash, replicas))
        is_over = has_taken_over([new], new.plan_hash, fitting)
        return Step(variants, new.plan_hash, fitting, is_over=is_over)
