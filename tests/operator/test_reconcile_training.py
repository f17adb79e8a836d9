"""What the reconcile writes of a training, against an API server of a few lines."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import REGISTRY

from turbo_dev.trainings import CORES, NOW, seen, td
from turbo_operator import render
from turbo_operator.api import API_VERSION, LABEL_DEPLOYMENT, LABEL_ROLE, Provisioning, TurboDeployment
from turbo_operator.controller.cache.store import Cache, Key
from turbo_operator.controller.kube import GoneError, KubeError
from turbo_operator.controller.reconciler import Reconciler
from turbo_operator.inventory.store import InventoryStore
from turbo_operator.resources import CHILDREN, TURBODEPLOYMENT
from turbo_operator.settings import Settings

KEY = Key("team", "chat")
SETTINGS = Settings(runtime_image="r:1")


class Server:
    """Keeps what is applied, and gives it back."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        self.deleted: list[str] = []
        self.unable = False  # to take a status
        self.gone = False  # the TurboDeployment is: its event has yet to come
        self._versions = itertools.count(1)

    async def apply(self, resource: Any, wanted: Mapping[str, Any]) -> dict[str, Any]:
        body, number = copy.deepcopy(dict(wanted)), str(next(self._versions))
        place = (resource.kind, body["metadata"]["name"])
        held = self.objects.get(place, {"metadata": {}})
        body["metadata"] = {"uid": f"uid-{number}"} | held["metadata"] | body["metadata"]
        if body != held:
            body["metadata"]["resourceVersion"] = number
            self.objects[place] = body
        return body

    async def apply_status(self, resource: Any, wanted: Mapping[str, Any]) -> dict[str, Any]:
        if self.gone:
            raise GoneError(404, "NotFound", "there is no such object")
        if self.unable:
            raise KubeError(500, "Unable", "no status is taken")
        body = self.objects[resource.kind, wanted["metadata"]["name"]]
        body |= {"status": copy.deepcopy(wanted["status"])}
        body["metadata"]["resourceVersion"] = str(next(self._versions))
        return body

    async def delete(self, resource: Any, namespace: str, name: str, uid: str) -> None:
        self.deleted.append(name)
        del self.objects[resource.kind, name]

    async def find(self, resource: Any, namespace: str, name: str) -> dict[str, Any] | None:
        return self.objects.get((resource.kind, name))


class World:
    """A cluster of cores, a TurboDeployment whose model is known, and its reconciler."""

    def __init__(self) -> None:
        self.server, self.cache, self.now = Server(), Cache(), NOW
        api: Any = self.server
        self.reconciler = Reconciler(
            self.cache, InventoryStore(lambda _: None), api, SETTINGS, lambda: self.now
        )
        row = replace(CORES, provisioning=Provisioning.ELASTIC)
        self.cache.accelerators.put({"metadata": {"name": "cpu", "uid": "a", "resourceVersion": "1"}}, row)

    async def written(self, it: TurboDeployment) -> None:
        """Somebody applies the spec."""
        spec = it.model_dump(mode="json", by_alias=True, exclude_none=True)["spec"]
        meta = {"name": "chat", "namespace": "team", "uid": it.metadata.uid, "generation": 1}
        kind = {"apiVersion": API_VERSION, "kind": "TurboDeployment"}
        before = self.server.objects.get(("TurboDeployment", "chat"), {})
        body = {**kind, "metadata": meta, "spec": spec, "status": before.get("status", {})}
        self.cache.put_deployment(await self.server.apply(TURBODEPLOYMENT, body))
        model = next(each for each in render.children(it, seen(), None, (), SETTINGS) if "data" in each)
        self.cache.put_child(await self.server.apply(CHILDREN["ConfigMap"], model))

    async def settled(self) -> None:
        """Look as long as there is something to write."""
        for _ in range(10):
            before = copy.deepcopy(self.server.objects)
            await self.reconciler.reconcile(KEY)
            if before == self.server.objects:
                return
        raise AssertionError("it writes on and on")

    def pod_of(self, job: str, **status: Any) -> None:
        """Its pod, as a watch shows it."""
        labels = {LABEL_DEPLOYMENT: "chat", LABEL_ROLE: "train"}
        owner = {"kind": "Job", "name": job, "uid": self.jobs[job], "controller": True}
        meta = {"name": f"{job}-p", "namespace": "team", "uid": "p", "resourceVersion": "9", "labels": labels}
        self.cache.pods.put(
            {"metadata": {**meta, "ownerReferences": [owner]}, "spec": {"nodeName": "n"}, "status": status}
        )

    @property
    def jobs(self) -> dict[str, str]:
        """The uids of those that train."""
        return {
            name: body["metadata"]["uid"]
            for (kind, name), body in self.server.objects.items()
            if kind == "Job"
        }

    @property
    def status(self) -> dict[str, Any]:
        told: dict[str, Any] = self.server.objects["TurboDeployment", "chat"]["status"]
        return told


def asked(**more: Any) -> TurboDeployment:
    return td(spec={"accelerators": {"allowed": ["cpu"]}, "capture": None, **more.pop("spec", {})}, **more)


async def test_a_job_that_has_not_run_makes_room_for_what_the_spec_asks_for_now() -> None:
    world = World()
    await world.written(asked(acceleratorName="cpu"))
    await world.settled()
    first = world.jobs
    assert list(first) == ["chat-train-1"]
    await world.settled()
    assert (world.jobs, world.server.deleted) == (first, [])

    secrets = {"spec": {"podTemplate": {"spec": {"imagePullSecrets": [{"name": "right"}]}}}}
    await world.written(asked(acceleratorName="cpu", **secrets))
    await world.settled()
    assert "chat-train-1" in world.server.deleted
    second = world.jobs
    assert list(second) == ["chat-train-1"]
    assert second != first

    await world.written(
        asked(acceleratorName="cpu", prompts={"type": "ConfigMap", "configMap": {"name": "right"}}, **secrets)
    )
    await world.settled()
    third = world.jobs
    assert list(third) == ["chat-train-1"]
    assert third != second

    running = [{"name": "train", "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}]
    world.pod_of("chat-train-1", phase="Running", containerStatuses=running)
    await world.written(asked(acceleratorName="cpu", maxOutputTokens=64))
    await world.settled()
    assert world.jobs == third


async def test_an_end_is_counted_once_it_is_written_and_once_only() -> None:
    def counted() -> float:
        labels = {"namespace": "team", "name": "chat", "result": "TrainingFailed"}
        return REGISTRY.get_sample_value("turbo_trainings_total", labels) or 0.0

    world = World()
    await world.written(asked(acceleratorName="cpu"))
    await world.settled()
    before = counted()
    ended = {"exitCode": 3, "message": "no", "startedAt": "2026-01-01T00:00:00Z"}
    over = [{"name": "train", "state": {"terminated": ended}}]
    world.pod_of("chat-train-1", phase="Failed", containerStatuses=over)
    failed = copy.deepcopy(world.server.objects["Job", "chat-train-1"])
    failed["metadata"]["resourceVersion"] = "1000"
    failed["status"] = {"conditions": [{"type": "Failed", "status": "True", "reason": "PodFailurePolicy"}]}
    world.cache.put_child(failed)
    world.server.unable = True
    with pytest.raises(KubeError):
        await world.reconciler.reconcile(KEY)
    assert counted() == before
    world.server.unable = False
    await world.settled()
    assert world.status["training"]["result"] == "TrainingFailed"
    assert counted() == before + 1
    assert list(world.jobs) == ["chat-train-1"]  # with its logs


async def test_what_a_training_that_waits_was_told_is_among_what_a_count_may_outdate() -> None:
    world = World()
    await world.written(asked())
    await world.settled()
    plan, _ = world.reconciler.plans_of(KEY)
    await world.written(asked(suspend=True))
    await world.settled()
    assert [each.choice for each in world.reconciler.plans_of(KEY)] == [plan.choice]


async def test_an_object_that_is_gone_is_not_looked_at_again_until_its_event_comes() -> None:
    """The status of one that was deleted is refused with 404: asking again at once would never end."""
    world = World()
    await world.written(td(absent=True))
    world.server.gone = True
    assert await world.reconciler.reconcile(KEY) is None
