"""InferencePools in a real API server, which has the kind or has not, as gateways find them there."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from turbo_dev import binaries
from turbo_dev.paths import REPOSITORY
from turbo_dev.shell import run
from turbo_operator import resources

pytestmark = pytest.mark.cluster

POOL = resources.INFERENCEPOOL
SLICES = resources.Resource("EndpointSlice", "discovery.k8s.io", "v1", "endpointslices")


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
        labels = (self.pool() or {})["spec"]["selector"]["matchLabels"]
        return {
            pod["metadata"]["name"]
            for pod in self.cluster.api.list(resources.POD, self.namespace)
            if labels.items() <= pod["metadata"]["labels"].items()
        }

    def endpoints(self) -> set[str]:
        """The names of the pods that the Service sends requests to."""
        return {
            endpoint["targetRef"]["name"]
            for each in self.cluster.api.list(SLICES, self.namespace)
            if each["metadata"]["labels"].get("kubernetes.io/service-name") == "chat"
            for endpoint in each.get("endpoints") or ()
        }

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
    cluster.until(lambda: len(it.endpoints()) == 2, "the Service sends requests to both pods")
    with cluster.access.knowing(binaries.inference_pools()):
        it.until_pooled()
        cluster.until_ready(it.namespace, replicas=2)
        assert "HTTPRoute" in it.until_said("PoolAccepted", "Unknown", "NoGateway")
    assert missing in it.until_said("Ready", "False", "UserActionRequired")
    assert len(it.endpoints()) == 2
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
    cluster.until(lambda: len(it.endpoints()) == 2, "the Service sends requests to both pods")
    assert it.selected() == it.endpoints()

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
    assert len(it.endpoints()) == 2


@pytest.mark.usefixtures("pools")
def test_the_picker_of_the_documentation_is_the_one_that_the_pool_names(cluster: Any) -> None:
    it = Gateways(cluster, "gateway-docs")
    reference = it.until_pooled()["spec"]["endpointPickerRef"]
    text = (REPOSITORY / "docs/operations.md").read_text(encoding="utf-8").replace("\\\n", " ")
    (line,) = re.findall(r"^helm template .*inferencepool .*$", text, re.M)
    words = [word.replace("smollm2", "chat") for word in shlex.split(line.partition(">")[0])]
    chart = next(word for word in words if word.startswith("oci://"))
    assert f"v{binaries.INFERENCE_EXTENSION}" in words
    words[words.index(chart)] = str(binaries.inference_extension() / "charts" / chart.rpartition("/")[2])
    rendered = run([binaries.ensure(("helm",))["helm"], *words[1:], "-n", it.namespace])
    items = [item for item in yaml.safe_load_all(rendered) if item]
    assert not [item for item in items if item["kind"] == POOL.kind]
    cluster.access.kubectl("apply", "--validate=strict", "-n", it.namespace, "-f", "-", input=rendered)
    service = cluster.access.get("service", reference["name"], "-n", it.namespace)
    assert reference["port"]["number"] in [port["port"] for port in service["spec"]["ports"]]
    (picker,) = (item for item in items if item["kind"] == "Deployment")
    arguments = json.dumps(picker["spec"]["template"]["spec"]["containers"][0]["args"])
    assert f'"--pool-name", "chat", "--pool-namespace", "{it.namespace}"' in arguments
    account = f"system:serviceaccount:{it.namespace}:{reference['name']}"
    may = ("auth", "can-i", "watch", f"{POOL.plural}.{POOL.group}", "-n", it.namespace, f"--as={account}")
    assert cluster.access.kubectl(*may).strip() == "yes"
