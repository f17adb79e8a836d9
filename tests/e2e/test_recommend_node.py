"""planPolicy.apply Recommend for a Deployment of vLLM on a real node: a plan with a saving, and no write."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from peers import weights

from turbo_dev import model, release, served, sizes, vllm_image, volume
from turbo_dev.audit_reader import AuditReader
from turbo_dev.cluster import Cluster
from turbo_dev.images import Image
from turbo_dev.served import Served
from turbo_operator import resources

pytestmark = [
    pytest.mark.node,
    pytest.mark.model,
    pytest.mark.skipif(not sizes.IS_FULL, reason="3 GB of vLLM on a real node: make test-full"),
]
CLAIM = "smollm2-float32"
NAME = "chat-of-yours"
PORT = 8000


def existing(image: Image) -> list[dict[str, Any]]:
    """A Deployment as people write it, with two pods, and its Service."""
    labels = {"app": NAME}
    arguments = ["/model", "--served-model-name=chat", "--max-model-len=2048", "--enforce-eager"]
    container = {
        "name": "vllm",
        "image": image.name,
        "imagePullPolicy": "Never",
        "command": ["vllm", "serve"],
        "args": [*arguments, f"--port={PORT}"],
        "env": [
            {"name": "VLLM_CPU_KVCACHE_SPACE", "value": "1"},
            {"name": "VLLM_CPU_OMP_THREADS_BIND", "value": "nobind"},
            {"name": "OMP_NUM_THREADS", "value": "1"},
            {"name": "HOME", "value": "/tmp"},
            {"name": "USER", "value": "vllm"},
        ],
        "resources": {"requests": {"cpu": "600m", "memory": "5Gi"}},
        "readinessProbe": {"httpGet": {"path": "/health", "port": PORT}, "periodSeconds": 5},
        "volumeMounts": [
            {"name": "model", "mountPath": "/model", "readOnly": True},
            {"name": "shm", "mountPath": "/dev/shm"},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    }
    volumes = [
        {"name": "model", "persistentVolumeClaim": {"claimName": CLAIM}},
        {"name": "shm", "emptyDir": {"medium": "Memory"}},
        {"name": "tmp", "emptyDir": {}},
    ]
    template = {"metadata": {"labels": labels}, "spec": {"containers": [container], "volumes": volumes}}
    meta = {"name": NAME, "namespace": served.NAMESPACE}
    spec = {"replicas": 2, "selector": {"matchLabels": labels}, "template": template}
    service = {"selector": labels, "ports": [{"port": 80, "targetPort": PORT}]}
    return [
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": spec},
        {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": service},
    ]


@pytest.fixture
def deployment(node_cluster: Cluster) -> Iterator[Cluster]:
    """vLLM as somebody runs it, with the operator beside it."""
    image = vllm_image.build()
    served.install(node_cluster)
    vllm_image.deliver(image, node_cluster)
    folder = volume.claim(node_cluster.access, node_cluster, CLAIM)
    for path in weights.float32_folder(model.ensure()).iterdir():
        if not (folder / path.name).exists():
            shutil.copyfile(path, folder / path.name)
    node_cluster.access.apply(*existing(image))
    rollout = ("rollout", "status", f"deployment/{NAME}", "-n", served.NAMESPACE, "--timeout=900s")
    node_cluster.access.kubectl(*rollout, timeout=920)
    yield node_cluster
    node_cluster.access.kubectl(
        "delete", "deployment,service", NAME, "-n", served.NAMESPACE, "--timeout=100s"
    )
    release.uninstall(node_cluster.access)


def test_a_running_deployment_of_vllm_gets_a_plan_with_a_saving_and_no_write(deployment: Cluster) -> None:
    access = deployment.access
    one = Served(deployment, "recommended")
    rates = {"memoryBandwidthGBps": "20", "tflops": {"bf16": "0.2", "fp32": "0.1"}}
    one.api.patch(
        resources.TURBOACCELERATOR, "", "cpu", {"spec": {"quantity": "600m", "memory": "5Gi", **rates}}
    )
    audit = AuditReader(access, f'"{NAME}')
    audit.read()
    one.create(
        model={"uri": f"pvc://{CLAIM}", "name": "chat", "maxModelLen": 2048},
        planPolicy={"apply": "Recommend", "deploymentRef": {"name": NAME, "port": PORT}},
    )
    address = access.get("service", NAME, "-n", served.NAMESPACE)["spec"]["clusterIP"]
    with openai.OpenAI(base_url=f"http://{address}/v1", api_key="none", max_retries=0) as client:

        def recommended() -> bool:
            client.completions.create(model="chat", prompt="Count to five.", max_tokens=8, timeout=300.0)
            return one.says("Ready", "True", "Recommended")

        one.until(recommended, "it recommends a plan for the load that it has seen")
    status = one.status()
    reference = status["reference"]
    assert (reference["replicas"], reference["readyReplicas"], reference["accelerators"]) == (2, 2, 2)
    assert reference["costPerHour"] == "0.08"
    assert reference["outputTokens"] <= 8
    assert status["pendingPlan"]["replicas"] == 1
    assert status["saving"] == {"accelerators": 1, "perHour": "0.04"}
    assert "It saves 0.04 $/h" in one.condition("Ready")[2]
    assert one.pods() == []
    operator = f"system:serviceaccount:{release.NAMESPACE}:{release.RELEASE}"
    written = [
        event
        for event in audit.read()
        if event["user"]["username"] == operator and event["objectRef"].get("name", "").startswith(NAME)
    ]
    assert written == [], json.dumps(written)[:2000]
    one.remove()
