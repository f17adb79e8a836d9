"""InferencePools in a real API server, which has the kind or has not, as gateways find them there."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from turbo_dev import binaries
from turbo_dev.controlplane import free_port
from turbo_dev.paths import REPOSITORY
from turbo_dev.processes import ProcessGroup
from turbo_dev.server_process import ServerProcess
from turbo_dev.shell import run
from turbo_operator import resources

pytestmark = pytest.mark.cluster

POOL = resources.INFERENCEPOOL
SERVICE = resources.CHILDREN["Service"]
POD_IP = "127.0.0.2"  # as the test in the kubelet's place reports it
CHART_KINDS = ("ConfigMap", "Deployment")
WRITE_MODEL = (
    "import sys, pathlib; from turbo_dev import tiny_engine; tiny_engine.write(pathlib.Path(sys.argv[1]))"
)


class Gateways:
    """A TurboDeployment `chat` with routing Gateway in a namespace of its own, and the test as a gateway."""

    def __init__(self, cluster: Any, namespace: str) -> None:
        self.cluster, self.namespace = cluster, cluster.namespace(namespace)
        cluster.start(self.namespace)
        cluster.create_deployment(self.namespace, routing="Gateway", replicas=2)

    def pool(self) -> dict[str, Any] | None:
        found = {item["metadata"]["name"]: item for item in self.cluster.objects(POOL, self.namespace)}
        assert found.keys() <= {"chat"}
        return found.get("chat")

    def until_pooled(self) -> dict[str, Any]:
        pool: dict[str, Any] = self.cluster.until(self.pool, "there is an InferencePool")
        return pool

    def until_said(self, kind: str, status: str, reason: str) -> str:
        def said() -> bool:
            found = self.cluster.condition(self.cluster.deployment(self.namespace), kind)
            return (found["status"], found["reason"]) == (status, reason)

        self.cluster.until(said, f"{kind} is {status} for {reason}")
        found = self.cluster.condition(self.cluster.deployment(self.namespace), kind)
        message: str = found["message"]
        return message

    def change(self, **spec: Any) -> None:
        self.cluster.api.patch(resources.TURBODEPLOYMENT, self.namespace, "chat", {"spec": spec})

    def selected(self) -> set[str]:
        """The names of the pods that the pool selects."""
        return self._pods((self.pool() or {})["spec"]["selector"]["matchLabels"])

    def served(self) -> set[str]:
        """The names of the pods that the Service selects: none is an endpoint, as all are on loopback."""
        return self._pods(self.cluster.api.get(SERVICE, self.namespace, "chat")["spec"]["selector"])

    def _pods(self, labels: dict[str, str]) -> set[str]:
        selector = ",".join(f"{name}={value}" for name, value in labels.items())
        found = self.cluster.api.send("GET", resources.POD.path(self.namespace), labelSelector=selector)
        return {pod["metadata"]["name"] for pod in found["items"]}

    def says(self, **conditions: str) -> None:
        """Write what a gateway says of the pool as it is."""
        generation = (self.pool() or {})["metadata"]["generation"]
        said = [
            {
                "type": kind,
                "status": status,
                "reason": "ByTheTest",
                "message": "no picker",
                "observedGeneration": generation,
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }
            for kind, status in conditions.items()
        ]
        parents = [{"parentRef": {"name": "inference"}, "conditions": said}]
        self.cluster.api.patch(POOL, self.namespace, "chat", {"status": {"parents": parents}}, "status")


@pytest.fixture(scope="module")
def pools(plane: Any) -> Iterator[Any]:
    try:
        definition = binaries.inference_pools()
    except binaries.GoMissingError as missing:
        pytest.skip(f"no InferencePools: {missing}")
    with plane.access.knowing(definition):
        yield plane


def test_the_kind_is_missed_noticed_once_it_is_installed_and_missed_again_once_it_is_gone(
    cluster: Any,
) -> None:
    it = Gateways(cluster, "gateway-kind")
    missing = "install the Gateway API Inference Extension"
    assert missing in it.until_said("Ready", "False", "UserActionRequired")
    cluster.until(lambda: len(it.served()) == 2, "the Service selects both pods")
    with cluster.access.knowing(binaries.inference_pools()):
        it.until_pooled()
        cluster.until_ready(it.namespace, replicas=2)
        assert "HTTPRoute" in it.until_said("PoolAccepted", "Unknown", "NoGateway")
    assert missing in it.until_said("Ready", "False", "UserActionRequired")
    assert len(it.served()) == 2
    with cluster.access.knowing(binaries.inference_pools()):
        it.until_pooled()


@pytest.mark.usefixtures("pools")
def test_a_pool_has_the_pods_of_the_service_and_stays_as_it_was_made(cluster: Any) -> None:
    it = Gateways(cluster, "gateway-pool")
    cluster.until_ready(it.namespace, replicas=2)
    made = it.until_pooled()
    assert made["spec"]["targetPorts"] == [{"number": 8000}]
    stray = {
        f"serving.turbo.dev/{name}": value for name, value in (("deployment", "chat"), ("role", "serving"))
    }
    for name, more in (("stray", {}), ("worker", {"serving.turbo.dev/role": "worker"})):
        own = {**made["spec"]["selector"]["matchLabels"], **more} if more else stray
        container = {"name": "main", "image": "none.test/none"}
        cluster.access.apply(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": name, "namespace": it.namespace, "labels": own},
                "spec": {"containers": [container]},
            }
        )
    cluster.until(lambda: len(it.served()) == 2, "the Service selects both pods")
    assert it.selected() == it.served()

    cluster.access.kubectl("delete", "inferencepool", "chat", "-n", it.namespace)
    again = it.until_pooled()
    assert (again["spec"], again["metadata"]["uid"] != made["metadata"]["uid"]) == (made["spec"], True)
    for spec in (
        {"selector": {"matchLabels": {"zone": "a"}}},
        {"targetPorts": [{"number": 9000}]},
        {"endpointPickerRef": {"name": "another"}},
    ):
        cluster.api.patch(POOL, it.namespace, "chat", {"spec": spec})
        cluster.until(lambda: (it.pool() or {})["spec"] == made["spec"], f"{spec} is mended")
    written = len(cluster.writes(it.namespace))

    it.says(Accepted="True", ResolvedRefs="False")
    message = "Gateway gateway-pool/inference says of InferencePool chat: ByTheTest: no picker."
    assert it.until_said("PoolAccepted", "False", "NotAccepted") == message
    it.says(Accepted="True", ResolvedRefs="True")
    it.until_said("PoolAccepted", "True", "Accepted")
    after = [event["objectRef"]["resource"] for event in cluster.writes(it.namespace)[written:]]
    assert set(after) <= {"turbodeployments", "events"}, "what a gateway says has no child written"

    it.change(gateway={"endpointPicker": {"name": "mine", "failureMode": "FailOpen"}})
    picked = {**made["spec"]["endpointPickerRef"], "name": "mine", "failureMode": "FailOpen"}
    cluster.until(lambda: (it.pool() or {})["spec"]["endpointPickerRef"] == picked, "another picker")
    it.until_said("PoolAccepted", "Unknown", "Pending")  # what was said is of the spec before
    it.change(routing="Service", gateway=None)
    cluster.until(lambda: it.pool() is None, "without the routing there is no pool")
    it.until_said("PoolAccepted", "Absent", "")
    assert len(it.served()) == 2


def documented_picker(namespace: str) -> tuple[str, list[dict[str, Any]]]:
    """What the command of the documentation renders, for `chat`: the text, and the objects in it."""
    text = (REPOSITORY / "docs/operations.md").read_text(encoding="utf-8").replace("\\\n", " ")
    (line,) = re.findall(r"^helm template .*inferencepool .*$", text, re.M)
    words = [word.replace("smollm2", "chat") for word in shlex.split(line.partition(">")[0])]
    assert f"v{binaries.INFERENCE_EXTENSION}" in words
    chart = next(word for word in words if word.startswith("oci://"))
    words[words.index(chart)] = str(binaries.inference_extension() / "charts" / chart.rpartition("/")[2])
    rendered = run([binaries.ensure(("helm",))["helm"], *words[1:], "-n", namespace])
    return rendered, [item for item in yaml.safe_load_all(rendered) if item]


@pytest.mark.usefixtures("pools")
def test_the_picker_of_the_documentation_is_the_one_that_the_pool_names(cluster: Any) -> None:
    it = Gateways(cluster, "gateway-docs")
    reference = it.until_pooled()["spec"]["endpointPickerRef"]
    rendered, items = documented_picker(it.namespace)
    assert not [item for item in items if item["kind"] == POOL.kind]
    cluster.access.kubectl("apply", "--validate=strict", "-n", it.namespace, "-f", "-", input=rendered)
    service = cluster.access.get("service", reference["name"], "-n", it.namespace)
    assert reference["port"]["number"] in [port["port"] for port in service["spec"]["ports"]]
    account = f"system:serviceaccount:{it.namespace}:{reference['name']}"
    may = ("auth", "can-i", "watch", f"{POOL.plural}.{POOL.group}", "-n", it.namespace, f"--as={account}")
    assert cluster.access.kubectl(*may).strip() == "yes"


@pytest.mark.usefixtures("pools")
def test_upstreams_picker_takes_the_pool_up_and_reads_the_load_of_engine_turbo(
    cluster: Any, tmp_path: Path
) -> None:
    """The real picker with the flags of its chart, and a real server where the pods are said to be."""
    it = Gateways(cluster, "gateway-picker")
    cluster.until_ready(it.namespace, replicas=2)
    _, items = documented_picker(it.namespace)
    config, deployment = (next(each for each in items if each["kind"] == kind) for kind in CHART_KINDS)
    settings = tmp_path / "plugins.yaml"
    settings.write_text(config["data"]["default-plugins.yaml"], encoding="utf-8")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    flags = [str(settings) if flag.startswith("/config/") else flag for flag in container["args"]]
    ports = {name: free_port("127.0.0.1") for name in ("grpc-port", "grpc-health-port", "metrics-port")}
    flags += [*(f"--{name}={port}" for name, port in ports.items()), "--metrics-endpoint-auth=false", "--v=5"]
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run([sys.executable, "-c", WRITE_MODEL, str(tmp_path / "model")], env=paths)
    serve = [sys.executable, "-m", "turbo_cli", "serve", str(tmp_path / "model"), "--served-model-name=chat"]
    server = ServerProcess([*serve, f"--host={POD_IP}", "--port=8000", "--threads=1", "--kv-cache-gib=0.01"])
    picker = ProcessGroup(tmp_path / "logs")
    try:
        server.wait_for("Ready: ", 180)
        page = httpx.get(f"http://{POD_IP}:8000/metrics").text
        (program,) = binaries.ensure(binaries.ENDPOINT_PICKER).values()
        environment = {"KUBECONFIG": str(cluster.access.kubeconfig), "NAMESPACE": it.namespace}
        picker.start("epp", [program, *flags], environment)

        def queues() -> set[str]:
            """The pods of the pool whose queues the picker knows."""
            picker.check()
            try:
                text = httpx.get(f"http://127.0.0.1:{ports['metrics-port']}/metrics").text
            except httpx.ConnectError:  # it starts
                return set()
            lines = re.findall(r"^inference_pool_per_pod_queue_size\{(.*)\} 0$", text, re.M)
            found = [re.fullmatch(r'model_server_pod="(.*)-rank-0",name="chat"', line) for line in lines]
            return {match[1] for match in found if match}

        cluster.until(lambda: queues() == it.served(), "it has the pods of the Service")
        size, number = re.findall(r'_info\{block_size="(\d+)",.*num_gpu_blocks="(\d+)"', page)[0]
        said = picker.log("epp").read_text
        read = f"CacheBlockSize:{size} CacheNumGPUBlocks:{number}"
        cluster.until(lambda: read in said(), f"it has read {read}")

        def sees_a_request() -> bool:
            """Ask for an answer that takes longer than the 50 ms between two looks of the picker."""
            body = {"model": "chat", "prompt": "a", "max_tokens": 200, "ignore_eos": True}
            assert (
                httpx.post(f"http://{POD_IP}:8000/v1/completions", json=body, timeout=60).status_code == 200
            )
            return "RunningRequestsSize:1 " in said()

        cluster.until(sees_a_request, "it sees the load")
        missing = set(re.findall(r'metric family \\+"([a-z_:]+)\\+" not found', said()))
        assert missing == {"vllm:lora_requests_info"}, "as the documentation says"
    finally:
        picker.stop()
        server.close()
