"""A rollout in steps, reconcile by reconcile: it goes on after each, or back to what served."""

from __future__ import annotations

from typing import Any

from turbo_dev.loads import load
from turbo_dev.small_world import KEY, World, other_plan, served

STEPS = {
    "canary": {"steps": [{"replicasFraction": "0.25", "minDuration": "2m"}]},
    "minReadySeconds": 0,
}
SPEC: dict[str, Any] = {"replicas": 4, "rollout": STEPS}
FAILS = load(0.0, 0.0, finished_requests=50, failed_requests=30)


async def _on_step() -> tuple[World, str, str]:
    """A world whose second plan has one of four replicas, and the names of both Deployments."""
    world, old = await served(**SPEC)
    await world.written(other_plan(**SPEC))
    for _ in range(4):
        await _look(world)
    (new,) = {*world.replicas} - {old}
    return world, old, new


async def _look(world: World, seconds: float = 5.0) -> None:
    world.now += seconds
    await world.reconciler.reconcile(KEY)
    world.run_pods()


async def test_a_plan_is_kept_at_its_step_and_takes_over_once_that_is_passed() -> None:
    world, old, new = await _on_step()
    for _ in range(10):
        await _look(world)
        assert world.replicas == {old: 3, new: 1}
    status, reason, message = world.condition("Ready")
    assert (status, reason) == ("False", "Progressing")
    assert "serves on. Step 1 of 1: 1 of 4 replicas are of the new plan, and compared" in message
    for _ in range(30):
        await _look(world)
    assert world.replicas == {new: 4}
    assert world.condition("Ready")[0] == "True"


async def test_requests_that_fail_on_a_step_bring_the_earlier_plan_back_for_good() -> None:
    world, old, new = await _on_step()
    world.cache.pods.put_report(KEY, f"{new}-x-0", world.now, FAILS)
    for _ in range(40):
        await _look(world)
    assert world.replicas == {old: 4}
    status, reason, message = world.condition("Ready")
    assert (status, reason) == ("False", "RolledBack")
    assert "failed on step 1 of its rollout: 30 of 50 requests failed, and 0 of 0" in message
    assert world.condition("Stalled")[:2] == ("True", "RolledBack")
