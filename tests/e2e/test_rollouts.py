"""Four rollouts each of many TurboDeployments while pods fail, judged by the API server's audit log.

The cluster is real up to the kubelet: its scheduler binds pods to nodes on which a seeded one reports them,
failing, hanging, flapping, evicted and slow to end. What must hold at every instant is in
turbo_dev.rollout_invariants.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Any

import pytest

from turbo_dev.audit_reader import AuditReader
from turbo_dev.audit_timeline import seconds
from turbo_dev.chaos_kubelet import MISHAPS, ChaosKubelet
from turbo_dev.fakenodes import GPU, gpu_accelerator, gpu_node
from turbo_dev.rollout_invariants import Judge, unfinished
from turbo_dev.sizes import size
from turbo_operator import resources

pytestmark = pytest.mark.cluster

SEED = 20260707
NUM_DEPLOYMENTS, NUM_CHANGES = size(25, 50), 4  # of each; all fifty in `make test-full`
PRICE = "2.50"
ROOMY, SCARCE = "storm-roomy", "storm-scarce"
NODES = {ROOMY: (4, 50), SCARCE: (size(1, 2), 8)}  # and the GPUs of each
LAG_SECONDS = 8.0  # of the operator behind the API server on a busy machine
PROGRESS_SECONDS = 6
REST_SECONDS = PROGRESS_SECONDS + 4.0  # without a write by the operator or a step of the kubelet
LOOK_SECONDS = 0.5  # between two looks at all objects
IMPATIENCE_SECONDS = 12.0
PATIENCE = 400.0
FREE, TIGHT, QUOTA, TOTAL, BUDGET = BOUNDS = ("free", "tight", "quota", "total", "budget")
ROLLOUTS: tuple[dict[str, int], ...] = (
    {},
    {},
    {"maxUnavailable": 1},
    {"maxSurge": 2, "maxUnavailable": 1},
    {"maxSurge": 0, "maxUnavailable": 1},
    {"maxSurge": 0, "maxUnavailable": 2},
)


class Storm:
    """The TurboDeployments, what is still to be changed about each, and the kubelet."""

    def __init__(self, cluster: Any) -> None:
        self.cluster = cluster
        self.dice = random.Random(SEED)
        self.namespaces = {bound: cluster.namespace(f"storm-{bound}") for bound in BOUNDS}
        nodes = [
            gpu_node(f"{kind}-{number}", kind, gpus)
            for kind, (count, gpus) in NODES.items()
            for number in range(count)
        ]
        self.nodes = {node["metadata"]["name"] for node in nodes}
        self.kubelet = ChaosKubelet(cluster.api, set(self.namespaces.values()), self.nodes, SEED)
        cluster.access.apply(
            *nodes, gpu_accelerator(ROOMY, PRICE, provisioning="Elastic"), gpu_accelerator(SCARCE, PRICE)
        )
        quota = {
            "apiVersion": "v1",
            "kind": "ResourceQuota",
            "metadata": {"name": "gpus", "namespace": self.namespaces[QUOTA]},
            "spec": {"hard": {f"requests.{GPU}": str(2 * NUM_DEPLOYMENTS // len(BOUNDS))}},
        }
        cluster.api.create(resources.QUOTA, quota)
        self.left: dict[tuple[str, str], list[dict[str, Any]]] = {}
        self.changed: dict[tuple[str, str], float] = {}
        self.log = AuditReader(cluster.access, "storm-")
        self.events: list[dict[str, Any]] = []

    def create(self) -> None:
        for number in range(NUM_DEPLOYMENTS):
            bound = BOUNDS[number % len(BOUNDS)]
            namespace, name = self.namespaces[bound], f"storm-{number}"
            spec: dict[str, Any] = {
                "model": {"uri": "hf://maker/model"},
                "accelerators": {"allowed": [SCARCE if bound == TIGHT else ROOMY]},
                "replicas": self.dice.choice((1, 1, 2, 2, 3)),
                "rollout": self.rollout(),
            }
            if bound == TOTAL:
                spec["accelerators"]["maxTotal"] = 3
            if bound == BUDGET:
                spec["cost"] = {"maxPerHour": "7.50"}
            self.cluster.create_deployment(namespace, name, **spec)
            self.left[namespace, name] = [self.change() for _ in range(NUM_CHANGES)]
            self.changed[namespace, name] = time.monotonic()

    def rollout(self) -> dict[str, Any]:
        chosen = self.dice.choice(ROLLOUTS)
        return chosen | {
            "minReadySeconds": self.dice.choice((0, 1)),
            "progressDeadline": f"{PROGRESS_SECONDS}s",
        }

    def change(self) -> dict[str, Any]:
        """A patch of the spec, and whether it waits for the rollout before it."""
        kind = self.dice.choice(
            ("drafts", "drafts", "length", "length", "image", "image", "replicas", "suspend")
        )
        spec: dict[str, Any] = {"suspend": False}
        if kind == "drafts":
            spec["speculation"] = {"maxDraftTokens": self.dice.randint(1, 8)}
        elif kind == "length":
            spec["model"] = {"maxModelLen": self.dice.choice((1024, 2048, 3072, 4096, 6144))}
        elif kind == "image":
            image = f"registry.test/turbo-runtime:{self.dice.randint(2, 9)}"
            spec["engine"] = {"type": "Turbo", "image": image}
        elif kind == "suspend":
            spec = {"suspend": True}
        if kind == "replicas" or self.dice.random() < 0.3:
            spec["replicas"] = self.dice.choice((0, 1, 2, 3, 3))
        return {"spec": spec, "waits": self.dice.random() < 0.8}

    def step(self) -> None:
        """Make the changes whose time has come."""
        for body in self.cluster.api.send("GET", resources.TURBODEPLOYMENT.path())["items"]:
            key = body["metadata"]["namespace"], body["metadata"]["name"]
            left = self.left.get(key)
            if not left:
                continue
            waited = time.monotonic() - self.changed[key]
            if left[0]["waits"] and not has_settled(body) and waited < IMPATIENCE_SECONDS:
                continue
            self.cluster.api.patch(resources.TURBODEPLOYMENT, *key, {"spec": left.pop(0)["spec"]})
            self.changed[key] = time.monotonic()

    def judge(self) -> Judge:
        """What the audit log says up to now."""
        self.events += self.log.read()
        judge = Judge(self.cluster.user, LAG_SECONDS)
        judge.follow(self.events)
        return judge

    def rests(self) -> bool:
        assert self.kubelet.problem is None, self.kubelet.problem
        if not self.kubelet.is_idle or time.monotonic() - self.kubelet.last_step < REST_SECONDS:
            return False
        time.sleep(LOOK_SECONDS)
        self.events += self.log.read()
        mine = (event for event in reversed(self.events) if event["user"]["username"] == self.cluster.user)
        return time.time() - seconds(next(mine)["stageTimestamp"]) > REST_SECONDS

    def clear(self) -> None:
        self.kubelet.stopping.set()
        self.kubelet.join(10)
        for namespace, name in self.left:
            self.cluster.api.send("DELETE", resources.TURBODEPLOYMENT.path(namespace, name))
        self.cluster.access.kubectl("delete", "node", *self.nodes)
        self.cluster.access.kubectl("delete", "turboaccelerator", ROOMY, SCARCE)


def has_settled(body: dict[str, Any]) -> bool:
    status = body.get("status") or {}
    conditions = {each["type"]: each["status"] for each in status.get("conditions", ())}
    is_of_spec = status.get("observedGeneration") == body["metadata"]["generation"]
    return is_of_spec and conditions.get("Reconciling") == "False"


@pytest.fixture
def storm(cluster: Any) -> Iterator[Storm]:
    cluster.kubelet.refused.add("storm-")
    storm = Storm(cluster)
    storm.kubelet.start()
    try:
        yield storm
    finally:
        cluster.stop_all()
        storm.clear()


def test_rollouts_amid_faults_keep_every_invariant_and_end(storm: Storm) -> None:
    storm.cluster.start(",".join(storm.namespaces.values()))
    storm.create()

    def all_changed() -> bool:
        storm.step()
        time.sleep(LOOK_SECONDS)
        return not any(storm.left.values())

    storm.cluster.until(all_changed, "every spec has been changed", PATIENCE)
    storm.cluster.until(storm.rests, "nothing is written any more", PATIENCE)
    judge = storm.judge()
    broken = [*judge.violations, *unfinished(judge.state)]
    first = f"\n\n{judge.story(broken[0].owner)}" if broken else ""
    assert not broken, "\n".join(map(str, broken)) + first
    assert {"ready", "crash", "image", "end", *MISHAPS} <= set(storm.kubelet.done), storm.kubelet.done
