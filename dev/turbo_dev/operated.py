"""A real API server with its controllers, the operator as a process, and a thread in the kubelet's place.

The control-plane tier has no node: what a kubelet would report about a pod, `Kubelet` writes into its status.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import httpx
import yaml

from turbo_operator import resources
from turbo_operator.api import API_VERSION, LABEL_DEPLOYMENT, LABEL_ROLE, ROLE_SERVING

from . import pod_reports
from .access import Access, kubeconfig
from .api import Api, ApiRefusalError
from .audit_reader import AuditReader
from .binaries import ensure
from .controlplane import free_port
from .paths import REPOSITORY
from .release import UNUSED_IMAGES
from .shell import run

RELEASE, SYSTEM = "turbo", "turbo-system"
PATIENCE = 240.0
_KILLED = REPOSITORY / "tests" / "e2e" / "killed_operator.py"


class Kubelet(threading.Thread):
    """Reports every pod as a kubelet would: inspecting ones end with the facts, serving ones become ready.

    `refused` holds substrings of pod names that it leaves alone; with `serves` False those that inspect are
    the only ones that it reports, since KWOK runs the others.
    """

    def __init__(self, api: Api, serves: bool = True) -> None:
        super().__init__(daemon=True)
        self.api = api
        self._serves = serves
        self.refused: set[str] = set()
        self.unreadable: dict[str, str] = {}  # by name of the TurboDeployment: how its inspection fails
        self.stopping = threading.Event()

    def run(self) -> None:
        """Report until it is told to stop."""
        label = LABEL_DEPLOYMENT if self._serves else f"{LABEL_DEPLOYMENT},{LABEL_ROLE}!={ROLE_SERVING}"
        pending = {"labelSelector": label, "fieldSelector": "status.phase=Pending"}
        while not self.stopping.is_set():
            try:
                for pod in self.api.send("GET", "/api/v1/pods", **pending)["items"]:
                    self._report(pod)
            except httpx.TransportError:  # the API server restarts: a kubelet tries again
                pass
            except ApiRefusalError as error:
                if error.status not in (429, 503):
                    raise
            # Of a large cluster a look is work for the API server.
            self.stopping.wait(0.1 if self._serves else 0.5)

    def _report(self, pod: dict[str, Any]) -> None:
        meta = pod["metadata"]
        if any(part in meta["name"] for part in self.refused) or "deletionTimestamp" in meta:
            return
        now = time.time()
        if pod_reports.inspects(pod):
            why = self.unreadable.get(meta["labels"][LABEL_DEPLOYMENT])
            report = pod_reports.inspected(pod, now, why)
        elif pod_reports.fetches(pod):
            report = pod_reports.ended(pod, now)
        elif self._serves:
            report = pod_reports.running(pod, now)
        else:
            return
        try:
            self.api.patch(resources.POD, meta["namespace"], meta["name"], {"status": report}, "status")
        except ApiRefusalError as error:
            if error.status not in (404, 409):  # gone or changed since the list
                raise


class OperatorProcess:
    """`turbo operator` as a process, under the chart's own role."""

    def __init__(self, program: list[str], environment: Mapping[str, str], log: Path) -> None:
        self.log = log
        self.health = f"http://127.0.0.1:{environment['TURBO_HEALTH_PORT']}/healthz"
        self.metrics = f"http://127.0.0.1:{environment['TURBO_METRICS_PORT']}/metrics"
        with log.open("ab") as output:
            self.process = subprocess.Popen(program, env=dict(environment), stdout=output, stderr=output)

    @property
    def leads(self) -> bool:
        """Whether it holds the Lease, by its own metric; False where it does not answer."""
        try:
            with urlopen(self.metrics, timeout=20) as answer:
                return b"turbo_operator_leader 1.0" in answer.read()
        except OSError:
            return False

    def stop(self) -> None:
        """As Kubernetes ends it; it must go by itself, and without an error."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            assert self.process.wait(30) == 0, self.log.read_text()

    def kill(self) -> None:
        """End it as a machine that fails would."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)


class OperatedCluster:
    """A control plane, the operator as a process, and what is asked about both."""

    def __init__(self, access: Access, role: Path, directory: Path, serves: bool = True) -> None:
        self.access = access
        self.api = Api(access)
        # Two threads at one httpx client may close each other's connections.
        self.kubelet = Kubelet(Api(access), serves)
        self.role = role  # kubeconfig of its service account
        self._directory = directory
        self._running: list[OperatorProcess] = []
        self.user = f"system:serviceaccount:{SYSTEM}:{RELEASE}"

    def namespace(self, name: str) -> str:
        """Create a namespace; its name."""
        self.access.kubectl("create", "namespace", name)
        return name

    def start(self, namespace: str = "", kill_at: str | None = None, **settings: str) -> OperatorProcess:
        """The operator, watching one namespace or all; `kill_at` is explained in killed_operator.py."""
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{REPOSITORY / 'operator'}:{REPOSITORY / 'runtime'}",
            "KUBECONFIG": str(self.role),
            "TURBO_RUNTIME_IMAGE": "registry.test/turbo-runtime:1",
            "TURBO_NAMESPACES": namespace,
            "TURBO_APPLY_CATALOG": "false",
            "TURBO_LOG_FORMAT": "text",
            "TURBO_HEALTH_PORT": str(free_port("127.0.0.1")),
            "TURBO_METRICS_PORT": str(free_port("127.0.0.1")),
        } | settings
        program = [
            sys.executable,
            "-c",
            "import sys; from turbo_operator.cli.commands import operator; sys.exit(operator([]))",
        ]
        if kill_at is not None:
            program = [sys.executable, str(_KILLED), kill_at]
        log = self._directory / f"operator-{namespace or 'all'}.log"
        process = OperatorProcess(program, environment, log)
        self._running.append(process)
        return process

    def stop_all(self) -> None:
        """Kill every operator that was started."""
        for process in self._running:
            process.kill()
        self._running.clear()

    def deployment(self, namespace: str, name: str = "chat") -> dict[str, Any]:
        """A TurboDeployment that there is."""
        found = self.api.get(resources.TURBODEPLOYMENT, namespace, name)
        assert found is not None
        return found

    def create_deployment(self, namespace: str, name: str = "chat", **spec: Any) -> dict[str, Any]:
        """Create a TurboDeployment with these fields of its spec."""
        created: dict[str, Any] = self.api.create(
            resources.TURBODEPLOYMENT, turbo_deployment(namespace, name, **spec)
        )
        return created

    def children(self, namespace: str) -> dict[str, dict[str, Any]]:
        """Children of all TurboDeployments of a namespace, by KIND/NAME."""
        return {
            f"{kind}/{item['metadata']['name']}": item
            for kind, resource in resources.CHILDREN.items()
            for item in self.objects(resource, namespace)
            if "serving.turbo.dev/deployment" in (item["metadata"].get("labels") or {})
        }

    def objects(self, resource: Any, namespace: str) -> list[dict[str, Any]]:
        """All of a namespace; none of a kind that this cluster does not know."""
        try:
            return self.api.list(resource, namespace)
        except ApiRefusalError as error:
            if error.status != 404:
                raise
            return []

    @staticmethod
    def condition(body: Mapping[str, Any], kind: str) -> dict[str, Any]:
        """A condition of an object; one that is absent has that for its status."""
        return condition(body, kind)

    @staticmethod
    def is_ready(body: Mapping[str, Any], replicas: int = 1) -> bool:
        """Whether the status speaks of the spec as it is, and all of it serves."""
        return is_ready(body, replicas)

    @staticmethod
    def until(holds: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
        """The first true answer of `holds`; fails with `what` after `seconds`."""
        return until(holds, what, seconds)

    def add_nodes(self, *nodes: dict[str, Any]) -> None:
        """Apply nodes and wait until pods may come: their taint of not being ready outlasts the condition."""
        self.access.apply(*nodes)
        names = {node["metadata"]["name"] for node in nodes}

        def open_to_pods() -> bool:
            found = [
                node
                for node in self.api.send("GET", "/api/v1/nodes")["items"]
                if node["metadata"]["name"] in names
            ]
            return not any(
                taint["key"].startswith("node.kubernetes.io/")
                for node in found
                for taint in node["spec"].get("taints", ())
            )

        until(open_to_pods, f"nodes {', '.join(sorted(names))} take pods")

    def until_ready(self, namespace: str, name: str = "chat", replicas: int = 1) -> dict[str, Any]:
        """A TurboDeployment, once all of its replicas serve."""
        until(lambda: is_ready(self.deployment(namespace, name), replicas), f"{namespace}/{name} is Ready")
        return self.deployment(namespace, name)

    def writes(self, namespace: str) -> list[dict[str, Any]]:
        """The audit events of the operator's writes in a namespace."""
        return [event for event in self.all_writes(namespace) if event["user"]["username"] == self.user]

    def all_writes(self, namespace: str) -> list[dict[str, Any]]:
        """The audit events of everybody's writes in a namespace."""
        events = AuditReader(self.access, f'"namespace":"{namespace}"').read()
        return [event for event in events if event["objectRef"].get("namespace") == namespace]


def turbo_deployment(namespace: str, name: str = "chat", **spec: Any) -> dict[str, Any]:
    """A TurboDeployment on cores, whose rollouts take no time to be believed."""
    return {
        "apiVersion": API_VERSION,
        "kind": "TurboDeployment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "model": {"uri": "pvc://models/smollm2.gguf"},
            "accelerators": {"allowed": ["cpu"]},
            "rollout": {"minReadySeconds": 0},  # the test in the kubelet's place is not to be waited for
        }
        | spec,
    }


def condition(body: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """A condition of an object; one that is absent has that for its status."""
    found = [each for each in body.get("status", {}).get("conditions", ()) if each["type"] == kind]
    return found[0] if found else {"status": "Absent", "reason": "", "message": ""}


def is_ready(body: Mapping[str, Any], replicas: int = 1) -> bool:
    """Whether the status speaks of the spec as it is, and all of it serves."""
    status = body.get("status", {})
    return bool(
        condition(body, "Ready")["status"] == "True"
        and status["observedGeneration"] == body["metadata"]["generation"]
        and status["replicas"] == status["readyReplicas"] == replicas
    )


def until(holds: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """The first true answer of `holds`; fails with `what` after `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        answer = holds()
        if answer:
            return answer
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds:.0f} s: {what}")


@contextmanager
def manned(access: Access, directory: Path, *, serves: bool = True) -> Iterator[OperatedCluster]:
    """A control plane with CRDs, one accelerator and the chart's role, and a kubelet; no operator runs yet.
    With `serves` False the kubelet reports pods that inspect alone.
    """
    cluster = OperatedCluster(access, install(access, directory), directory, serves)
    cluster.kubelet.start()
    try:
        yield cluster
    finally:
        cluster.kubelet.stopping.set()
        cluster.kubelet.join(10)
        cluster.kubelet.api.client.close()
        cluster.stop_all()
        cluster.api.client.close()


def install(access: Access, directory: Path) -> Path:
    """CRDs, one accelerator and the chart's RBAC; the kubeconfig of the operator's service account."""
    helm = ensure(("helm",))["helm"]
    rendered = run(
        [
            helm,
            "template",
            RELEASE,
            str(REPOSITORY / "charts/turbo"),
            "--namespace",
            SYSTEM,
            *UNUSED_IMAGES,
        ]
    )
    documents = [document for document in yaml.safe_load_all(rendered) if document]
    access.kubectl("create", "namespace", SYSTEM)
    crds = [document for document in documents if document["kind"] == "CustomResourceDefinition"]
    roles = [
        document
        for document in documents
        if document["kind"] == "ServiceAccount"
        or document["apiVersion"].startswith("rbac.authorization.k8s.io/")
    ]
    access.apply(*crds)
    access.wait_for_crds()
    bundle = json.dumps({"apiVersion": "v1", "kind": "List", "items": roles})
    access.kubectl("apply", "--server-side", "-n", SYSTEM, "-f", "-", input=bundle)
    until(lambda: _served(access), "the API server serves each of our kinds")
    cpu = {
        "apiVersion": API_VERSION,
        "kind": "TurboAccelerator",
        "metadata": {"name": "cpu"},
        "spec": {
            "resourceName": "cpu",
            "quantity": "1",
            "memory": "4Gi",
            "provisioning": "Elastic",
            "pricing": {"perAcceleratorHour": {"onDemand": "0.04"}, "source": "set by the test"},
        },
    }
    access.apply(cpu)
    token = access.kubectl("create", "token", RELEASE, "-n", SYSTEM, "--duration=4h").strip()
    assert access.ca is not None
    path = directory / "operator.kubeconfig"
    path.touch(mode=0o600)
    path.write_text(kubeconfig(access.url, access.ca.read_text(), token))
    return path


def _served(access: Access) -> bool:
    api = Api(access)
    try:
        for resource in resources.OWN:  # one after the other, the storage of each is made
            api.send("GET", resource.path())
    except ApiRefusalError:
        return False
    finally:
        api.client.close()
    return True
