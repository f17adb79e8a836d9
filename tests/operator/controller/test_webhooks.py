"""An admission webhook that is slow, down or against a label or a deletion: the rest goes on and says so."""

from __future__ import annotations

import copy
import time
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest

from turbo_dev.small_world import KEY, PDB, World, looked, other_plan, served, serving, spec
from turbo_dev.trainings import FACTS, draft, td
from turbo_operator.api import LABEL_OWNER_UID
from turbo_operator.controller import child_writer, pod_labels, reconciler
from turbo_operator.controller.kube import KubeError, RefusedError, WebhookError, error_of

DENIED = RefusedError(403, "Forbidden", 'admission webhook "pods.x" denied the request')
DOWN = error_of(500, b'{"message": "Internal error occurred: failed calling webhook pods.x: no endpoints"}')


def fail(world: World, method: str, kind: str, error: KubeError) -> None:
    """From now on the API server answers so to this method for a kind."""
    original = getattr(world.server, method)

    async def answer(resource: Any, *rest: Any) -> Any:
        if resource.kind == kind:
            raise error
        return await original(resource, *rest)

    setattr(world.server, method, answer)


def test_a_webhook_that_is_down_is_no_fault_of_the_spec() -> None:
    assert isinstance(DOWN, WebhookError)
    assert not DOWN.is_final
    ill = error_of(500, b'{"message": "etcdserver: request timed out"}')
    assert not isinstance(ill, RefusedError)


async def test_a_plan_is_rolled_back_though_a_webhook_takes_seconds_to_refuse_a_budget(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Found in review: what was seen was too old each time before the failed plan's turn came."""
    room = {"accelerators": {"allowed": ["cpu"], "maxTotal": 1}, "rollout": {"maxUnavailable": 1}}
    world, old = await served(**room)
    late = [0.0]
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + late[0])
    for module in (child_writer, reconciler):
        monkeypatch.setattr(module, "time", clock)
    await world.written(other_plan(**room))
    for _ in range(4):
        await world.reconciler.reconcile(KEY)
        world.run_pods([name for name in world.replicas if name != old])
    assert world.replicas[old] == 0
    apply = world.server.apply

    async def slow(resource: Any, wanted: Any) -> Any:
        if resource.kind == PDB[0]:
            late[0] += 4.0
            raise DENIED
        return await apply(resource, wanted)

    world.lose(*PDB)
    monkeypatch.setattr(world.server, "apply", slow)
    for _ in range(6):
        world.now += 700
        await world.reconciler.reconcile(KEY)
        world.run_pods([name for name in world.replicas if name != old])
    assert world.replicas == {old: 1}


@pytest.mark.parametrize("error", [DENIED, DOWN])
@pytest.mark.parametrize("what", ["label", "Service"])
@pytest.mark.parametrize(("change", "wanted"), [({"suspend": True}, 0), ({"replicas": 4}, 4)])
async def test_replicas_follow_the_spec_though_a_label_or_the_service_cannot_be_written(
    error: KubeError, what: str, change: dict[str, Any], wanted: int
) -> None:
    """Found in review: a pod's label that could not be put back held up a suspension."""
    world, name = await served(replicas=2)
    if what == "label":
        world.relabel(f"{name}-x-0", {})
        fail(world, "merge", "Pod", error)
    else:
        world.lose("Service", "chat")
        fail(world, "apply", "Service", error)
    await world.written(serving(**{"replicas": 2, **change}))
    for _ in range(4):
        await world.reconciler.reconcile(KEY)
    assert world.replicas == {name: wanted}
    _, reason, message = world.condition("Ready")
    assert (reason, error.message in message) == ("ApplyRejected", True)
    assert world.condition("Stalled")[0] == ("True" if error is DENIED else "False")


async def test_pods_that_the_service_does_not_select_do_not_answer() -> None:
    """Found in review: no pod got traffic, and the status said that all serve."""
    world, name = await served(replicas=2)
    fail(world, "merge", "Pod", DENIED)
    for number in (0, 1):
        world.relabel(f"{name}-x-{number}", {LABEL_OWNER_UID: "somebody's"})
    await world.reconciler.reconcile(KEY)
    assert world.replicas == {name: 2}
    assert world.status["readyReplicas"] == 0
    assert world.condition("Ready")[:2] == ("False", "ApplyRejected")
    status, _, message = world.condition("Available")
    assert status == "False"
    assert f"Pod {name}-x-0: NotSelected: Its label {LABEL_OWNER_UID} was changed" in message


@pytest.mark.parametrize(
    "change",
    [
        td(acceleratorName="cpu", spec=spec(suspend=True)),
        td(acceleratorName="cpu", suspend=True, spec=spec()),
        td(absent=True, spec=spec()),
    ],
)
async def test_a_training_ends_though_a_budget_of_disruptions_is_refused(change: Any) -> None:
    """Found in review: it ran on, and was paid for, while the status said that nothing is trained."""
    world = World()
    await world.written(td(acceleratorName="cpu", spec=spec()))
    await looked(world, 5)
    (job,) = world.jobs
    world.pod_of(job, phase="Running")
    await looked(world, 2)
    world.lose(*PDB)
    world.server.refused.add(PDB)
    await world.written(change)
    await looked(world, 3)
    assert not world.jobs


@pytest.mark.parametrize("refused", ["budget", "deletion"])
async def test_a_training_and_a_canary_begin_beside_a_refusal_that_no_pod_feels(refused: str) -> None:
    world, _ = await served(replicas=2)
    if refused == "budget":
        world.lose(*PDB)
        world.server.refused.add(PDB)
    else:
        fail(world, "delete", "ControllerRevision", DENIED)
        await world.written(other_plan(replicas=2))
        await looked(world, 6)
    await world.written(td(acceleratorName="cpu", spec=spec(replicas=2)))
    candidate = draft(7)
    meta = {"name": candidate.name, "namespace": "team", "uid": "d", "resourceVersion": "1"}
    for _ in range(12):
        world.now += 60
        await looked(world, 1)
    assert world.jobs
    world.cache.drafts.put({"metadata": meta}, candidate)
    for _ in range(12):
        world.now += 60
        await looked(world, 1)
    assert sorted(world.replicas.values()) == [1, 1]


async def test_an_api_server_that_is_slow_is_not_told_as_a_lack_of_accelerators(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world, _ = await served(replicas=2)
    await world.written(other_plan(replicas=2))
    monkeypatch.setattr(child_writer, "FRESH_SECONDS", -1.0)
    await looked(world, 3)
    for kind in ("Ready", "Reconciling"):
        _, reason, message = world.condition(kind)
        assert (reason, "The API server is slow" in message) == ("Progressing", True)


async def test_a_label_that_somebody_sets_back_each_time_is_put_back_less_and_less_often() -> None:
    """Found in review: each patch was an event, hence a look at once, hence a patch, without an end."""
    world, name = await served(replicas=2)
    for _ in range(20):
        world.relabel(f"{name}-x-0", {LABEL_OWNER_UID: "somebody's"})
        seconds = await world.reconciler.reconcile(KEY)
    assert len(world.server.patches) < 6
    assert seconds is not None
    assert 0 < seconds < 60


async def test_a_label_that_the_template_of_a_pod_lacks_or_holds_wrongly_ends_nothing() -> None:
    """Found in review: a ControllerRevision may hold anything, and one without labels ended each look."""
    world, name = await served(replicas=2)
    revision = world.server.objects["ControllerRevision", name]
    for labels in (None, {"serving.turbo.dev/accelerator-count": 1}):
        revision["data"]["metadata"]["labels"] = labels
        revision["metadata"]["resourceVersion"] = world.server.version()
        world.cache.put_child(copy.deepcopy(revision))
        await world.reconciler.reconcile(KEY)
    assert world.status["replicas"] == 2


@pytest.mark.parametrize(
    "error", [DENIED, DOWN, KubeError(500, "InternalError", "quota evaluation timed out")]
)
async def test_labels_are_put_back_whatever_else_fails(error: KubeError) -> None:
    world, name = await served(replicas=2)
    world.lose(*PDB)
    fail(world, "apply", PDB[0], error)
    world.relabel(f"{name}-x-0", {})
    with suppress(KubeError):
        await world.reconciler.reconcile(KEY)
    assert [pod for pod, _ in world.server.patches] == [f"{name}-x-0"]


async def test_what_cannot_get_its_owner_back_holds_up_nothing_else() -> None:
    world, name = await served(replicas=2)
    world.server.objects[PDB]["metadata"]["ownerReferences"] = []
    world.cache.mark_deleted(KEY, world.cache.children(KEY, td().metadata.uid)[PDB].view)
    fail(world, "merge", PDB[0], DENIED)
    fail(world, "apply", PDB[0], DENIED)
    await world.written(serving(replicas=2, suspend=True))
    await looked(world, 3)
    assert world.replicas == {name: 0}


async def test_an_answer_of_the_inspect_job_is_kept_until_its_configmap_is_written() -> None:
    """Found in review: the Job went, the answer with it, and pods were made and ended in turn for ever."""
    world, name = await served()
    answer = ("ConfigMap", "chat-model")
    world.lose(*answer)
    await world.reconciler.reconcile(KEY)
    (job,) = world.jobs
    world.server.refused.add(answer)
    ended = {"terminated": {"exitCode": 0, "message": FACTS.to_json()}}
    world.pod_of(job, "inspect", phase="Succeeded", containerStatuses=[{"name": "inspect", "state": ended}])
    for _ in range(6):
        await looked(world, 1)
        assert list(world.jobs) == [job]
        assert world.replicas == {name: 1}
    world.server.refused.clear()
    await looked(world, 2)
    assert not world.jobs


async def test_a_revision_stays_while_the_deletion_of_its_deployment_is_refused() -> None:
    world, old = await served(replicas=2)
    fail(world, "delete", "Deployment", DENIED)
    await world.written(other_plan(replicas=2))
    await looked(world, 8)
    assert ("ControllerRevision", old) in world.server.objects
    assert not world.server.deleted


async def test_replicas_are_lowered_though_labels_take_seconds_to_be_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Found in review: what was seen was too old each time, and no look came to an end of it."""
    world, name = await served(replicas=4)
    late = [0.0]
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + late[0])
    for module in (child_writer, reconciler, pod_labels):
        monkeypatch.setattr(module, "time", clock)

    async def slow(*_: Any) -> None:
        late[0] += 20.0
        raise DENIED

    monkeypatch.setattr(world.server, "merge", slow)
    for number in range(4):
        world.relabel(f"{name}-x-{number}", {})
    await world.written(serving(replicas=2))
    await world.reconciler.reconcile(KEY)
    assert world.replicas == {name: 2}
    assert late[0] == 20.0, "one look patches for a few seconds"


async def test_a_label_that_is_refused_for_days_ends_no_look() -> None:
    """Found in review: the pause doubled until it was no number, and nothing more was written."""
    world, name = await served(replicas=2)
    fail(world, "merge", "Pod", DENIED)
    world.relabel(f"{name}-x-0", {})
    attempts: pod_labels.Attempts = {f"{name}-x-0": (time.monotonic(), 5_000, None), "gone": (0.0, 1, DENIED)}
    uid, refusals = td().metadata.uid, dict[Any, RefusedError]()
    await pod_labels.restore_labels(world.reconciler.api, world.cache, KEY, uid, attempts, refusals)
    assert list(attempts) == [f"{name}-x-0"]
    assert list(refusals.values()) == [DENIED]
