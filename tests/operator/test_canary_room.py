"""The pod that tries a draft is one of the replicas: it finds its place among them, and loses them none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from turbo_dev.canaries import (
    NOW,
    OLD,
    STABLE,
    TRY,
    children,
    decided,
    look,
    replicas,
    seen,
    stable_of,
    td,
    up,
    variant_of,
)
from turbo_dev.held import held
from turbo_dev.loads import load, pod
from turbo_dev.trainings import FACTS, promoted
from turbo_operator.api import CanaryReason, TurboDeployment
from turbo_operator.drafts import canary
from turbo_operator.drafts.speedup import SpeedupTracker
from turbo_operator.render import fetch
from turbo_operator.render.metadata import digest
from turbo_operator.snapshot import ChildView, PodView, Snapshot

PENDING = 600.0  # spec.accelerators.pendingTimeout by default
QUOTA = 'pods "chat-x" is forbidden: exceeded quota: gpus'
FILE = ChildView("ConfigMap", "chat-drafts-canary", "f", None, data={"drafts.json": "{}"})
LOADS = pod("t", load(0.0, 0.0), TRY, ready=False, load=None)


def several(number: int = 3, **spec: Any) -> TurboDeployment:
    return td({**promoted(OLD), "desiredReplicas": number}, replicas=number, **spec)


def waits(seconds: float) -> PodView:
    more = {"reason": "Unschedulable", "message": "no node", "pending_since": NOW - seconds}
    return pod("t", load(0.0, 0.0), TRY, ready=False, load=None, **more)


def asked(it: TurboDeployment, stable: ChildView, trying: ChildView | None, *pods: PodView) -> dict[str, int]:
    """Replicas of each variant in the next step."""
    there = (stable,) if trying is None else (stable, trying, FILE)
    observed = replace(seen(*pods), children=there)
    speedups, verdict = look(it, observed, SpeedupTracker(), NOW)
    return replicas(children(it, observed, speedups, verdict))


def test_where_there_is_room_no_replica_goes_before_the_pod_that_tries_answers() -> None:
    it = several()
    assert asked(it, up(STABLE, 3), None) == {STABLE: 3, TRY: 1}
    assert asked(it, up(STABLE, 3), up(TRY, 1, 0), waits(PENDING / 2)) == {STABLE: 3, TRY: 1}
    assert asked(it, up(STABLE, 3), up(TRY, 1, 0), LOADS) == {STABLE: 3, TRY: 1}


def test_one_of_several_makes_room_where_the_nodes_have_had_none_for_too_long() -> None:
    assert asked(several(), up(STABLE, 3), up(TRY, 1, 0), waits(PENDING + 1)) == {STABLE: 2, TRY: 1}
    alone = td({**promoted(OLD), "desiredReplicas": 1})
    assert asked(alone, up(STABLE), up(TRY, 1, 0), waits(PENDING + 1)) == {STABLE: 1, TRY: 1}


@pytest.mark.parametrize("bound", [{"cost": {"maxPerHour": "0.13"}}, {"accelerators": {"maxTotal": 3}}])
def test_one_of_several_makes_room_at_once_where_money_or_accelerators_are_for_no_more(
    bound: dict[str, Any],
) -> None:
    it = several(**bound)
    assert asked(it, up(STABLE, 3), None) == {STABLE: 3, TRY: 0}  # what may be refused costs no replica
    assert asked(it, up(STABLE, 3), up(TRY, 1, 0), waits(1.0)) == {STABLE: 2, TRY: 1}


def test_one_of_several_makes_room_where_a_quota_lets_no_pod_be_made_and_not_where_a_policy_does() -> None:
    it = several()
    assert asked(it, up(STABLE, 3), up(TRY, 1, 0, QUOTA)) == {STABLE: 2, TRY: 1}
    assert asked(it, up(STABLE, 3), up(TRY, 1, 0, "denied by policy")) == {STABLE: 3, TRY: 1}


def test_room_that_was_made_stays_so_while_the_pod_that_tries_starts() -> None:
    assert asked(several(), up(STABLE, 2), up(TRY, 1, 0), LOADS) == {STABLE: 2, TRY: 1}


@pytest.mark.parametrize(
    ("pods", "message", "told"),
    [
        ((waits(5.0),), None, "Unschedulable: no node"),
        ((), QUOTA, f"No pod can be made: {QUOTA}"),
        ((), "denied by policy", "No pod can be made: denied by policy"),
    ],
)
def test_a_draft_that_never_ran_waits_however_long_and_says_what_for(
    pods: tuple[PodView, ...], message: str | None, told: str
) -> None:
    it = several()
    observed = replace(seen(*pods), children=(up(STABLE, 3), up(TRY, 1, 0, message)))
    speedups, _ = look(it, observed, SpeedupTracker(), NOW)
    speedups, verdict = look(it, observed, speedups, NOW + 3 * canary.GIVE_UP_SECONDS)
    assert verdict is not None
    assert verdict.reason == CanaryReason.STARTING
    assert told in verdict.detail
    assert speedups.run is not None


METRICS = {"scaling": {"mode": "Metrics", "minReplicas": 1, "maxReplicas": 8}}


def after_the_verdict(*there: ChildView) -> Snapshot:
    """What is left of a canary: nothing is tried, the status has its verdict, and pods are as they were."""
    it = several()
    speedups, verdict = look(it, seen(), SpeedupTracker(), NOW)
    made = children(it, replace(seen(), children=(up(STABLE, 3),)), speedups, verdict)
    return replace(seen(drafts=(OLD,)), children=(*there, *held(made.values())))


def test_after_a_verdict_the_autoscaler_holds_the_replicas_until_the_place_is_filled_again() -> None:
    it = td({**promoted(OLD), "desiredReplicas": 3}, **METRICS)
    for there in ((up(STABLE, 2), up(TRY)), (up(STABLE, 3, 2), up(TRY))):
        observed = after_the_verdict(*there)
        assert decided(it, observed, SpeedupTracker(), None).scale.replicas == 3
        assert replicas(children(it, observed, SpeedupTracker(), None)) == {STABLE: 3, TRY: 1}
    filled = after_the_verdict(up(STABLE, 3), up(TRY))
    assert replicas(children(it, filled, SpeedupTracker(), None)) == {STABLE: 3, TRY: 0}  # its pods end first
    gone = replace(filled, children=(up(STABLE, 3),))
    assert replicas(children(it, gone, SpeedupTracker(), None)) == {STABLE: 3}


def test_the_autoscaler_counts_the_pod_that_tries() -> None:
    it = td({**promoted(OLD), "desiredReplicas": 3}, **METRICS)
    observed = replace(seen(), children=(up(STABLE, 2), up(TRY), FILE))
    speedups, verdict = look(it, observed, SpeedupTracker(), NOW)
    assert decided(it, observed, speedups, verdict).scale.replicas == 3


@pytest.mark.parametrize(
    ("spec", "more", "why"),
    [
        ({}, {"rollout": {"planHash": STABLE, "reason": "RolledBack"}}, "a change of the spec"),
        ({}, {"rollout": {"planHash": STABLE}}, "the end of the rollout"),
        ({"rollout": {"maxSurge": 0, "maxUnavailable": 1}}, {}, "room for a pod"),
    ],
)
def test_a_trial_whose_pod_may_not_be_made_says_what_it_waits_for(
    spec: dict[str, Any], more: dict[str, Any], why: str
) -> None:
    """Found in review: a pod was said to start beside the others, for days."""
    it = td({**promoted(OLD), "desiredReplicas": 1}, **spec)
    if more:
        spec_hash = digest(it.spec.model_dump(mode="json", exclude={"replicas"}, exclude_defaults=True))[:16]
        rollout = {**more["rollout"], "specHash": spec_hash, "availableReplicas": 0}
        more = {"servingPlan": {"hash": "v0", "replicas": 1}, "rollout": rollout}
        it = td({**promoted(OLD), "desiredReplicas": 1, **more}, **spec)
    serves = up("v0" if more else STABLE)
    observed = replace(seen(), children=(serves,))
    speedups, verdict = look(it, observed, SpeedupTracker(), NOW)
    made = decided(it, observed, speedups, verdict)
    assert made.canary_children == ()
    assert made.verdict is not None
    assert made.verdict.detail.startswith(f"The canary of chat-draft-2 waits for {why}")


def test_no_draft_is_tried_while_the_model_is_fetched_again() -> None:
    claim = {"persistentVolumeClaim": {"claimName": "weights"}}
    it = td({**promoted(OLD), "desiredReplicas": 1}, model={"uri": "hf://acme/chat"}, cache=claim)
    fetched = ChildView("Job", fetch.job_name(it, FACTS), "j", None, complete=True)
    for job, has_pod in ((fetched, True), (replace(fetched, complete=False), False)):
        observed = replace(seen(), children=(up(stable_of(it)), job))
        speedups, verdict = look(it, observed, SpeedupTracker(), NOW)
        made = decided(it, observed, speedups, verdict)
        assert bool(made.canary_children) is has_pod
        assert made.verdict is not None
        assert ("waits for all of the model on the claim" in made.verdict.detail) is not has_pod
        begun = replace(observed, children=(*observed.children, up(variant_of(it), available=0)))
        assert decided(it, begun, speedups, verdict).canary_children, "one that has a pod goes on"
