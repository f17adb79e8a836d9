"""A fleet of TurboDeployments with a budget and two operators, and the faults that it has to get over."""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from harness import HERE

from scale.proxy import Proxy
from turbo_dev.access import kubeconfig
from turbo_dev.api import ApiRefusalError
from turbo_dev.controlplane import ControlPlane
from turbo_dev.fakenodes import gpu_accelerator, gpu_node
from turbo_dev.operated import RELEASE, SYSTEM, OperatedCluster, OperatorProcess, turbo_deployment, until
from turbo_operator import resources
from turbo_operator.api import API_VERSION, LABEL_DEPLOYMENT, LABEL_OWNER_UID, LABEL_ROLE
from turbo_operator.settings import Settings

PRODUCT, PRICE = "chaos", "1.00"
NUM_NODES, GPUS_PER_NODE = 6, 40
LEASE, OTHER = "turbo", "turbo-other"  # an account with the same rights, to know the writers apart
IMAGE = "registry.test/turbo-runtime:1"
MAX_REPLICAS = 3
TAKEOVER_SECONDS = 120.0
DEPLOYMENT = resources.CHILDREN["Deployment"]
CHILDREN = ("Service", "PodDisruptionBudget", "ConfigMap", "ControllerRevision", "Deployment")


class Fleet:
    """The cluster, its objects, and the two operators with a proxy each."""

    def __init__(self, plane: ControlPlane, cluster: OperatedCluster, directory: Path, size: int) -> None:
        self.plane, self.cluster, self._directory = plane, cluster, directory
        self.namespace = cluster.namespace("chaos")
        self.names = [f"td-{number}" for number in range(size)]
        # Not all can have what they may ask for.
        self.budget = int(size * 1.8)
        self.settings = Settings(runtime_image=IMAGE)
        self.takeovers: list[float] = []
        self._emulator: subprocess.Popen[bytes] | None = None
        self._nodes = [gpu_node(f"node-{number}", PRODUCT, GPUS_PER_NODE) for number in range(NUM_NODES)]
        self._logs: list[Path] = []
        self._proxies: list[Proxy] = []
        self._ways: list[Path] = []  # kubeconfigs through the proxies
        self.operators: list[OperatorProcess] = []

    @property
    def accounts(self) -> frozenset[str]:
        """The users of the operators."""
        return frozenset(f"system:serviceaccount:{SYSTEM}:{name}" for name in (RELEASE, OTHER))

    def create(self) -> None:
        """Nodes, budget, operators and objects."""
        access = self.cluster.access
        access.apply(gpu_accelerator(PRODUCT, PRICE), *self._nodes)
        bounds = {"accelerators": {"maxTotal": self.budget}, "maxPerHour": f"{self.budget}.00"}
        meta = {"name": "team", "namespace": self.namespace}
        access.apply({"apiVersion": API_VERSION, "kind": "TurboBudget", "metadata": meta, "spec": bounds})
        self.emulate()
        port = urlsplit(access.url).port
        assert port is not None
        for name in (RELEASE, OTHER):
            proxy = Proxy(port)
            self._proxies.append(proxy)
            self._ways.append(self._way(name, proxy.port))
        self.operators = [self._start(0), self._start(1)]
        for number, name in enumerate(self.names):
            self._create(name, 1 + number % MAX_REPLICAS)

    def close(self) -> None:
        """End what was started."""
        for proxy in self._proxies:
            proxy.close()
        if self._emulator is not None:
            self._emulator.kill()
            self._emulator.wait(10)

    def _create(self, name: str, replicas: int) -> None:
        body = turbo_deployment(
            self.namespace,
            name,
            model={"uri": "hf://maker/model"},
            accelerators={"allowed": [PRODUCT]},
            engine={"type": "Turbo"},
            replicas=replicas,
        )
        self.cluster.api.create(resources.TURBODEPLOYMENT, body)

    def _way(self, account: str, port: int) -> Path:
        access = self.cluster.access
        if account == OTHER:
            access.kubectl("create", "serviceaccount", OTHER, "-n", SYSTEM)
            subject = {"kind": "ServiceAccount", "name": OTHER, "namespace": SYSTEM}
            for kind in ("rolebindings", "clusterrolebindings"):
                for item in json.loads(access.kubectl("get", kind, "-A", "-o", "json"))["items"]:
                    if any(each.get("name") == RELEASE for each in item.get("subjects", ())):
                        place = item["metadata"].get("namespace")
                        item["metadata"] = {"name": f"{item['metadata']['name']}-other", "namespace": place}
                        item["subjects"] = [subject]
                        access.apply(item)
        token = access.kubectl("create", "token", account, "-n", SYSTEM, "--duration=8h").strip()
        assert access.ca is not None
        path = self._directory / f"{account}.through-proxy"
        path.touch(mode=0o600)
        path.write_text(kubeconfig(f"https://127.0.0.1:{port}", access.ca.read_text(), token))
        return path

    def _start(self, number: int) -> OperatorProcess:
        settings = {"TURBO_LEASE_NAME": LEASE, "TURBO_OPERATOR_NAMESPACE": SYSTEM}
        operator = self.cluster.start(self.namespace, KUBECONFIG=str(self._ways[number]), **settings)
        self._logs.append(operator.log)
        return operator

    def emulate(self, *flags: str) -> None:
        """Answer the reads of pods' loads, by an emulator with these flags."""
        if self._emulator is not None:
            self._emulator.kill()
            self._emulator.wait(10)
        self._emulator = subprocess.Popen([sys.executable, "-m", "scale.emulator", *flags], cwd=HERE)

    # What is there

    def leader(self) -> int:
        """Which of the operators leads, once one does."""
        return int(until(lambda: self._leads(), "an operator leads", TAKEOVER_SECONDS)) - 1

    def _leads(self) -> int:
        """One more than the number of the leader; 0 while there is none."""
        for number, operator in enumerate(self.operators):
            if operator.process.poll() is None and operator.leads:
                return number + 1
        return 0

    def recover(self) -> None:
        """Start again what has ended, as the kubelet would."""
        for number, operator in enumerate(self.operators):
            if operator.process.poll() is not None:
                self.operators[number] = self._start(number)

    def orphans(self) -> list[str]:
        """Children and pods of no object that there is."""
        bodies = self.cluster.api.list(resources.TURBODEPLOYMENT, self.namespace)
        uids = {body["metadata"]["uid"] for body in bodies}
        children = self.cluster.children(self.namespace)
        found = [
            name
            for name, child in children.items()
            if not uids & {owner["uid"] for owner in child["metadata"].get("ownerReferences", ())}
        ]
        pods = self.cluster.api.list(resources.POD, self.namespace)
        labels = {pod["metadata"]["name"]: pod["metadata"].get("labels") or {} for pod in pods}
        # Pods that serve have the uid of their object; of those that inspect, the Job is one of the children.
        return found + [
            f"Pod/{name}" for name, own in labels.items() if own.get(LABEL_OWNER_UID) not in (None, *uids)
        ]

    def deployments(self) -> set[str]:
        """The names of all Deployments."""
        return {item["metadata"]["name"] for item in self.cluster.api.list(DEPLOYMENT, self.namespace)}

    def lost_pods(self) -> list[str]:
        """Pods whose node is gone."""
        nodes = {item["metadata"]["name"] for item in self.cluster.api.send("GET", "/api/v1/nodes")["items"]}
        pods = self.cluster.api.list(resources.POD, self.namespace)
        return [pod["metadata"]["name"] for pod in pods if pod["spec"].get("nodeName", "") not in nodes]

    def tracebacks(self) -> int:
        """Count those in the logs of all operators."""
        texts = {path: path.read_text(encoding="utf-8") for path in self._logs}
        return sum(text.count("Traceback") for text in texts.values())

    # Faults

    def _replace_leader(self, number: int, start: float) -> None:
        """Wait until the other one leads."""
        until(lambda: self._leads() == 2 - number, "the other operator leads", TAKEOVER_SECONDS)
        self.takeovers.append(time.monotonic() - start)

    def kill_operator(self, dice: random.Random) -> str:
        """The leader is killed; the other one has to take over."""
        number, start = self.leader(), time.monotonic()
        self._edit(dice)
        self.operators[number].kill()
        self._replace_leader(number, start)
        return f"operator {number}"

    def partition_operator(self, dice: random.Random) -> str:
        """The leader is cut off from the API server; the other one has to take over."""
        number, start = self.leader(), time.monotonic()
        self._proxies[number].cut()
        self._edit(dice)
        try:
            self._replace_leader(number, start)
        finally:
            self._proxies[number].mend()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.operators[number].process.wait(30)
        return f"operator {number}"

    def kill_api_server(self, dice: random.Random) -> str:
        """The API server is killed, and comes back after a while."""
        seconds = dice.choice((0.0, 2.0, 8.0))
        self._edit(dice)
        self.plane.restart("kube-apiserver", seconds)
        return f"away for {seconds:.0f} s"

    def edit_object(self, dice: random.Random) -> str:
        """Somebody changes a spec."""
        return self._edit(dice)

    def replace_object(self, dice: random.Random) -> str:
        """Somebody deletes an object, and makes another one of the name at once."""
        name = dice.choice(self.names)
        self.cluster.access.kubectl("delete", "turbodeployment", name, "-n", self.namespace, "--wait=false")

        def is_gone() -> bool:
            return self.cluster.api.get(resources.TURBODEPLOYMENT, self.namespace, name) is None

        until(is_gone, f"{name} is gone")
        self._create(name, dice.randint(1, MAX_REPLICAS))
        return name

    def edit_child(self, dice: random.Random) -> str:
        """Somebody edits fields of a child that are the operator's."""
        kind, body = self._child(dice)
        name = body["metadata"]["name"]
        patches: dict[str, dict[str, Any]] = {
            "Service": {"spec": {"selector": {"app": "another"}}},
            "PodDisruptionBudget": {"spec": {"minAvailable": 0}},
            "ConfigMap": {"data": {"facts.json": "{}"}},
            "ControllerRevision": {"metadata": {"labels": {LABEL_ROLE: "another"}}},
            "Deployment": dice.choice(
                (
                    {"spec": {"replicas": 0}},
                    {"spec": {"template": {"spec": {"terminationGracePeriodSeconds": 7}}}},
                    {"metadata": {"ownerReferences": None}},
                )
            ),
        }
        patch = patches[kind]
        self.cluster.api.patch(resources.CHILDREN[kind], self.namespace, name, patch)
        return f"{kind} {name}: {json.dumps(patch)}"

    def delete_child(self, dice: random.Random) -> str:
        """Somebody deletes a child."""
        kind, body = self._child(dice)
        name = body["metadata"]["name"]
        self.cluster.api.send("DELETE", resources.CHILDREN[kind].path(self.namespace, name))
        return f"{kind} {name}"

    def lose_node(self, dice: random.Random) -> str:
        """A node is gone, and another one comes."""
        node = dice.choice(self._nodes)
        name = str(node["metadata"]["name"])
        self.cluster.api.send("DELETE", f"/api/v1/nodes/{name}")
        self._nodes.remove(node)
        new = gpu_node(f"{name.split('.')[0]}.{dice.randrange(10**6)}", PRODUCT, GPUS_PER_NODE)
        self._nodes.append(new)
        self.cluster.access.apply(new)
        return name

    def kill_pod(self, dice: random.Random) -> str:
        """Pods are deleted without grace, or end by themselves."""
        pods = self.cluster.api.list(resources.POD, self.namespace)
        names = []
        for pod in dice.sample(pods, min(3, len(pods))):
            name = pod["metadata"]["name"]
            names.append(name)
            with contextlib.suppress(ApiRefusalError):  # gone meanwhile
                if dice.random() < 0.5:
                    path = resources.POD.path(self.namespace, name)
                    self.cluster.api.send("DELETE", path, {"gracePeriodSeconds": 0})
                else:
                    ended = {"status": {"phase": "Failed", "reason": "OOMKilled"}}
                    self.cluster.api.patch(resources.POD, self.namespace, name, ended, "status")
        return ", ".join(names)

    def garble_metrics(self, dice: random.Random) -> str:
        """What pods report of their load is garbage for a while."""
        kind = dice.choice(("text", "numbers", "nothing"))
        self.emulate("--garbage", kind)
        time.sleep(self.settings.scrape_seconds + 2)
        self.emulate()
        return kind

    def _edit(self, dice: random.Random) -> str:
        name = dice.choice(self.names)
        patch: Mapping[str, Any] = dice.choice(
            (
                {"replicas": dice.randint(1, MAX_REPLICAS)},
                {"replicas": 0},
                {"speculation": {"maxDraftTokens": dice.randint(1, 8)}},
                {"model": {"maxModelLen": dice.choice((1024, 2048, 4096))}},
            )
        )
        self.cluster.api.patch(resources.TURBODEPLOYMENT, self.namespace, name, {"spec": patch})
        return f"{name}: {json.dumps(patch)}"

    def _child(self, dice: random.Random) -> tuple[str, dict[str, Any]]:
        kind = dice.choice(CHILDREN)
        items = self.cluster.api.list(resources.CHILDREN[kind], self.namespace)
        own = [item for item in items if LABEL_DEPLOYMENT in (item["metadata"].get("labels") or {})]
        return kind, dice.choice(own)


FAULTS: Mapping[str, Callable[[Fleet, random.Random], str]] = {
    "operator killed": Fleet.kill_operator,
    "operator partitioned": Fleet.partition_operator,
    "API server killed": Fleet.kill_api_server,
    "object edited": Fleet.edit_object,
    "object replaced": Fleet.replace_object,
    "child edited": Fleet.edit_child,
    "child deleted": Fleet.delete_child,
    "node lost": Fleet.lose_node,
    "pod killed": Fleet.kill_pod,
    "metrics garbage": Fleet.garble_metrics,
}
