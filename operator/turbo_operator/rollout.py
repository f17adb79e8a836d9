"""From variants as they are to the next step: the new one comes up, then the old ones go. Pure and stateless.

A variant is one Deployment, named after its plan hash. The position in a rollout is read from what is
observed, so an operator that dies in the middle goes on from the same place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from turbo_operator.observed import ChildView


@dataclass(frozen=True, slots=True)
class Variant:
    """A Deployment that shall exist, and with how many pods; every other variant shall go."""

    plan_hash: str
    replicas: int


def next_variants(
    children: Sequence[ChildView],
    wanted: str | None,
    replicas: int,
    canary: str | None = None,
    makes_room: bool = False,
) -> tuple[Variant, ...]:
    """The variants of the next step in the order in which they are to be written.

    `canary` is the hash of a variant that one pod is tried with beside the wanted one, where that has all its
    replicas: of two or more it gives up one when the canary answers, or where it `makes_room` as soon as the
    canary is there; a single one stays.

    `wanted` is the plan hash to serve, or None while there is no feasible plan: then whatever runs keeps
    running. Old variants never grow, are kept only while they answer, and together give up one replica for
    each that the wanted one has available; so a rollout needs room for one replica more than there are, and
    while there is none the old one serves on.
    Where no replica is wanted they come first and stand at 0 until the wanted one is there: their pods end
    even if the API server refuses the wanted one, before which nothing is removed.
    """
    if canary is not None and wanted is not None and replicas:
        return _with_canary(children, wanted, replicas, canary, makes_room)
    olds = [
        child
        for child in sorted(children, key=lambda child: (-child.available_replicas, child.name))
        if child.kind == "Deployment" and child.plan_hash and child.plan_hash != wanted
    ]
    left = replicas - _available(children, wanted)
    others = []
    for child in olds:
        if wanted is None or replicas == 0 or (child.available_replicas > 0 and left > 0):
            kept = min(child.replicas or 0, replicas if wanted is None else max(left, 0))
            others.append(Variant(child.plan_hash or "", kept))
            left -= kept
    others.sort(key=lambda variant: variant.plan_hash)
    if wanted is None:
        return tuple(others)
    new = Variant(wanted, replicas)
    if has_taken_over(children, wanted, replicas):
        return (new,)
    return (new, *others) if replicas else (*others, new)


def _with_canary(
    children: Sequence[ChildView], wanted: str, replicas: int, canary: str, makes_room: bool
) -> tuple[Variant, ...]:
    """As without, then the canary, which is made once nothing else is under way."""
    others = [child for child in children if child.plan_hash != canary]
    is_there = any(child.kind == "Deployment" and child.plan_hash == canary for child in children)
    takes_one = is_there and (makes_room or _available(children, canary) > 0)
    kept = max(1, replicas - 1) if takes_one else replicas
    steps = next_variants(others, wanted, kept)
    if not is_there and (len(steps) > 1 or not has_taken_over(children, wanted, kept)):
        return steps
    return (*steps, Variant(canary, 1))


def present_replicas(children: Sequence[ChildView]) -> int | None:
    """Replicas that run as one deployment now: of its largest variant; None while there is no variant."""
    return max(
        (child.replicas or 0 for child in children if child.kind == "Deployment" and child.plan_hash),
        default=None,
    )


def has_taken_over(children: Sequence[ChildView], wanted: str, replicas: int) -> bool:
    """Whether the wanted variant was seen by its controller as it is, and has all replicas available."""
    is_there = any(_was_seen(child, wanted) for child in children)
    return is_there and _available(children, wanted) >= replicas


def _available(children: Sequence[ChildView], wanted: str | None) -> int:
    """Replicas of the wanted variant that answer; counts of an older generation prove nothing."""
    return sum(child.available_replicas for child in children if _was_seen(child, wanted))


def _was_seen(child: ChildView, wanted: str | None) -> bool:
    """Whether it is the wanted variant and its controller has seen it as it is."""
    return (
        wanted is not None
        and child.kind == "Deployment"
        and child.plan_hash == wanted
        and child.observed_generation >= child.generation
    )
