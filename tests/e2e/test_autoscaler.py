"""The autoscaler in a real operator process; the test answers `/load` in the pods' place."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from turbo_operator import resources
from turbo_runtime.contract.documents import Load
from turbo_runtime.contract.endpoints import LOAD_PATH, PORT

pytestmark = pytest.mark.cluster

DEPLOYMENT = resources.CHILDREN["Deployment"]
POD_ADDRESS = "127.0.0.2"  # that the test's kubelet gives to every pod
ROOM = 1000  # tokens of a pod's KV cache
WINDOW = 3  # seconds
SCRAPE = "0.5"  # seconds; a load is too old after three: a busy machine may keep an answer for half a second
SCALING = {
    "mode": "Metrics",
    "maxReplicas": 6,
    "behavior": {
        "scaleUp": {"policies": [{"type": "Percent", "value": 100, "periodSeconds": 2}]},
        "scaleDown": {
            "stabilizationWindowSeconds": WINDOW,
            "policies": [{"type": "Pods", "value": 1, "periodSeconds": 1}],
        },
    },
}


class Pods:
    """Answers for all pods of a namespace: `demand` tokens, shared evenly; None is silence."""

    def __init__(self, cluster: Any, namespace: str) -> None:
        self.demand: int | None = 0
        self.namespace = namespace
        self._cluster = cluster

    def load(self) -> str | None:
        if self.demand is None:
            return None
        pods = self._cluster.api.list(resources.POD, self.namespace)
        serving = [pod for pod in pods if pod["metadata"]["labels"]["serving.turbo.dev/role"] == "serving"]
        tokens = self.demand // max(1, len(serving))
        return Load(1, 0, tokens, 0, 0.0, ROOM, 0, 0, 0, 0, "bitwise", draining=False).to_json()


@pytest.fixture
def pods(cluster: Any, request: pytest.FixtureRequest) -> Iterator[Pods]:
    answering = Pods(cluster, cluster.namespace(request.node.name.replace("_", "-")[:60].strip("-")))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            said = answering.load() if self.path == LOAD_PATH else None
            body = (said or "").encode()
            self.send_response(200 if said else 503)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing: a scrape twice a second is no news."""

    server = ThreadingHTTPServer((POD_ADDRESS, PORT), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield answering
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def wanted(cluster: Any, namespace: str) -> int:
    """Replicas that the Deployment asks for."""
    (deployment,) = cluster.api.list(DEPLOYMENT, namespace)
    return int(deployment["spec"]["replicas"])


def until_wanted(cluster: Any, namespace: str, replicas: int) -> None:
    cluster.until(lambda: wanted(cluster, namespace) == replicas, f"{replicas} replicas are asked for")


def until_reason(cluster: Any, namespace: str, reason: str) -> str:
    def said() -> str | None:
        condition = cluster.condition(cluster.deployment(namespace), "ScalingActive")
        return str(condition["message"]) if condition["reason"] == reason else None

    return str(cluster.until(said, f"ScalingActive is {reason}"))


def test_replicas_follow_the_load_and_rest_with_it(cluster: Any, pods: Pods) -> None:
    operator = cluster.start(pods.namespace, TURBO_SCRAPE_SECONDS=SCRAPE)
    cluster.create_deployment(pods.namespace, scaling=SCALING)
    cluster.until_ready(pods.namespace)
    pods.demand = 3 * ROOM  # four replicas are not above 0.85
    until_wanted(cluster, pods.namespace, 4)
    body = cluster.until_ready(pods.namespace, replicas=4)
    assert (body["status"]["readyReplicas"], body["status"]["desiredReplicas"]) == (4, 4)
    cluster.until(
        lambda: until_reason(cluster, pods.namespace, "Stable") == "4 replicas for the load.",
        "every pod has said its load",
    )
    cluster.until(
        lambda: "tokensPerSecond" in cluster.deployment(pods.namespace)["status"]["observed"],
        "every pod was heard twice",
    )

    written = len(cluster.writes(pods.namespace))
    time.sleep(2)
    since = [event["requestObject"] for event in cluster.writes(pods.namespace)[written:]]
    assert since == [], "a constant load writes nothing"

    changed = time.monotonic()
    pods.demand = 0
    until_wanted(cluster, pods.namespace, 3)
    assert time.monotonic() - changed >= WINDOW - 1, "the window was waited for"
    until_wanted(cluster, pods.namespace, 1)
    history = cluster.until_ready(pods.namespace)["status"]["scaleHistory"]
    assert [(each["from"], each["to"]) for each in history] == [(1, 2), (2, 4), (4, 3), (3, 2), (2, 1)]
    operator.stop()


def test_silence_and_a_restart_take_nothing_away(cluster: Any, pods: Pods) -> None:
    operator = cluster.start(pods.namespace, TURBO_SCRAPE_SECONDS=SCRAPE)
    pods.demand = ROOM
    cluster.create_deployment(pods.namespace, scaling=SCALING)
    cluster.until_ready(pods.namespace, replicas=2)
    pods.demand = None
    message = until_reason(cluster, pods.namespace, "MetricsUnavailable")
    assert message.startswith("The load of chat-")
    assert message.endswith(" is not known: 2 replicas as before.")
    time.sleep(WINDOW + 1)
    assert wanted(cluster, pods.namespace) == 2
    operator.stop()

    pods.demand = 0
    started = time.monotonic()
    operator = cluster.start(pods.namespace, TURBO_SCRAPE_SECONDS=SCRAPE)
    until_wanted(cluster, pods.namespace, 1)
    assert time.monotonic() - started >= WINDOW, "the window began anew"
    history = cluster.until_ready(pods.namespace)["status"]["scaleHistory"]
    assert [(each["from"], each["to"]) for each in history] == [(1, 2), (2, 1)]
    operator.stop()


def test_a_budget_bounds_growth_and_its_cut_needs_no_metrics(cluster: Any, pods: Pods) -> None:
    operator = cluster.start(pods.namespace, TURBO_SCRAPE_SECONDS=SCRAPE)
    pods.demand = 5 * ROOM
    cluster.create_deployment(pods.namespace, scaling=SCALING, cost={"maxPerHour": "0.08"})
    cluster.until_ready(pods.namespace, replicas=2)
    message = until_reason(cluster, pods.namespace, "ScalingLimited")
    assert "one more would cost more than spec.cost.maxPerHour of 0.08 $/h: 2 replicas now" in message
    pods.demand = None
    cut = {"spec": {"cost": {"maxPerHour": "0.04"}}}
    cluster.api.patch(resources.TURBODEPLOYMENT, pods.namespace, "chat", cut)
    until_wanted(cluster, pods.namespace, 1)
    operator.stop()
