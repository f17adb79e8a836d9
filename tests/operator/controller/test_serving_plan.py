"""Which plan is the one to go back to, whatever happens in the moment in which the spec changes."""

from __future__ import annotations

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
    assert world.replicas.get(serves) == 1


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
