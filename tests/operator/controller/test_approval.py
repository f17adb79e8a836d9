"""With planPolicy.apply Manual no plan takes effect before somebody approves it; what runs goes on."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from turbo_dev.small_world import World
from turbo_dev.trainings import CORES, td
from turbo_operator.api import ANNOTATION_APPROVED_PLAN, CapacityType, Provisioning, TurboDeployment
from turbo_operator.cli.approve import describe, pending_plan
from turbo_operator.cli.manifests import BadInputError

MANUAL = {"apply": "Manual"}


def asked(approved: str = "", **spec: Any) -> TurboDeployment:
    it = td(absent=True, spec={"planPolicy": MANUAL, **spec})
    annotations = {ANNOTATION_APPROVED_PLAN: approved} if approved else {}
    return it.model_copy(update={"metadata": it.metadata.model_copy(update={"annotations": annotations})})


def add_cheaper(world: World) -> None:
    row = replace(
        CORES,
        name="l4",
        prices={CapacityType.ON_DEMAND: Decimal("0.01")},
        provisioning=Provisioning.ELASTIC,
        node_selector={"class": "cheap"},
    )
    world.cache.accelerators.put({"metadata": {"name": "l4", "uid": "b", "resourceVersion": "2"}}, row)
    world.reconciler.outdate(world_key(world))


def world_key(world: World) -> Any:
    (key,) = world.cache.deployments
    return key


def pending(world: World) -> str | None:
    return (world.status.get("pendingPlan") or {}).get("hash")


async def serving() -> tuple[World, str]:
    """A world in which an approved plan serves with two replicas."""
    world = World()
    await world.written(asked(replicas=2))
    await world.settled()
    first = pending(world)
    assert first is not None
    await world.written(asked(first, replicas=2))
    await world.settled()
    world.run_pods()
    await world.settled()
    assert world.condition("Ready")[0] == "True"
    return world, first


async def test_the_first_plan_waits_and_starts_once_it_is_approved() -> None:
    world = World()
    await world.written(asked(replicas=2))
    await world.settled()
    assert world.replicas == {}
    first = pending(world)
    assert world.condition("PlanApproved")[:2] == ("False", "WaitingForApproval")
    assert f"Plan {first} waits for `turbo approve chat`." in world.condition("PlanApproved")[2]
    assert world.condition("Ready")[:2] == ("False", "WaitingForApproval")
    assert world.condition("Stalled")[:2] == ("True", "UserActionRequired")
    assert world.condition("PlanFeasible")[0] == "True"
    await world.written(asked("v2ffffffff", replicas=2))
    await world.settled()
    assert world.replicas == {}, "another hash approves nothing"
    await world.written(asked(str(first), replicas=2))
    await world.settled()
    assert world.replicas == {f"chat-{first}": 2}
    assert pending(world) is None
    assert world.condition("PlanApproved") == ("True", "Approved", f"Plan {first} is approved.")


async def test_a_better_plan_waits_and_what_runs_is_ready_and_scales() -> None:
    world, first = await serving()
    add_cheaper(world)
    await world.settled()
    second = pending(world)
    assert second not in (None, first)
    assert world.status["pendingPlan"]["accelerator"] == "l4"
    assert world.status["plan"]["accelerator"] == "cpu"
    assert world.replicas == {f"chat-{first}": 2}
    assert world.condition("Ready")[:2] == ("True", "Serving")
    assert world.condition("Stalled")[0] == "False"
    assert world.condition("PlanApproved")[:2] == ("False", "WaitingForApproval")
    await world.written(asked(first, replicas=3))
    await world.settled()
    assert world.replicas == {f"chat-{first}": 3}, "replicas need no approval"
    await world.written(asked(str(second), replicas=3))
    for _ in range(8):
        world.run_pods()
        world.now += 60
        await world.settled()
    assert world.replicas == {f"chat-{second}": 3}
    assert pending(world) is None


async def test_a_change_of_the_spec_waits_too_and_the_earlier_plan_serves_on() -> None:
    world, first = await serving()
    other = {"podTemplate": {"spec": {"env": [{"name": "LOG", "value": "a"}]}}}
    await world.written(asked(first, replicas=2, **other))
    await world.settled()
    second = pending(world)
    assert second not in (None, first)
    assert world.replicas == {f"chat-{first}": 2}
    status, reason, message = world.condition("Ready")
    assert (status, reason) == ("False", "WaitingForApproval")
    assert message.startswith(f"The earlier plan serves on. Plan {second} waits")
    await world.written(asked(first, replicas=3, **other))
    await world.settled()
    assert world.replicas == {f"chat-{first}": 3}
    await world.written(asked(first, replicas=3))
    await world.settled()
    assert pending(world) is None, "what was approved needs no second approval"
    world.run_pods()
    await world.settled()
    assert world.condition("Ready")[0] == "True"


async def test_a_plan_that_waits_takes_no_replica_of_a_planned_policy_away() -> None:
    load = {"scaling": {"mode": "Planned", "minReplicas": 3}}
    world = World()
    await world.written(asked(**load))
    await world.settled()
    await world.written(asked(str(pending(world)), **load))
    await world.settled()
    before = world.replicas
    assert sum(before.values()) == 3
    world.run_pods()
    await world.settled()
    other = {"podTemplate": {"spec": {"env": [{"name": "LOG", "value": "a"}]}}}
    approved = next(iter(before)).removeprefix("chat-")
    await world.written(asked(approved, scaling={"mode": "Planned"}, **other))
    await world.settled()
    assert pending(world) is not None
    assert world.replicas == before


async def test_without_the_policy_there_is_no_such_condition_and_plans_take_effect() -> None:
    world = World()
    await world.written(td(absent=True))
    await world.settled()
    assert sum(world.replicas.values()) == 1
    assert "PlanApproved" not in {each["type"] for each in world.status["conditions"]}


async def test_to_turn_it_on_keeps_what_serves_and_asks_for_no_approval_of_it() -> None:
    world = World()
    await world.written(td(absent=True))
    await world.settled()
    world.run_pods()
    await world.settled()
    before = world.replicas
    await world.written(asked())
    await world.settled()
    assert (world.replicas, pending(world)) == (before, None)
    assert world.condition("PlanApproved")[:2] == ("True", "Approved")


def body(policy: str | None = "Manual", observed: int = 2, **status: Any) -> dict[str, Any]:
    spec = {"planPolicy": {"apply": policy}} if policy else {}
    return {
        "metadata": {"name": "chat", "generation": 2},
        "spec": spec,
        "status": {"observedGeneration": observed, **status},
    }


def test_the_command_approves_only_what_waits_and_was_planned_for_the_spec_as_it_is() -> None:
    plan = {"hash": "v2a", "replicas": 3, "acceleratorsPerReplica": 2, "accelerator": "l4", "engine": "VLLM"}
    assert pending_plan(body(pendingPlan=plan)) == plan
    assert pending_plan(body()) is None
    for policy in ("Auto", None):
        with pytest.raises(BadInputError, match="is Auto: its plans take effect by themselves"):
            pending_plan(body(policy, pendingPlan=plan))
    with pytest.raises(BadInputError, match="not planned as it is now"):
        pending_plan(body(observed=1, pendingPlan=plan))
    more = {"method": "Suffix", "predicted": {"costPerHour": "4.20"}}
    assert describe({**plan, **more}) == "plan v2a: 3 x 2 l4, VLLM, drafts Suffix, 4.20 $/h"
