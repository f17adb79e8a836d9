"""From the variants as they are to the next step of a rollout. Pure and stateless, like the planner of
LeaderWorkerSet: an operator that dies in the middle goes on from what it sees.

With n wanted replicas, s of maxSurge and u of maxUnavailable, each step has

    old = max(0, n - available(new) - u)    of the variant that serves now
    new = min(n, n + s - old - others)      as far as accelerators and money allow

The difficulty lies in what is not ours to order: pods that end still hold their accelerators, so that
nothing grows into a place before it is empty; counts lag behind writes, so that a count of an older
generation is none; and where there is no room for a surge, somebody has to go first.
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
    """What the rollout is to come to."""

    plan_hash: str | None  # to serve; None while there is no feasible plan
    replicas: int
    serving: str | None = None  # the last variant that had all its replicas available
    rolled_back: bool = False  # the plan made no progress: what served before serves on
    canary: str | None = None  # a variant that one pod tries a draft with
    canary_makes_room: bool = False  # no place is left for its pod in addition to the replicas
    over_limits: bool = False  # what served when the rollout began was above a limit of the spec


@dataclass(frozen=True, slots=True)
class _Slack:
    """maxSurge and maxUnavailable in force, and why there is no room for the surge, as a clause."""

    surge: int
    unavailable: int
    crowded: str | None


@dataclass(frozen=True, slots=True)
class Step:
    """The variants that shall exist, in the order in which they are to be written; every other one goes."""

    variants: tuple[Variant, ...]
    target: str | None  # the variant that all replicas shall be of
    fitting: int  # of the wanted replicas, those that have room
    waits: str | None = None  # what holds it up that is not a pod, as a sentence
    waits_for_spec: bool = False  # whether nothing but a change of the spec helps
    is_over: bool = False  # whether the target serves: nothing of another variant is needed any more

    @property
    def replicas(self) -> Mapping[str, int]:
        """By plan hash."""
        return {variant.plan_hash: variant.replicas for variant in self.variants}


def serving_variant(states: Sequence[VariantState], wanted: str | None, recorded: str | None) -> str | None:
    """The variant that serves until another one has all its replicas available.

    It is the recorded one while it is there, else the one with most available replicas, an older one before
    the wanted one; None where none has ever answered.
    """
    if any(state.plan_hash == recorded for state in states):
        return recorded
    answering = [state for state in states if state.answering > 0]
    older = [state for state in answering if state.plan_hash != wanted]
    found = max(older or answering, key=lambda state: (state.answering, state.plan_hash), default=None)
    return None if found is None else found.plan_hash


def has_taken_over(states: Iterable[VariantState], plan_hash: str | None, replicas: int) -> bool:
    """Whether a variant has all its replicas available, of which there must be one."""
    return replicas > 0 and any(
        state.plan_hash == plan_hash and state.available >= replicas for state in states
    )


def next_step(
    states: Sequence[VariantState],
    wanted: Wanted,
    footprint: Footprint | None,
    bounds: Bounds,
    now: float,
) -> Step:
    """The next step; the same again where nothing has changed. `footprint` is what one replica of the wanted
    plan holds, `now` is in epoch seconds.
    """
    target = _target(states, wanted)
    if target is None:
        return Step((), None, 0)
    by_hash = {state.plan_hash: state for state in states}
    new = by_hash.get(target) or VariantState(target, exists=False)
    if target == wanted.plan_hash and footprint is not None:
        new = replace(new, footprint=footprint)
    others = _in_order(states, wanted, target)
    # What runs is never taken away for want of room: its pods may only be between two nodes.
    fitting = max(bounds.most(new.footprint, wanted.replicas), min(new.replicas, wanted.replicas))
    if wanted.replicas == 0:
        return _at_zero(new, others, wanted)
    if wanted.canary is not None and wanted.canary != target:
        canary = by_hash.get(wanted.canary) or VariantState(wanted.canary, exists=False)
        step = _with_canary(new, replace(canary, footprint=new.footprint), others, wanted, fitting, bounds)
        if step is not None:
            return step
    return _rolled(new, others, wanted, fitting, bounds, now)


def _target(states: Sequence[VariantState], wanted: Wanted) -> str | None:
    """The wanted plan; without one, or where it failed, what served before it."""
    if wanted.plan_hash is not None and not wanted.rolled_back:
        return wanted.plan_hash
    if wanted.serving is not None:
        return wanted.serving
    kept = max(states, key=lambda state: (state.answering, state.replicas, state.plan_hash), default=None)
    return wanted.plan_hash if kept is None else kept.plan_hash  # rather one that failed than none at all


def _in_order(states: Iterable[VariantState], wanted: Wanted, target: str) -> list[VariantState]:
    """All but the target, the one that serves last: what is of less use gives way first."""
    others = [state for state in states if state.plan_hash != target]
    others.sort(key=lambda state: (state.plan_hash == wanted.serving, state.answering, state.plan_hash))
    return others


def _at_zero(new: VariantState, others: Sequence[VariantState], wanted: Wanted) -> Step:
    """Nothing is asked for: the others end first, so that they do even where the API server refuses the new
    one. What serves stays at 0, since nothing has taken over from it.
    """
    kept = [Variant(state.plan_hash, 0) for state in others if _stays(state, wanted)]
    return Step((*kept, Variant(new.plan_hash, 0)), new.plan_hash, 0)


def _is_of_spec(broken: str | None) -> bool:
    """Whether a limit is the user's own."""
    return broken is not None and broken.startswith("spec.")


def _stays(state: VariantState, wanted: Wanted) -> bool:
    """Whether a variant without replicas is still to be kept: it serves, or its pods have yet to end."""
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
    asked, on_the_way = wanted.replicas, bounds
    if wanted.over_limits:
        # A limit was lowered below what serves: to take over, without a gap, is how it is kept again.
        asked = max(1, fitting, bounds.without_stock.most(new.footprint, asked))
        on_the_way = bounds.without_limits
    slack = _slack(new, serving, others, asked, fitting, on_the_way, now)
    old = _old_replicas(new, others, replace(wanted, replicas=asked), slack, bounds, on_the_way)
    replicas = _grown(new, others, old, asked, fitting, slack.surge, on_the_way)
    is_needed = fitting < asked and any(state.replicas for state in others)
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
    unmoved = replicas == new.replicas and all(each.replicas == old[each.plan_hash] for each in others)
    # A pod of the new plan that starts takes the next step once it is available, room or not.
    starts = new.available < new.replicas
    is_short = (replicas < fitting and not starts) or _finds_no_node(new)
    is_settled = all(each.seen and each.held <= each.replicas for each in others) and new.seen
    if is_short and unmoved and is_settled and any(old.values()):
        held = [(each.footprint, each.held) for each in others]
        crowded = slack.crowded or on_the_way.exceeded([*held, (new.footprint, replicas + 1)])
        if crowded:
            broken = crowded
            waits = f"The new plan waits for room beside the one that serves: {crowded}. Make room"
            if crowded == NO_SURGE and not slack.unavailable:
                waits = f"The new plan waits: {crowded}, and no replica may be missing. Raise it"
            may_go = 1 + asked - fitting
            if may_go > slack.unavailable:
                waits += (
                    f", or write spec.rollout.maxUnavailable: {may_go}, with which a replica goes before its "
                    "successor is there"
                )
            waits += "."
    variants = _ordered(Variant(new.plan_hash, replicas), new, remaining, others)
    return Step(variants, new.plan_hash, fitting, waits, _is_of_spec(broken), is_over)


def _ordered(
    variant: Variant, new: VariantState, kept: Sequence[Variant], others: Iterable[VariantState]
) -> tuple[Variant, ...]:
    """As they are to be written: what is lowered before what is raised, so that there are never too many.

    A new Deployment comes first all the same: one that is refused costs no replica. It was given no place
    that is only about to be empty.
    """
    before = {state.plan_hash: state.replicas for state in others}
    lowered = [each for each in kept if each.replicas <= before[each.plan_hash]]
    raised = [each for each in kept if each.replicas > before[each.plan_hash]]
    return (*lowered, variant, *raised) if new.exists else (variant, *lowered, *raised)


def _slack(
    new: VariantState,
    serving: VariantState | None,
    others: Sequence[VariantState],
    asked: int,
    fitting: int,
    bounds: Bounds,
    now: float,
) -> _Slack:
    """maxSurge and maxUnavailable in force: as written, else by whether one replica more has room.

    It depends on what the rollout is from and to, never on how far it is: what went first is not missed.
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
        return _Slack(surge, min(written or 0, asked - 1), None)
    if bounds.max_surge is None:
        surge = 0
    if written is None:
        answers = any(state.answering for state in (new, *others))
        is_silent = serving is not None and not answers and _is_silent(serving, now)
        written = 1 if asked > 1 or is_silent else 0
    return _Slack(surge, written, crowded)


def _is_silent(serving: VariantState, now: float) -> bool:
    """Whether the serving variant has not answered for SILENT_SECONDS, or was already scaled to zero."""
    if not serving.exists:
        return False
    since = serving.silent_since
    return serving.replicas == 0 or (since is not None and now - since >= SILENT_SECONDS)


def _finds_no_node(new: VariantState) -> bool:
    """Whether a pod of it waits for a node that will not come; an elastic cluster may be adding one."""
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
    """Replicas of the other variants: none for one that never served, or that the new one replaces.

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
            held = [
                (each.footprint, each.held_with(old.get(each.plan_hash, 0)))
                for each in others
                if each != state
            ]
            # Above a lowered limit the new variant gets all its replicas before any is restored.
            held.append((new.footprint, max(new.held, wanted.replicas if wanted.over_limits else 0)))
            # Where as few as may be missing are, they went first, for a pod that has found its node since.
            may_miss = 0 if new.replicas == 0 or not state.exists else _may_miss(wanted, bounds)
            while (
                is_settled
                and state.replicas + may_miss < goal
                and replicas < goal
                and replicas + used < wanted.replicas + slack.surge
                and bounds.exceeded([*held, (state.footprint, replicas + 1 + state.ending)]) is None
            ):
                replicas += 1
        replicas = min(replicas, max(goal, state.answering - max(spare, 0)))
        spare -= state.answering - min(state.answering, replicas)
        old[state.plan_hash] = replicas
    return old


def _may_miss(wanted: Wanted, bounds: Bounds) -> int:
    """Maximum number of replicas to stop first if there is no room for a surge."""
    if bounds.max_unavailable is not None:
        return bounds.max_unavailable
    return 1 if wanted.replicas > 1 else 0


def _fits(new: VariantState, old: VariantState, replicas: int, bounds: Bounds) -> bool:
    """Whether one more of the new variant has room once the old one has so many."""
    count = max(new.available, new.replicas if new.replicas > new.available else new.available + 1)
    return bounds.exceeded([(new.footprint, count), (old.footprint, max(0, replicas))]) is None


def _grown(
    new: VariantState,
    others: Sequence[VariantState],
    old: Mapping[str, int],
    asked: int,
    fitting: int,
    surge: int,
    bounds: Bounds,
) -> int:
    """Replicas of the new variant: none grows into a place that another one still holds."""
    total = sum(old.values())
    if not new.exists:  # it is made before the others are lowered
        total = sum(max(state.replicas, old[state.plan_hash]) for state in others)
    allowed = max(surge, 1 if bounds.max_surge is None else bounds.max_surge)
    # What answers stays, whatever else has to go.
    floor = max(min(new.replicas, fitting, max(0, asked + allowed - total)), min(new.available, fitting))
    after = [(state.footprint, old[state.plan_hash]) for state in others]
    while floor > new.available and others and bounds.exceeded([*after, (new.footprint, floor)]) is not None:
        floor -= 1
    held = [(state.footprint, state.held_with(old[state.plan_hash])) for state in others]
    replicas = floor
    is_settled = all(state.seen for state in (new, *others))
    while (
        is_settled
        and replicas < min(fitting, asked + surge - total)
        and bounds.exceeded([*held, (new.footprint, replicas + 1 + new.ending)]) is None
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
    """With one pod of the canary, in place of one of several replicas; None while anything is under way."""
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
    # Its Deployment comes first, so that one that is refused costs no replica.
    kept = fitting - 1 if takes_place and canary.exists else fitting
    held = [(new.footprint, new.held_with(kept)), (canary.footprint, 1 + canary.ending)]
    is_there = canary.exists and canary.replicas > 0
    replicas = 1 if is_there or bounds.exceeded(held) is None else 0
    grown = _grown(new, [canary], {canary.plan_hash: replicas}, kept, kept, 1, bounds)
    return Step(
        (Variant(new.plan_hash, grown), Variant(canary.plan_hash, replicas)),
        new.plan_hash,
        fitting,
        is_over=has_taken_over([new], new.plan_hash, fitting),
    )
