"""The operator with many TurboDeployments on a real API server, KWOK's nodes and an emulator of the runtimes.

For each size: the time until all are Ready against that of the same children applied by kubectl, in the same
run; then at rest and under load the p99 of a reconcile and the writes of an object and hour, how soon an edit
reaches its Deployment, and the most memory that the operator has held.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness import HERE, Bar, arguments, finish
from scale.seen import peak_mib, percentile, quantile, read_buckets

from turbo_dev.api import Api, ApiRefusalError
from turbo_dev.audit_reader import AuditReader
from turbo_dev.controlplane import ControlPlane
from turbo_dev.fakenodes import gpu_accelerator, gpu_node
from turbo_dev.operated import OperatedCluster, OperatorProcess, manned, turbo_deployment, until
from turbo_dev.progress import say, step
from turbo_operator import resources
from turbo_operator.api import LABEL_DEPLOYMENT

BARS = (
    Bar("ready_over_kubectl", at_most=1.3),
    Bar("rest_p99_seconds", at_most=1.0),
    Bar("rest_writes_per_object_hour", at_most=4.0),
    Bar("load_writes_per_object_hour", at_most=20.0),
    Bar("peak_mib", at_most=400.0),
    Bar("edit_p99_seconds", at_most=2.0),
)
REPLICAS = 3
PODS_PER_NODE = 1000
PRODUCT = "bench"
NUM_CLIENTS = 8
NUM_EDITS = 50
PATIENCE = 3600.0
DEPLOYMENT = resources.CHILDREN["Deployment"]


def main() -> int:
    """Measure each size; exit status by the bars, of the largest."""
    parser = arguments(__doc__ or "")
    parser.add_argument(
        "--objects", default="100,300,1000", metavar="N,...", help="sizes, one after the other"
    )
    parser.add_argument("--foreign", type=int, default=10_000, metavar="N", help="pods of nobody's")
    parser.add_argument(
        "--window", type=float, default=300.0, metavar="SECONDS", help="at rest, and under load"
    )
    options = parser.parse_args()
    sizes = sorted(int(size) for size in options.objects.split(","))
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        with (
            ControlPlane(directory / "plane", kwok=True) as access,
            manned(access, directory, serves=False) as cluster,
        ):
            _furnish(cluster, REPLICAS * sizes[-1], options.foreign)
            rows = [_measure(cluster, size, options.window) for size in sizes]
    figures = {name: value for name, value in rows[-1].items() if name != "objects"}
    return finish("control_plane", figures, rows, BARS, options)


def _furnish(cluster: OperatedCluster, pods: int, foreign: int) -> None:
    """Nodes with room for twice the pods (a rollout has both), and pods of nobody's on them."""
    cluster.access.apply(gpu_accelerator(PRODUCT, "1.00"))
    names = [f"node-{number}" for number in range(2 + (2 * pods + foreign) // (PODS_PER_NODE - 100))]
    nodes = [gpu_node(name, PRODUCT, gpus=PODS_PER_NODE) for name in names]
    for node in nodes:
        for room in (node["status"]["capacity"], node["status"]["allocatable"]):
            room |= {"pods": str(PODS_PER_NODE), "cpu": "100000", "memory": "1000Ti"}
    cluster.access.apply(*nodes)
    namespace = cluster.namespace("foreign")

    def pod(number: int) -> dict[str, Any]:
        spec = {
            "nodeName": names[number % len(names)],
            "containers": [{"name": "main", "image": "registry.test/other:1"}],
            "tolerations": [{"operator": "Exists"}],
        }
        meta = {"name": f"foreign-{number}", "namespace": namespace}
        return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}

    with step(f"make {foreign} foreign pods", "2 min"):
        _create(cluster, resources.POD, [pod(number) for number in range(foreign)])
        # Those that start would take the machine from what is measured.
        _until(lambda: _running(cluster, namespace) == foreign, foreign)


def _running(cluster: OperatedCluster, namespace: str) -> int:
    items = cluster.api.list(resources.POD, namespace)
    return sum(item["status"]["phase"] == "Running" for item in items)


def _create(cluster: OperatedCluster, resource: resources.Resource, bodies: Sequence[dict[str, Any]]) -> None:
    """Create objects with several connections."""
    apis = [Api(cluster.access) for _ in range(NUM_CLIENTS)]

    def create(at: int) -> None:
        for body in bodies[at::NUM_CLIENTS]:
            apis[at].create(resource, body)

    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        list(pool.map(create, range(NUM_CLIENTS)))
    for api in apis:
        api.client.close()


def _measure(cluster: OperatedCluster, size: int, window: float) -> dict[str, Any]:
    namespace = cluster.namespace(f"of-{size}")
    bodies = [
        turbo_deployment(
            namespace,
            f"td-{number}",
            model={"uri": "hf://maker/model"},
            accelerators={"allowed": [PRODUCT]},
            engine={"type": "Turbo"},
            replicas=REPLICAS,
        )
        for number in range(size)
    ]
    with _emulator():
        operator = cluster.start(namespace)
        until(lambda: "watching" in operator.log.read_text(encoding="utf-8"), "the operator works")
        start = time.monotonic()
        with step(f"{size} objects become Ready", "minutes"):
            _create(cluster, resources.TURBODEPLOYMENT, bodies)
            # The same look as with kubectl until that is so: of TurboDeployments one is much more work.
            _until(
                lambda: _available(cluster, namespace) == size and _ready(cluster, namespace) == size, size
            )
        ready_seconds = time.monotonic() - start
        row: dict[str, Any] = {"objects": size, "ready_seconds": ready_seconds}
        row |= _watch(cluster, operator, size, window, "rest")
        row["edit_p99_seconds"] = percentile(_edit(cluster, namespace, size), 0.99)
    with _emulator("--busy"):
        row |= _watch(cluster, operator, size, window, "load")
    row["peak_mib"] = peak_mib(operator.process.pid)
    children = _children(cluster, namespace)
    operator.stop()
    row["kubectl_seconds"] = _by_kubectl(cluster, children, f"by-kubectl-{size}", size)
    row["ready_over_kubectl"] = ready_seconds / row["kubectl_seconds"]
    for place in (namespace, f"by-kubectl-{size}"):
        cluster.access.kubectl("delete", "namespace", place, "--timeout=3600s", timeout=3700)
    say(json.dumps(row))
    return row


@contextmanager
def _emulator(*flags: str) -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-m", "scale.emulator", *flags], cwd=HERE)
    try:
        yield
    finally:
        process.kill()
        process.wait(10)


def _until(holds: Callable[[], bool], size: int) -> None:
    """Look now and then: of a thousand objects a look is megabytes."""

    def look() -> bool:
        time.sleep(max(0.2, size / 250))
        return holds()

    until(look, "all are ready", PATIENCE)


def _ready(cluster: OperatedCluster, namespace: str) -> int:
    return sum(
        cluster.is_ready(body, REPLICAS) for body in cluster.api.list(resources.TURBODEPLOYMENT, namespace)
    )


def _available(cluster: OperatedCluster, namespace: str) -> int:
    items = cluster.api.list(DEPLOYMENT, namespace)
    return sum(item.get("status", {}).get("availableReplicas", 0) >= REPLICAS for item in items)


def _watch(
    cluster: OperatedCluster, operator: OperatorProcess, size: int, window: float, when: str
) -> dict[str, float]:
    """The p99 of a reconcile and the writes of an object and hour, over a window after a while to settle."""
    time.sleep(min(60.0, window))
    audit = AuditReader(cluster.access, f'"{cluster.user}"')
    audit.read()
    before = read_buckets(operator.metrics)
    time.sleep(window)
    writes = len(audit.read())
    return {
        f"{when}_p99_seconds": quantile(before, read_buckets(operator.metrics), 0.99),
        f"{when}_writes_per_object_hour": writes / size / (window / 3600.0),
    }


def _edit(cluster: OperatedCluster, namespace: str, size: int) -> list[float]:
    """The seconds from an edit's answer until a Deployment of the object has it, one after the other."""
    seconds = []
    for number in range(min(NUM_EDITS, size)):
        name = f"td-{number}"
        cluster.api.patch(resources.TURBODEPLOYMENT, namespace, name, {"spec": {"replicas": REPLICAS + 1}})
        start = time.monotonic()
        path = DEPLOYMENT.path(namespace)

        def is_there(path: str = path, name: str = name) -> bool:
            items = cluster.api.send("GET", path, labelSelector=f"{LABEL_DEPLOYMENT}={name}")["items"]
            return any(item["spec"]["replicas"] == REPLICAS + 1 for item in items)

        until(is_there, f"{name} has one more replica")
        seconds.append(time.monotonic() - start)
    return seconds


def _children(cluster: OperatedCluster, namespace: str) -> list[dict[str, Any]]:
    """The children of all objects as somebody would apply them: without owners, as many as at first."""
    found = []
    for resource in resources.CHILDREN.values():
        try:
            items = cluster.api.list(resource, namespace)
        except ApiRefusalError:  # a kind that this cluster has not
            continue
        for item in items:
            meta = item["metadata"]
            if LABEL_DEPLOYMENT not in (meta.get("labels") or {}):
                continue
            kept = {name: meta[name] for name in ("name", "labels", "annotations") if name in meta}
            body = {name: value for name, value in item.items() if name not in ("metadata", "status")}
            if resource is DEPLOYMENT:
                body["spec"]["replicas"] = REPLICAS
            if resource.kind == "Service":
                for field in ("clusterIP", "clusterIPs"):
                    body["spec"].pop(field, None)
            found.append(
                {"apiVersion": resource.api_version, "kind": resource.kind, **body, "metadata": kept}
            )
    return found


def _by_kubectl(cluster: OperatedCluster, children: list[dict[str, Any]], namespace: str, size: int) -> float:
    """The seconds that kubectl and the controllers take for the same."""
    cluster.namespace(namespace)
    bundle = json.dumps({"apiVersion": "v1", "kind": "List", "items": children})
    start = time.monotonic()
    with step(f"the children of {size} objects by kubectl", "minutes"):
        arguments = ("apply", "--server-side", "-n", namespace, "-f", "-")
        cluster.access.kubectl(*arguments, input=bundle, timeout=PATIENCE)
        _until(lambda: _available(cluster, namespace) == size, size)
    return time.monotonic() - start


if __name__ == "__main__":
    sys.exit(main())
