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

# Longer than a liveness probe takes to end a container that hangs: after that, what does not answer may go
# before its successor is there.
SILENT_SECONDS = 60.0
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


@dataclass(frozen=True, slots=True)
class _Slack:
    """The effective maxSurge and maxUnavailable, and why the surge does not fit, as a clause."""

    surge: int
    unavailable: int
    crowded: str | None


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


def serving_variant(states: Sequence[VariantState], wanted: str | None, recorded: str | None) -> str | None:
    """Find the variant that serves until another one has all its replicas available.

    It is the recorded one while it exists, else the one with most available replicas, an older one before the
    wanted one; None where none has ever served.
    """
    if any(state.plan_hash == recorded for state in states):
        return recorded
    answering = [state for state in states if state.answering > 0]
    older = [state for state in answering if state.plan_hash != wanted]
    serving = max(older or answering, key=lambda state: (state.answering, state.plan_hash), default=None)
    return None if serving is None else serving.plan_hash


def has_taken_over(states: Iterable[VariantState], plan_hash: str | None, replicas: int) -> bool:
    """Whether a variant has all its replicas available, of which there must be one."""
    return replicas > 0 and any(
        state.plan_hash == plan_hash and state.available >= replicas for state in states
    )


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
    # A lack of capacity never takes away what runs: its pods may only be between two nodes.
    fitting = max(bounds.most(new.footprint, wanted.replicas), min(new.replicas, wanted.replicas))
    if wanted.replicas == 0:
        # The others end first, so that they do even where the API server rejects the new one. What serves
        # stays at 0, since nothing has taken over from it.
        ending = [Variant(state.plan_hash, 0) for state in others if _stays(state, wanted)]
        return Step((*ending, Variant(target, 0)), target, 0)
    if wanted.canary is not None and wanted.canary != target:
        canary = by_hash.get(wanted.canary) or VariantState(wanted.canary, exists=False)
        step = _with_canary(new, replace(canary, footprint=new.footprint), others, wanted, fitting, bounds)
        if step is not None:
            return step
    return _rolled(new, others, wanted, fitting, bounds, now)


def _target(states: Sequence[VariantState], wanted: Wanted) -> str | None:
    """Choose the wanted plan; without one, or where it failed, what served before it."""
    if wanted.plan_hash is not None and not wanted.rolled_back:
        return wanted.plan_hash
    if wanted.serving is not None:
        return wanted.serving
    best = max(states, key=lambda state: (state.answering, state.replicas, state.plan_hash), default=None)
    return wanted.plan_hash if best is None else best.plan_hash  # rather one that failed than none at all


def _stays(state: VariantState, wanted: Wanted) -> bool:
    """Whether to keep a variant without replicas: it serves, or its pods have yet to end."""
    return state.plan_hash == wanted.serving or (state.exists and (state.held > 0 or not state.seen))


def _rolled(
    new: VariantState,
    others: Sequence[VariantState],
    wanted: Wanted,
    fitting: int,
    bounds: Bounds,
    now: float,
) -> Step:
    serving = next((state for state in others if state.plan_hash == wanted.serving), None)
    desired, on_the_way = wanted.replicas, bounds
    if wanted.over_limits:
        # A limit was lowered below what serves: to take over, without a gap, is how it is kept again.
        desired = max(1, fitting, bounds.without_stock.most(new.footprint, desired))
        on_the_way = bounds.without_limits
    slack = _slack(new, serving, others, desired, fitting, on_the_way, now)
    old = _old_replicas(new, others, replace(wanted, replicas=desired), slack, bounds, on_the_way)
    replicas = _grown(new, others, old, desired, fitting, slack.surge, on_the_way)
    is_needed = fitting < desired and any(state.replicas for state in others)
    is_over = has_taken_over([new], new.plan_hash, fitting) and not is_needed
    remaining = [
        Variant(state.plan_hash, old[state.plan_hash])
        for state in others
        if old[state.plan_hash] > 0
        or (_stays(state, wanted) and not (is_over and state.held == 0 and state.seen))
    ]
    waits, broken = None, None
    if fitting < wanted.replicas:
        broken = bounds.exceeded([(new.footprint, fitting + 1)])
        waits = f"{fitting} of {wanted.replicas} replicas fit: {broken}."
    unmoved = replicas == new.replicas and all(state.replicas == old[state.plan_hash] for state in others)
    # A pod of the new plan that starts takes the next step once it is available, room or not.
    starts = new.available < new.replicas
    is_short = (replicas < fitting and not starts) or _finds_no_node(new)
    is_settled = all(state.seen and state.held <= state.replicas for state in others) and new.seen
    if is_short and unmoved and is_settled and any(old.values()):
        holdings = [(state.footprint, state.held) for state in others]
        crowded = slack.crowded or on_the_way.exceeded([*holdings, (new.footprint, replicas + 1)])
        if crowded:
            broken = crowded
            waits = f"The new plan waits for room beside the one that serves: {crowded}. Make room"
            if crowded == NO_SURGE and not slack.unavailable:
                waits = f"The new plan waits: {crowded}, and no replica may be missing. Raise it"
            may_go = 1 + desired - fitting
            if may_go > slack.unavailable:
                waits += (
                    f", or write spec.rollout.maxUnavailable: {may_go}, with which a replica goes before its "
                    "successor is there"
                )
            waits += "."
    variants = _ordered(Variant(new.plan_hash, replicas), new, remaining, others)
    return Step(variants, new.plan_hash, fitting, waits, (broken or "").startswith("spec."), is_over)


def _ordered(
    target: Variant, new: VariantState, others_kept: Sequence[Variant], others: Iterable[VariantState]
) -> tuple[Variant, ...]:
    """Order the writes: what is lowered before what is raised, so that there are never too many.

    A new Deployment comes first all the same: one that is rejected costs no replica.
    """
    before = {state.plan_hash: state.replicas for state in others}
    lowered = [variant for variant in others_kept if variant.replicas <= before[variant.plan_hash]]
    raised = [variant for variant in others_kept if variant.replicas > before[variant.plan_hash]]
    return (*lowered, target, *raised) if new.exists else (target, *lowered, *raised)


def _slack(
    new: VariantState,
    serving: VariantState | None,
    others: Sequence[VariantState],
    desired: int,
    fitting: int,
    bounds: Bounds,
    now: float,
) -> _Slack:
    """Compute the effective maxSurge and maxUnavailable: as in the spec, else by whether one more fits.

    They depend on what the rollout is from and to, never on how far it is: what went first is not missed.
    """
    old = serving or next((state for state in reversed(others) if state.replicas > 0), None)
    surge = 1 if bounds.max_surge is None else bounds.max_surge
    crowded = None
    if _finds_no_node(new):
        crowded = "no node has room for its pod"
    elif surge == 0:
        crowded = NO_SURGE
    elif old is not None:
        # The mixtures on the way lie between these two.
        ways = [[(old.footprint, fitting + 1 - count), (new.footprint, count)] for count in (1, fitting)]
        crowded = next((broken for way in ways if (broken := bounds.exceeded(way))), None)
    written = bounds.max_unavailable
    if crowded is None or old is None:
        # Even where all may go at once, nobody needs to be without an answer.
        return _Slack(surge, min(written or 0, desired - 1), None)
    if bounds.max_surge is None:
        surge = 0
    if written is None:
        is_served = any(state.answering for state in (new, *others))
        is_silent = serving is not None and not is_served and _is_silent(serving, now)
        written = 1 if desired > 1 or is_silent else 0
    return _Slack(surge, written, crowded)


def _is_silent(serving: VariantState, now: float) -> bool:
    """Whether the serving variant has not answered for SILENT_SECONDS, or was already scaled to zero."""
    if not serving.exists:
        return False
    since = serving.silent_since
    return serving.replicas == 0 or (since is not None and now - since >= SILENT_SECONDS)


def _finds_no_node(new: VariantState) -> bool:
    """Whether a pod waits for a node that will not come; an elastic cluster may be adding one."""
    fixed = new.footprint is None or new.footprint.accelerator.provisioning == Provisioning.FIXED
    return fixed and new.unschedulable and new.available < new.replicas


def _old_replicas(
    new: VariantState,
    others: Sequence[VariantState],
    wanted: Wanted,
    slack: _Slack,
    bounds: Bounds,
    on_the_way: Bounds,
) -> dict[str, int]:
    """Compute the replicas of the other variants: none for one that never served, or that is replaced.

    Restores replicas of the serving variant that somebody else removed, within `bounds`; `on_the_way` is what
    the new one may grow to.
    """
    spare = new.available + sum(state.answering for state in others) - (wanted.replicas - slack.unavailable)
    is_settled = all(state.seen for state in (new, *others))
    old: dict[str, int] = {}
    for state in others:
        goal, replicas = 0, state.replicas
        if state.plan_hash == wanted.serving:
            goal = max(0, wanted.replicas - new.available)
            # One that goes first must make room, else it goes for nothing.
            if new.available < wanted.replicas and _fits(new, state, goal - slack.unavailable, on_the_way):
                goal = max(0, goal - slack.unavailable)
            used = max(new.replicas, new.available) + sum(old.values())
            holdings = [
                (other.footprint, other.held_with(old.get(other.plan_hash, 0)))
                for other in others
                if other != state
            ]
            # Above a lowered limit the new variant gets all its replicas before any is restored.
            holdings.append((new.footprint, max(new.held, wanted.replicas if wanted.over_limits else 0)))
            # Where as few as may be missing are, they went first, for a pod that has found its node since.
            may_miss = int(wanted.replicas > 1) if bounds.max_unavailable is None else bounds.max_unavailable
            may_miss = may_miss if new.replicas and state.exists else 0
            while (
                is_settled
                and state.replicas + may_miss < goal
                and replicas < goal
                and replicas + used < wanted.replicas + slack.surge
                and bounds.exceeded([*holdings, (state.footprint, replicas + 1 + state.ending)]) is None
            ):
                replicas += 1
        replicas = min(replicas, max(goal, state.answering - max(spare, 0)))
        spare -= state.answering - min(state.answering, replicas)
        old[state.plan_hash] = replicas
    return old


def _fits(new: VariantState, old: VariantState, replicas: int, bounds: Bounds) -> bool:
    """Whether one more of the new variant fits once the old one has so many."""
    count = max(new.available, new.replicas if new.replicas > new.available else new.available + 1)
    return bounds.exceeded([(new.footprint, count), (old.footprint, max(0, replicas))]) is None


def _grown(
    new: VariantState,
    others: Sequence[VariantState],
    old: Mapping[str, int],
    desired: int,
    fitting: int,
    surge: int,
    bounds: Bounds,
) -> int:
    """Compute the replicas of the new variant: none takes an accelerator that another one still holds."""
    total = sum(old.values())
    if not new.exists:  # it is created before the others are lowered
        total = sum(max(state.replicas, old[state.plan_hash]) for state in others)
    allowed = max(surge, 1 if bounds.max_surge is None else bounds.max_surge)
    # What serves stays, whatever else has to go.
    floor = max(min(new.replicas, fitting, max(0, desired + allowed - total)), min(new.available, fitting))
    after = [(state.footprint, old[state.plan_hash]) for state in others]
    while floor > new.available and others and bounds.exceeded([*after, (new.footprint, floor)]) is not None:
        floor -= 1
    holdings = [(state.footprint, state.held_with(old[state.plan_hash])) for state in others]
    replicas = floor
    is_settled = all(state.seen for state in (new, *others))
    while (
        is_settled
        and replicas < min(fitting, desired + surge - total)
        and bounds.exceeded([*holdings, (new.footprint, replicas + 1 + new.ending)]) is None
    ):
        replicas += 1
    return replicas


def _with_canary(
    new: VariantState,
    canary: VariantState,
    others: Sequence[VariantState],
    wanted: Wanted,
    fitting: int,
    bounds: Bounds,
) -> Step | None:
    """Add one pod of the canary, or replace one of several replicas; None while anything is under way."""
    if any(state.held for state in others if state.plan_hash != canary.plan_hash):
        return None
    surge = 1 if bounds.max_surge is None else bounds.max_surge
    both = [(new.footprint, fitting), (canary.footprint, 1)]
    has_room = surge > 0 and bounds.exceeded(both) is None and not wanted.canary_makes_room
    takes_place = fitting > 1 and (canary.available > 0 or (not has_room and bounds.max_unavailable != 0))
    if not has_room and not takes_place:
        return None
    if not canary.exists and new.available < (fitting - 1 if takes_place else fitting):
        return None
    # Its Deployment comes first, so that one that is rejected costs no replica.
    kept = fitting - 1 if takes_place and canary.exists else fitting
    holdings = [(new.footprint, new.held_with(kept)), (canary.footprint, 1 + canary.ending)]
    is_there = canary.exists and canary.replicas > 0
    replicas = 1 if is_there or bounds.exceeded(holdings) is None else 0
    grown = _grown(new, [canary], {canary.plan_hash: replicas}, kept, kept, 1, bounds)
    return Step(
        (Variant(new.plan_hash, grown), Variant(canary.plan_hash, replicas)),
        new.plan_hash,
        fitting,
        is_over=has_taken_over([new], new.plan_hash, fitting),
    )
