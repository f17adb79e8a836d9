"""Which plan is the one to go back to, whatever happens in the moment in which the spec changes."""

from __future__ import annotations

from typing import Any

import pytest

from turbo_dev.small_world import KEY, World, looked, other_plan, served, serving, spec
from turbo_dev.trainings import draft, td
from turbo_operator.api import LABEL_OWNER_UID


async def test_a_plan_that_answers_stays_where_the_one_before_it_is_wanted_again_and_does_not_start() -> None:
    """Found in review: the template of all that answered was removed, and no deadline ran."""
    room = {"accelerators": {"allowed": ["cpu"], "maxTotal": 1}, "rollout": {"maxUnavailable": 1}}
    world, old = await served(**room)
    await world.written(other_plan(**room))
    for _ in range(6):
        await world.reconciler.reconcile(KEY)
        world.run_pods([name for name in world.replicas if name != old])
    (new,) = {*world.replicas} - {old}
    assert world.replicas == {old: 0, new: 1}
    world.run_pods()
    await world.written(serving(**room))  # before a look has seen that the new one answers
    for _ in range(20):
        world.now += 300
        await world.reconciler.reconcile(KEY)
        world.run_pods([old])
    assert world.replicas.get(new) == 1, "it is rolled back to"


@pytest.mark.parametrize("fault", ["silent", "relabeled", "scaled"])
async def test_a_canary_that_a_change_of_the_spec_ends_never_serves(fault: str) -> None:
    """Found in review: an untested draft became what a rollback leads to, and the plan's pod went."""
    world, serves = await _with_canary()
    recorded = world.status["servingPlan"]["hash"]
    await world.written(_td(podTemplate={"spec": {"imagePullSecrets": [{"name": "other"}]}}))
    if fault == "silent":
        world.run_pods([serves])
    elif fault == "relabeled":
        world.relabel(f"{serves}-x-0", {LABEL_OWNER_UID: "somebody's"})
    else:
        world.scale(serves, 0)
    await looked(world, 2)
    assert world.status["servingPlan"]["hash"] == recorded
    assert world.replicas[serves] == (fault != "scaled"), "meanwhile the other pod answers"


@pytest.mark.parametrize("third_starts", [True, False])
async def test_a_plan_given_up_as_it_became_available_is_gone_back_to_and_the_next_is_tried(
    third_starts: bool,
) -> None:
    """Found in review: what never answers kept its place, and nothing of the next plan was ever made."""
    world, old = await served()
    world.run_pods([old])
    await world.written(other_plan())
    await looked(world, 4, old)
    (fix,) = {*world.replicas} - {old}
    world.report_ready(fix)  # for less than minReadySeconds
    await world.written(serving(podTemplate={"spec": {"imagePullSecrets": [{"name": "third"}]}}))
    for _ in range(100):
        world.now += 60
        await world.reconciler.reconcile(KEY)
        world.run_pods([old] if third_starts else [name for name in world.replicas if name != fix])
    if third_starts:
        assert list(world.replicas.values()) == [1]
        assert not {old, fix} & {*world.replicas}
    else:
        assert world.replicas.get(fix) == 1
        assert world.status["servingPlan"]["hash"] in fix
        assert world.condition("Stalled")[1] == "RolledBack"


@pytest.mark.parametrize(
    "limit", [{}, {"rollout": {"maxSurge": 0}}, {"accelerators": {"allowed": ["cpu"], "maxTotal": 2}}]
)
async def test_the_next_plan_is_tried_beside_a_silent_one_and_a_replica_of_its_first_fix(
    limit: dict[str, Any],
) -> None:
    """Found in review: both together took all places, and the rollout said nothing of what it waited for."""
    world, old = await served(replicas=2, **limit)
    silent_since = world.now - 3000

    def report(fix: str | None, available: int) -> None:
        nonlocal silent_since
        world.run_pods([old])
        if world.replicas.get(old):
            world.report_unavailable(old, silent_since)
        else:  # a Deployment without replicas is available
            silent_since = world.now
        if fix is not None and world.replicas.get(fix):
            world.report_ready(fix, of=1, available=available)

    report(None, 0)
    await world.written(other_plan(replicas=2, **limit))
    fix = None
    for _ in range(12):
        world.now += 15
        await world.reconciler.reconcile(KEY)
        fix = next(iter({*world.replicas} - {old}), None)
        report(fix, 0)
    third = serving(replicas=2, podTemplate={"spec": {"imagePullSecrets": [{"name": "third"}]}}, **limit)
    await world.written(third)
    for _ in range(100):
        world.now += 10
        await world.reconciler.reconcile(KEY)
        report(fix, 1)
    assert list(world.replicas.values()) == [2]
    assert not {old, fix} & {*world.replicas}


async def _with_canary() -> tuple[World, str]:
    """One replica beside the pod that a draft is tested on; the Deployment of the former."""
    world, _ = await served()
    await world.written(_td())
    await looked(world, 4)
    (serves,) = world.replicas
    candidate = draft(7)
    meta = {"name": candidate.name, "namespace": "team", "uid": "d", "resourceVersion": "1"}
    world.cache.drafts.put({"metadata": meta}, candidate)
    while len(world.replicas) == 1:
        world.now += 60
        await looked(world, 1)
    await looked(world, 2)
    return world, serves


def _td(**fields: object) -> object:
    return td(acceleratorName="cpu", spec=spec(**fields))
