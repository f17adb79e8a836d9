"""From one replica to three, to one, to none and back on a real node, and no request fails."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from turbo_dev import podprocesses, release, served
from turbo_dev.calls import Crowd, Target, describe
from turbo_dev.cluster import Cluster
from turbo_dev.served import Served
from turbo_operator import resources

pytestmark = [pytest.mark.node, pytest.mark.model]
CLIENT_SECONDS = 300.0
QUICK = {"stabilizationWindowSeconds": 0, "policies": [{"type": "Pods", "value": 9, "periodSeconds": 1}]}
SCALING = {
    "mode": "Metrics",
    "minReplicas": 1,
    "maxReplicas": 3,
    "behavior": {"scaleUp": QUICK, "scaleDown": QUICK},
}


@pytest.fixture(scope="module")
def chat(node_cluster: Cluster) -> Iterator[Served]:
    served.install(node_cluster)
    chat = Served(node_cluster, "idle")
    chat.api.patch(resources.TURBOACCELERATOR, "", "cpu", {"spec": {"quantity": "400m"}})
    chat.create(routing="Router", rollout={"minReadySeconds": 0}, scaling=SCALING)
    chat.until(lambda: chat.in_force() and chat.condition("Ready")[0] == "True", "it serves by the router")
    yield chat
    chat.remove()
    release.uninstall(node_cluster.access)


class Streams:
    """Streams one after the other over one connection, until the context ends."""

    def __init__(self, target: Target) -> None:
        """Nothing is asked before the context is entered."""
        self._target, self._stop = target, threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self.cut: list[str] = []
        self.whole = 0

    def __enter__(self) -> Streams:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _ask(self) -> None:
        body = {"model": self._target.model, "prompt": "1, 2, 3,", "max_tokens": 24, "stream": True}
        with httpx.Client(timeout=CLIENT_SECONDS, trust_env=False) as client:
            while not self._stop.is_set():
                lines: list[str] = []
                try:
                    with client.stream("POST", f"{self._target.url}/completions", json=body) as stream:
                        lines = [line for line in stream.iter_lines() if line.startswith("data: ")]
                    is_whole = stream.status_code == 200 and lines[-1:] == ["data: [DONE]"]
                    problem = "" if is_whole else f"{stream.status_code}: it ended with {lines[-1:]}"
                except httpx.HTTPError as error:
                    problem = repr(error)
                self.whole += not problem
                if problem:
                    self.cut.append(problem)


def test_three_replicas_one_and_none_and_a_lost_router_cost_no_request(chat: Served) -> None:
    target = chat.target(CLIENT_SECONDS)
    chat.until(lambda: len(chat.endpoints()) == 2, "both routers answer")

    def serve(replicas: int) -> bool:
        return chat.in_force() and chat.status()["readyReplicas"] == replicas == chat.status()["replicas"]

    with Crowd(target, keeping=1) as crowd, Streams(target) as streams:
        chat.change(scaling={**SCALING, "minReplicas": 3})
        chat.until(lambda: serve(3), "three serve")
        chat.change(scaling=SCALING)
        chat.until(lambda: serve(1), "one is left")
    assert crowd.failures == []
    assert streams.cut == []
    assert min(len(crowd.calls), streams.whole) > 5

    chat.change(scaling={**SCALING, "minReplicas": 0, "idleAfter": "15s"})
    with httpx.Client(timeout=CLIENT_SECONDS, trust_env=False) as client:
        body = {"model": target.model, "prompt": "1, 2, 3,", "max_tokens": 8, "temperature": 0}
        before = client.post(f"{target.url}/completions", json=body).json()["choices"][0]["text"]
        chat.until(lambda: serve(0) and not chat.pods(), "none is left")
        assert chat.condition("Ready")[:2] == ("True", "ScaledToZero")
        assert chat.condition("ScalingActive")[1] == "Idle"
        start = time.monotonic()
        # Over the connection that it has kept.
        after = client.post(f"{target.url}/completions", json=body)
        seconds = time.monotonic() - start
    assert (after.status_code, after.json()["choices"][0]["text"]) == (200, before)
    chat.until(lambda: serve(1), "one serves again")
    stages = {"scheduling", "pulling", "loading", "checking", "ready", "firstToken"}
    chat.until(lambda: chat.status()["startup"].keys() >= stages, "each stage of its start is known")
    print(f"first request after zero: {seconds:.1f} s; {json.dumps(chat.status().get('startup'))}")


def restarts(chat: Served) -> int:
    statuses = [pod["status"] for pod in chat.routers()]
    containers = [
        each for it in statuses for each in (*it["initContainerStatuses"], *it["containerStatuses"])
    ]
    return sum(each["restartCount"] for each in containers)


@pytest.mark.parametrize("command", ["vllm::router", "turbo activator"])
def test_one_that_is_killed_costs_no_request_but_those_on_their_way_through_it(
    chat: Served, command: str
) -> None:
    chat.change(scaling={**SCALING, "idleAfter": None})
    chat.until(lambda: chat.in_force() and len(chat.endpoints()) == 2, "both routers answer")
    before, pod = restarts(chat), chat.routers()[0]
    with Crowd(chat.target(CLIENT_SECONDS), keeping=1, reconnecting=1) as crowd:
        chat.until(lambda: len(crowd.calls) > 3, "it is asked")
        (pid,) = podprocesses.find(served.uid(pod), command)
        killed = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        chat.until(lambda: restarts(chat) > before or len(chat.endpoints()) < 2, "the node noticed")
        noticed = time.monotonic()
        chat.until(lambda: restarts(chat) > before and len(chat.endpoints()) == 2, "it was started again")
        chat.until(lambda: any(call.start > killed + 5 for call in crowd.calls), "it is asked on")
    # A client that asks while nothing listens there is refused, until the Service has taken the pod out: the
    # kubelet looks once a second, and the Service's rules follow within another.
    lost = [call for call in crowd.failures if not call.overlaps(killed, noticed + 1.0)]
    assert noticed < killed + 5.0
    assert lost == [], describe(lost, killed)
