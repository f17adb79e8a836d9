"""A TurboDeployment in memory: the real reconciler and cache, and an API server of a few lines.

It has no scheduler and no controllers: a test says which pods there are.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from turbo_operator import render
from turbo_operator.api import (
    API_VERSION,
    LABEL_DEPLOYMENT,
    LABEL_OWNER_UID,
    LABEL_ROLE,
    Provisioning,
    TurboDeployment,
    rfc3339,
)
from turbo_operator.controller.budgets.reservations import Reservations
from turbo_operator.controller.cache.store import Cache, Key
from turbo_operator.controller.kube import GoneError, KubeError, RefusedError
from turbo_operator.controller.reconciler import Reconciler
from turbo_operator.inventory.store import InventoryStore
from turbo_operator.resources import CHILDREN, TURBODEPLOYMENT
from turbo_operator.settings import Settings

from .trainings import CORES, NOW, seen, td

KEY = Key("team", "chat")
SETTINGS = Settings(runtime_image="r:1")
PDB = ("PodDisruptionBudget", "chat")


class Server:
    """Keeps what is applied, and gives it back; it refuses what `refused` has by kind and name."""

    def __init__(self) -> None:
        self.refused: set[tuple[str, str]] = set()
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        self.deleted: list[str] = []
        self.patches: list[tuple[str, dict[str, str]]] = []  # of labels
        self.unable = False  # to take a status
        self.gone = False  # the TurboDeployment is: its event has yet to come
        self._versions = itertools.count(1)

    def version(self) -> str:
        """The next resource version."""
        return str(next(self._versions))

    async def apply(self, resource: Any, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """Keep an object."""
        body, number = copy.deepcopy(dict(wanted)), self.version()
        place = (resource.kind, body["metadata"]["name"])
        if place in self.refused:
            raise RefusedError(403, "Forbidden", f"{place[1]} is above a quota")
        held = self.objects.get(place, {"metadata": {}})
        body["metadata"] = {"uid": f"uid-{number}"} | held["metadata"] | body["metadata"]
        if body != held:
            body["metadata"]["resourceVersion"] = number
            self.objects[place] = body
        return body

    async def apply_status(self, resource: Any, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """Keep a status."""
        if self.gone:
            raise GoneError(404, "NotFound", "there is no such object")
        if self.unable:
            raise KubeError(500, "Unable", "no status is taken")
        body = self.objects[resource.kind, wanted["metadata"]["name"]]
        body |= {"status": copy.deepcopy(wanted["status"])}
        body["metadata"]["resourceVersion"] = self.version()
        return body

    async def merge(
        self, resource: Any, _namespace: str, name: str, patch: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Merge a patch of a spec; note one of labels, whose pod a test shows as it is then."""
        if (labels := patch["metadata"].get("labels")) is not None:
            self.patches.append((name, labels))
            return {}
        body = self.objects[resource.kind, name]
        body["metadata"]["resourceVersion"] = self.version()
        body["spec"] |= patch["spec"]
        return copy.deepcopy(body)

    async def delete(self, resource: Any, _namespace: str, name: str, _uid: str) -> None:
        """Remove an object."""
        self.deleted.append(name)
        del self.objects[resource.kind, name]

    async def find(self, resource: Any, _namespace: str, name: str) -> dict[str, Any] | None:
        """Find an object."""
        return self.objects.get((resource.kind, name))


class World:
    """A cluster of cores, a TurboDeployment whose model is known, and its reconciler."""

    def __init__(self) -> None:
        self.server, self.cache, self.now = Server(), Cache(), NOW
        self._pods: dict[str, int] = {}
        api: Any = self.server
        self.reconciler = Reconciler(
            self.cache,
            InventoryStore(lambda _: None),
            api,
            SETTINGS,
            lambda: self.now,
            Reservations(self.cache),
        )
        row = replace(CORES, provisioning=Provisioning.ELASTIC)
        self.cache.accelerators.put({"metadata": {"name": "cpu", "uid": "a", "resourceVersion": "1"}}, row)

    async def written(self, it: TurboDeployment) -> None:
        """Somebody applies the spec."""
        spec = it.model_dump(mode="json", by_alias=True, exclude_none=True)["spec"]
        meta: dict[str, Any] = {"name": "chat", "namespace": "team", "uid": it.metadata.uid, "generation": 1}
        meta["annotations"] = dict(it.metadata.annotations)
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

    def pod_of(self, job: str, role: str = "train", **status: Any) -> None:
        """Its pod, as a watch shows it."""
        labels = {LABEL_DEPLOYMENT: "chat", LABEL_ROLE: role}
        owner = {"kind": "Job", "name": job, "uid": self.jobs[job], "controller": True}
        meta = {"name": f"{job}-p", "namespace": "team", "uid": "p", "resourceVersion": "9", "labels": labels}
        self.cache.pods.put(
            {"metadata": {**meta, "ownerReferences": [owner]}, "spec": {"nodeName": "n"}, "status": status}
        )

    @property
    def jobs(self) -> dict[str, str]:
        """The uids of all of them, by name."""
        return {
            name: body["metadata"]["uid"]
            for (kind, name), body in self.server.objects.items()
            if kind == "Job"
        }

    @property
    def status(self) -> dict[str, Any]:
        """Of the TurboDeployment."""
        status: dict[str, Any] = self.server.objects["TurboDeployment", "chat"]["status"]
        return status

    @property
    def replicas(self) -> dict[str, int]:
        """By name of the Deployment."""
        objects = self.server.objects.items()
        return {name: body["spec"]["replicas"] for (kind, name), body in objects if kind == "Deployment"}

    def condition(self, kind: str) -> tuple[str, str, str]:
        """Status, reason and message of a condition."""
        (it,) = (each for each in self.status["conditions"] if each["type"] == kind)
        return it["status"], it["reason"], it["message"]

    def run_pods(self, failing: Collection[str] = ()) -> None:
        """The Deployments' pods, and what their controller counts: ready but for those of `failing` ones."""
        for name, replicas in self.replicas.items():
            body = self.server.objects["Deployment", name]
            meta, ready = body["metadata"], name not in failing
            meta |= {"generation": 1, "resourceVersion": self.server.version()}
            counts = {"replicas": replicas, "availableReplicas": replicas if ready else 0}
            body["status"] = {**counts, "observedGeneration": 1}
            self.cache.put_child(copy.deepcopy(body))
            labels = body["spec"]["template"]["metadata"]["labels"]
            replica_set = self._owned("ReplicaSet", f"{name}-x", labels, ("Deployment", name, meta["uid"]))
            self.cache.pods.put_set(replica_set)
            for number in range(max(replicas, self._pods.get(name, 0))):
                pod = self._pod(f"{name}-x-{number}", labels, ready)
                (self.cache.pods.put if number < replicas else self.cache.pods.drop)(pod)
            self._pods[name] = replicas

    def report_unavailable(self, name: str, since: float) -> None:
        """Its controller says of a Deployment that too few have been available since then."""
        body = self.server.objects["Deployment", name]
        body["metadata"]["resourceVersion"] = self.server.version()
        condition = {"type": "Available", "status": "False", "lastTransitionTime": rfc3339(since)}
        body["status"]["conditions"] = [condition]
        self.cache.put_child(copy.deepcopy(body))

    def report_ready(self, name: str, of: int | None = None, available: int = 0) -> None:
        """Pods of a Deployment answer, the first `of` or all; so many have done so for minReadySeconds."""
        body = self.server.objects["Deployment", name]
        body["metadata"]["resourceVersion"] = self.server.version()
        body["status"]["availableReplicas"] = available
        self.cache.put_child(copy.deepcopy(body))
        labels = body["spec"]["template"]["metadata"]["labels"]
        for number in range(self.replicas[name]):
            self.cache.pods.put(self._pod(f"{name}-x-{number}", labels, of is None or number < of))

    def relabel(self, pod: str, labels: Mapping[str, str]) -> None:
        """Somebody edits the label by which traffic finds a pod."""
        name = pod.rpartition("-x-")[0]
        template = self.server.objects["Deployment", name]["spec"]["template"]["metadata"]["labels"]
        others = {key: value for key, value in template.items() if key != LABEL_OWNER_UID}
        self.cache.pods.put(self._pod(pod, {**others, **labels}, ready=True))

    def scale(self, name: str, replicas: int) -> None:
        """Somebody scales a Deployment, which its controller has not seen yet."""
        body = self.server.objects["Deployment", name]
        body["spec"]["replicas"] = replicas
        body["metadata"] |= {"resourceVersion": self.server.version(), "generation": 2}
        self.cache.put_child(copy.deepcopy(body))

    def lose(self, kind: str, name: str) -> None:
        """Somebody deletes a child."""
        body = self.server.objects.pop((kind, name))
        self.cache.drop_child(
            {**body, "metadata": {**body["metadata"], "resourceVersion": self.server.version()}}
        )

    def _pod(self, name: str, labels: Mapping[str, str], ready: bool) -> dict[str, Any]:
        """Return a pod of the ReplicaSet that its name tells."""
        owner = name.rpartition("-")[0]
        condition = {"type": "Ready", "status": str(ready), "lastTransitionTime": "2026-01-01T00:00:00Z"}
        status = {"phase": "Running", "conditions": [condition]}
        body = self._owned("Pod", name, labels, ("ReplicaSet", owner, owner))
        return {**body, "spec": {"nodeName": "n"}, "status": status}

    def _owned(
        self, kind: str, name: str, labels: Mapping[str, str], owner: tuple[str, str, str]
    ) -> dict[str, Any]:
        """Return an object that another one, by kind, name and uid, controls."""
        reference = {**dict(zip(("kind", "name", "uid"), owner, strict=True)), "controller": True}
        meta = {
            "name": name,
            "uid": name,
            "namespace": "team",
            "labels": {**labels, "pod-template-hash": "x"},
        }
        version = {"resourceVersion": self.server.version()}
        return {"kind": kind, "metadata": {**meta, **version, "ownerReferences": [reference]}}


def spec(**more: Any) -> dict[str, Any]:
    """The spec of one that is scaled from outside."""
    scaling = {"mode": "External"}
    return {"accelerators": {"allowed": ["cpu"]}, "capture": None, "replicas": 1, "scaling": scaling, **more}


def serving(**more: Any) -> TurboDeployment:
    """A TurboDeployment of that spec."""
    return td(absent=True, spec=spec(**more))


def other_plan(**more: Any) -> TurboDeployment:
    """The same with another plan hash."""
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
    """So many looks, each with its pods."""
    for _ in range(times):
        await world.reconciler.reconcile(KEY)
        world.run_pods(failing)
