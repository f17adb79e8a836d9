"""A child that the API server refuses, or that an earlier object left, beside a rollout or a training."""

from __future__ import annotations

from typing import Any

import pytest

from turbo_dev.small_world import KEY, World
from turbo_dev.trainings import td
from turbo_operator.api import TurboDeployment
from turbo_operator.controller import child_writer

PDB = ("PodDisruptionBudget", "chat")


def spec(**more: Any) -> dict[str, Any]:
    scaling = {"mode": "External"}
    return {"accelerators": {"allowed": ["cpu"]}, "capture": None, "replicas": 1, "scaling": scaling, **more}


def serving(**more: Any) -> TurboDeployment:
    return td(absent=True, spec=spec(**more))


def other_plan(**more: Any) -> TurboDeployment:
    return serving(podTemplate={"spec": {"imagePullSecrets": [{"name": "other"}]}}, **more)


async def served(**more: Any) -> tuple[World, str]:
    """A world whose first plan serves, and the name of its Deployment."""
    world = World()
    await world.written(serving(**more))
    await world.settled()
    (name,) = world.replicas
    world.run_pods()
    await world.settled()
    return world, name


async def looked(world: World, times: int, *failing: str) -> None:
    for _ in range(times):
        await world.reconciler.reconcile(KEY)
        world.run_pods(failing)


@pytest.mark.parametrize("refused", [PDB, ("Service", "chat")])
async def test_a_plan_is_rolled_back_though_a_child_that_no_pod_needs_is_refused(
    refused: tuple[str, str],
) -> None:
    """Found in review: the failed plan kept the only accelerator, and nothing served any more."""
    room = {"accelerators": {"allowed": ["cpu"], "maxTotal": 1}, "rollout": {"maxUnavailable": 1}}
    world, old = await served(**room)
    await world.written(other_plan(**room))
    for _ in range(4):
        await world.reconciler.reconcile(KEY)
        world.run_pods([name for name in world.replicas if name != old])
    assert world.replicas.pop(old) == 0
    world.lose(*refused)
    world.server.refused.add(refused)
    for _ in range(4):
        world.now += 700
        await world.reconciler.reconcile(KEY)
        world.run_pods([name for name in world.replicas if name != old])
    assert world.replicas[old] == 1
    assert world.status["rollout"]["reason"] == "RolledBack"


@pytest.mark.parametrize("end", [{"suspend": True}, {"replicas": 0}])
@pytest.mark.parametrize("lost", [PDB, "ControllerRevision"])
async def test_what_is_to_end_ends_whatever_is_refused(end: dict[str, Any], lost: Any) -> None:
    """Found in review: the pods of a suspended one ran, and cost, for as long as its budget was refused."""
    world, name = await served(replicas=2)
    lost = (lost, name) if isinstance(lost, str) else lost
    world.lose(*lost)
    world.server.refused.add(lost)
    await world.written(serving(**{"replicas": 2, **end}))
    await looked(world, 3)
    assert set(world.replicas.values()) == {0}


async def test_a_variant_whose_revision_is_refused_makes_way_like_any_other() -> None:
    """Found in review: it was not lowered, and its successor grew beside it to twice the replicas."""
    world, old = await served(replicas=4)
    world.lose("ControllerRevision", old)
    world.server.refused.add(("ControllerRevision", old))
    await world.written(other_plan(replicas=4))
    for _ in range(12):
        await world.reconciler.reconcile(KEY)
        assert sum(world.replicas.values()) <= 5
        world.run_pods()
    assert [number for name, number in world.replicas.items() if name != old] == [4]
    assert world.replicas.get(old, 0) == 0


async def test_a_service_of_an_earlier_object_makes_it_not_ready_and_is_waited_for() -> None:
    """Found in review: Ready was True, and nothing answered at the address."""
    world = World()
    left = {"name": "chat", "namespace": "team", "uid": "left", "resourceVersion": "1"}
    owner = {"kind": "TurboDeployment", "name": "chat", "uid": "an earlier one", "controller": True}
    body = {"kind": "Service", "metadata": {**left, "ownerReferences": [owner]}, "spec": {"selector": {}}}
    world.server.objects["Service", "chat"] = body
    await world.written(serving())
    seconds = 0.0
    for _ in range(4):
        seconds = await world.reconciler.reconcile(KEY) or 0.0
        world.run_pods()
    assert seconds <= 3.0
    sentence = "Service chat of an earlier TurboDeployment is still being removed"
    for kind, status in (("Ready", "False"), ("Reconciling", "True")):
        found, _, message = world.condition(kind)
        assert (found, message.startswith(sentence)) == (status, True)
    assert world.condition("Stalled")[0] == "False"
    assert set(world.replicas.values()) == {1}


async def test_a_job_of_an_earlier_object_holds_up_the_training_alone() -> None:
    """Found in review: serving was blamed for it, and the training was said to begin."""
    world = World()
    meta = {"name": "chat-train-1", "namespace": "team", "uid": "left", "resourceVersion": "1"}
    owner = {"kind": "TurboDeployment", "name": "chat", "uid": "an earlier one", "controller": True}
    world.server.objects["Job", "chat-train-1"] = {
        "kind": "Job",
        "metadata": {**meta, "ownerReferences": [owner]},
    }
    await world.written(td(spec=spec()))
    await looked(world, 6)
    assert "Job chat-train-1 of an earlier TurboDeployment" in world.condition("DraftTrained")[2]
    assert world.condition("Ready")[0] == "True"


async def test_what_was_seen_too_long_ago_is_looked_at_anew_at_once_and_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Found in review: it counted as a failure, whose next try came later and later."""
    world, old = await served(replicas=2)
    await world.written(other_plan(replicas=2))
    monkeypatch.setattr(child_writer, "FRESH_SECONDS", -1.0)
    seconds = 0.0
    for _ in range(3):
        seconds = await world.reconciler.reconcile(KEY) or 0.0
        world.run_pods()
    assert (seconds, world.replicas[old]) == (1.0, 2)
    assert "what was seen is looked at anew" in world.condition("Ready")[2]
    monkeypatch.undo()
    await looked(world, 4)
    assert world.replicas.get(old, 0) == 0


async def test_a_pod_that_loses_the_label_by_which_traffic_finds_it_gets_it_back() -> None:
    """Found on the real node: nothing answered, all fields said that it served, and nothing mended it."""
    world, name = await served(replicas=2)
    first = f"{name}-x-0"
    patched = world.server.patches
    for label in ({"serving.turbo.dev/owner-uid": "foo"}, {}):
        world.relabel(first, label)
        await world.reconciler.reconcile(KEY)
        assert patched.pop() == (first, {"serving.turbo.dev/owner-uid": td().metadata.uid})
        world.run_pods()
    await world.reconciler.reconcile(KEY)
    assert patched == []
