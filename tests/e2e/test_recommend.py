"""planPolicy.apply Recommend on a real API server: a plan with a saving for a Deployment, and no write to it.

The test is the kubelet of the Deployment's pods, and shows vLLM's metrics in their place.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from turbo_dev.api import ApiRefusalError
from turbo_operator import resources
from turbo_runtime.contract.endpoints import METRICS_PATH

pytestmark = pytest.mark.cluster

ADDRESS, PORT = "127.0.0.9", 8011
RATE = 4.0  # requests that end in a second, in all pods, of 300 and 40 tokens
DEPLOYMENT = resources.CHILDREN["Deployment"]


@pytest.fixture
def metrics() -> Iterator[None]:
    """vLLM's page, as every pod shows it: a third of the requests."""
    start = time.monotonic()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            ended = int(RATE / 3 * (time.monotonic() - start))
            counts = {
                "num_requests_running": 1,
                "generation_tokens_total": ended * 40,
                "request_prompt_tokens_count": ended,
                "request_prompt_tokens_sum": ended * 300,
                "request_generation_tokens_count": ended,
                "request_generation_tokens_sum": ended * 40,
            }
            body = "".join(f'vllm:{name}{{engine="0"}} {value}\n' for name, value in counts.items()).encode()
            self.send_response(200 if self.path == METRICS_PATH else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer((ADDRESS, PORT), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield
    server.shutdown()
    thread.join()
    server.server_close()


def vllm(namespace: str, product: str) -> dict[str, Any]:
    container = {
        "name": "vllm",
        "image": "registry.test/vllm:1",
        "resources": {"limits": {"nvidia.com/gpu": "1"}},
    }
    spec = {
        "containers": [container],
        "nodeSelector": {"nvidia.com/gpu.product": product},
        "tolerations": [{"key": "kwok.x-k8s.io/node", "operator": "Exists"}],
    }
    return {
        "apiVersion": DEPLOYMENT.api_version,
        "kind": "Deployment",
        "metadata": {"name": "vllm", "namespace": namespace},
        "spec": {
            "replicas": 3,
            "selector": {"matchExpressions": [{"key": "app", "operator": "In", "values": ["vllm"]}]},
            "template": {"metadata": {"labels": {"app": "vllm"}}, "spec": spec},
        },
    }


def test_a_running_deployment_gets_a_plan_with_a_saving_and_no_write(hall: Any, metrics: None) -> None:
    """Its pods hold all GPUs that there are: the plan may count on them."""
    cluster, namespace = hall.cluster, hall.namespace
    cluster.start(namespace, TURBO_SCRAPE_SECONDS="1")
    rates = {"memoryBandwidthGBps": "3350", "tflops": {"bf16": "989"}}
    gpu = hall.accelerator("h100", "4.00", **rates)
    hall.nodes(gpu, 1, gpus=3)
    policy = {"apply": "Recommend", "deploymentRef": {"name": "vllm", "port": PORT}}
    hall.deploy(gpu, planPolicy=policy)
    hall.until_said("Ready", "False", "DeploymentNotFound")
    cluster.access.apply(vllm(namespace, gpu))

    def running() -> list[dict[str, Any]]:
        pods = cluster.api.list(resources.POD, namespace)
        return [
            pod
            for pod in pods
            if pod["metadata"]["labels"].get("app") == "vllm" and pod["status"].get("phase") == "Running"
        ]

    hall.until(lambda: len(running()) == 3, "its pods run")
    hall.until_said("Ready", "False", "MetricsMissing")
    for pod in running():
        moved = {"status": {"podIP": ADDRESS, "podIPs": [{"ip": ADDRESS}]}}
        cluster.api.patch(resources.POD, namespace, pod["metadata"]["name"], moved, "status")
    hall.until_said("Ready", "False", "WaitingForTraffic")
    before = cluster.api.get(DEPLOYMENT, namespace, "vllm")
    said = hall.until_said("Ready", "True", "Recommended")["message"]

    status = hall.body()["status"]
    reference = status["reference"]
    assert (reference["replicas"], reference["readyReplicas"], reference["accelerators"]) == (3, 3, 3)
    assert (reference["accelerator"], reference["costPerHour"]) == (gpu, "12.00")
    assert float(reference["requestsPerSecond"]) == pytest.approx(RATE, rel=0.15)
    assert (reference["inputTokens"], reference["outputTokens"]) == (300, 40)
    assert status["saving"] == {"accelerators": 2, "perHour": "8.00"}
    assert f"saves 8.00 $/h: Deployment vllm has 3 x {gpu} for 12.00 $/h." in said
    assert status["pendingPlan"]["accelerator"] == gpu

    written = {
        (event["objectRef"]["resource"], event["objectRef"]["name"]) for event in cluster.writes(namespace)
    }
    assert {resource for resource, _ in written} <= {"turbodeployments", "jobs", "configmaps", "events"}, (
        written
    )
    after = cluster.api.get(DEPLOYMENT, namespace, "vllm")
    assert after["metadata"]["generation"] == before["metadata"]["generation"]

    # From here it is to be served: the same object makes pods of its own, and the Deployment stays.
    hall.change(planPolicy={"apply": "Auto", "deploymentRef": None}, workload={"requestsPerSecond": "4"})
    hall.until_said("Ready", "False", "WaitingForAccelerator")
    cluster.access.kubectl("scale", "deployment/vllm", "-n", namespace, "--replicas=2")
    hall.until_ready()
    with pytest.raises(ApiRefusalError, match="in another TurboDeployment"):
        hall.change(planPolicy=policy, workload=None)
