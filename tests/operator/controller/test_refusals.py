"""A child that the API server refuses, or that an earlier object left, beside a rollout or a training."""

from __future__ import annotations

from typing import Any

import pytest

from turbo_dev.small_world import KEY, PDB, World, looked, other_plan, served, serving, spec
from turbo_dev.trainings import draft, td
from turbo_operator.api import LABEL_ACCELERATOR, LABEL_ACCELERATOR_COUNT, LABEL_CAPACITY_TYPE
from turbo_operator.controller import child_writer
from turbo_operator.controller.kube import KubeError


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
    assert "the next reconcile decides by newer data" in world.condition("Ready")[2]
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


async def test_a_label_by_which_a_pod_is_priced_is_put_back() -> None:
    """Found on the real node: a pod that said it had 100 accelerators broke the budget."""
    world, name = await served(replicas=2)
    first, uid = f"{name}-x-0", {"serving.turbo.dev/owner-uid": td().metadata.uid}
    template = world.server.objects["Deployment", name]["spec"]["template"]["metadata"]["labels"]
    priced_by = (LABEL_ACCELERATOR, LABEL_ACCELERATOR_COUNT, LABEL_CAPACITY_TYPE)
    own = {label: template[label] for label in priced_by}
    for wrong in ({"serving.turbo.dev/accelerator-count": "100"}, {"serving.turbo.dev/accelerator": "gold"}):
        world.relabel(first, {**uid, **wrong})
        await world.reconciler.reconcile(KEY)
        assert world.server.patches.pop() == (first, own)
        world.run_pods()


class Successors(set[tuple[str, str]]):
    """All that makes pods, but for what there was."""

    def __init__(self, world: World, kind: str, and_lost: bool) -> None:
        super().__init__()
        self.kind, self.there = kind, set() if and_lost else set(world.server.objects)

    def __contains__(self, place: object) -> bool:
        return isinstance(place, tuple) and place[0] == self.kind and place not in self.there


@pytest.mark.parametrize("kind", ["Deployment", "ControllerRevision"])
@pytest.mark.parametrize("has_revision", [True, False])
@pytest.mark.parametrize(("replicas", "rollout"), [(1, {"maxUnavailable": 1}), (3, {})])
async def test_what_serves_loses_nothing_to_a_successor_that_is_refused(
    kind: str, has_revision: bool, replicas: int, rollout: dict[str, Any]
) -> None:
    """Found in review: where no Deployment was to have replicas, it was taken for an end of all of them."""
    full = {
        "accelerators": {"allowed": ["cpu"], "maxTotal": replicas},
        "replicas": replicas,
        "rollout": rollout,
    }
    world, old = await served(**full)
    if not has_revision:
        world.lose("ControllerRevision", old)
    world.server.refused = Successors(world, kind, and_lost=kind == "ControllerRevision")
    if not has_revision:
        world.server.refused = Successors(world, "ControllerRevision", and_lost=True)
    await world.written(other_plan(**full))
    for _ in range(8):
        world.now += 700
        await looked(world, 1)
        assert world.replicas[old] == replicas


@pytest.mark.parametrize("replicas", [1, 3])
async def test_what_served_and_is_silent_for_a_while_is_not_given_up_for_a_refused_one(replicas: int) -> None:
    """Found in review: while its node started again, it was lowered for what could not be made."""
    full = {"accelerators": {"allowed": ["cpu"], "maxTotal": replicas}, "replicas": replicas}
    world, old = await served(**full)
    world.server.refused = Successors(world, "Deployment", and_lost=False)
    await world.written(other_plan(**full))
    await looked(world, 3)
    silent = world.now
    for _ in range(5):
        await looked(world, 1, old)
        world.report_unavailable(old, silent)
        world.now += 40
    await looked(world, 4)
    assert world.replicas[old] == replicas


async def test_a_suspension_waits_for_no_slow_refusal_and_tells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found in review: each try was too long ago for the next lowering, once a second and for ever."""
    world, name = await served(replicas=2)
    world.lose(*PDB)
    world.server.refused.add(PDB)
    monkeypatch.setattr(child_writer, "FRESH_SECONDS", -1.0)
    await world.written(serving(replicas=2, suspend=True))
    await looked(world, 3)
    assert world.replicas[name] == 0
    assert world.condition("Ready")[1] == "ApplyRejected"


async def test_a_pod_gets_its_label_back_though_a_child_is_refused() -> None:
    world, name = await served(replicas=2)
    world.lose(*PDB)
    world.server.refused.add(PDB)
    world.relabel(f"{name}-x-0", {})
    await world.reconciler.reconcile(KEY)
    assert [pod for pod, _ in world.server.patches] == [f"{name}-x-0"]


async def test_a_training_waits_for_no_canary_that_is_refused() -> None:
    """Found in review: the pod that was never made held up the Job, which was said to begin."""
    world = World()
    await world.written(td(acceleratorName="cpu", spec=spec()))
    await looked(world, 4)
    (job,) = world.jobs
    world.server.refused = Successors(world, "Deployment", and_lost=False)
    candidate = draft(7)
    meta = {
        "name": candidate.name,
        "namespace": "team",
        "uid": "d",
        "resourceVersion": world.server.version(),
    }
    world.cache.drafts.put({"metadata": meta}, candidate)
    await looked(world, 3)
    assert world.condition("DraftPromoted")[1] == "ApplyRejected"
    world.lose("Job", job)
    await looked(world, 6)
    assert list(world.jobs) == [job]


async def test_a_deployment_that_goes_during_a_look_ends_no_look() -> None:
    world, old = await served(replicas=2)
    world.server.refused.add(("ControllerRevision", old))
    world.lose("ControllerRevision", old)
    await world.written(serving(replicas=1))
    apply = world.server.apply

    async def applied(resource: Any, wanted: Any) -> dict[str, Any]:
        if resource.kind == PDB[0] and old in world.replicas:
            world.lose("Deployment", old)
        return await apply(resource, wanted)

    world.server.apply = applied  # type: ignore[method-assign]
    for _ in range(3):
        await world.reconciler.reconcile(KEY)
    assert old not in world.replicas


async def test_a_status_that_is_written_before_the_children_tells_of_the_refusal_that_stands() -> None:
    """Found in review: before a training began, a status said for a moment that nothing was refused."""
    world, _ = await served(replicas=2)
    world.lose(*PDB)
    world.server.refused.add(PDB)
    await looked(world, 3)
    stalled = set()
    apply_status = world.server.apply_status

    async def noted(resource: Any, wanted: Any) -> dict[str, Any]:
        conditions = wanted["status"]["conditions"]
        stalled.add(next(each["status"] for each in conditions if each["type"] == "Stalled"))
        return await apply_status(resource, wanted)

    world.server.apply_status = noted  # type: ignore[method-assign]
    await world.written(td(acceleratorName="cpu", spec=spec(replicas=2)))
    while not world.jobs:
        world.now += 60
        await looked(world, 1)
    assert stalled == {"True"}


async def test_a_refusal_stands_while_another_child_cannot_be_written() -> None:
    """Found in review: the status said that all was well, since what is refused had not been tried."""
    world, name = await served(replicas=2)
    world.lose(*PDB)
    world.server.refused.add(PDB)
    await looked(world, 3)
    apply = world.server.apply

    async def unable(resource: Any, wanted: Any) -> dict[str, Any]:
        if resource.kind == "Deployment":
            raise KubeError(500, "InternalError", "etcd leader changed")
        return await apply(resource, wanted)

    world.server.apply = unable  # type: ignore[method-assign]
    world.scale(name, 1)
    for _ in range(2):
        with pytest.raises(KubeError):
            await world.reconciler.reconcile(KEY)
        assert world.condition("Stalled")[:2] == ("True", "UserActionRequired")
