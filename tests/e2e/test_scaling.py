"""The autoscaler on a real node: a crowd of clients takes a deployment from one replica to two and back."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest

from turbo_dev import images, release, talk, volume
from turbo_dev.access import Access
from turbo_dev.cluster import Cluster

pytestmark = [pytest.mark.node, pytest.mark.model]
NAME = release.DEPLOYMENT
CROWD = 40  # clients: more than one pod decodes together
MAX_TOKENS = 12
PATIENCE = 240.0
SCALING = {
    "policy": "Metrics",
    "minReplicas": 1,
    "maxReplicas": 2,
    "behavior": {"scaleDown": {"stabilizationWindowSeconds": 20}},
}


@pytest.fixture(scope="module")
def deployed(node_cluster: Cluster) -> Iterator[Access]:
    """The example, scaled by its load, with one replica Ready on the embedded node."""
    made = images.build()
    images.deliver(made, node_cluster)
    access = node_cluster.access
    volume.fill(access, node_cluster, made.model.name)
    release.install(access, made, None)
    release.apply_example(access)
    access.kubectl(
        "patch", "td", NAME, "--type=merge", f"--patch={json.dumps({'spec': {'scaling': SCALING}})}"
    )
    release.wait_ready(access, print)
    yield access
    release.uninstall(access)


class Clients:
    """Threads that stream one answer after the other, each over a connection of its own."""

    def __init__(self, url: str, number: int) -> None:
        self.answers = 0
        self.failures: list[str] = []
        self._url = url
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask) for _ in range(number)]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        limits = httpx.Limits(max_keepalive_connections=0)  # so that each request may go to another pod
        with (
            openai.DefaultHttpxClient(trust_env=False, timeout=PATIENCE, limits=limits) as http,
            openai.OpenAI(base_url=self._url, api_key="none", http_client=http, max_retries=0) as client,
        ):
            while not self._stop.is_set():
                try:
                    ended = self._stream(client)
                except openai.OpenAIError as error:
                    ended = repr(error)
                with self._lock:
                    if ended in ("stop", "length"):
                        self.answers += 1
                    else:
                        self.failures.append(str(ended))

    @staticmethod
    def _stream(client: openai.OpenAI) -> str | None:
        """How the server says that the answer ended; None when the stream broke off before."""
        chunks = client.chat.completions.create(
            model=NAME,
            messages=[{"role": "user", "content": "Count to five."}],
            max_tokens=MAX_TOKENS,
            stream=True,
        )
        reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices]
        return reasons[-1] if reasons else None


def until(access: Access, holds: Callable[[dict[str, Any]], bool], what: str) -> None:
    give_up = time.monotonic() + PATIENCE
    status: dict[str, Any] = {}
    while time.monotonic() < give_up:
        status = access.get("td", NAME)["status"]
        if holds(status):
            return
        time.sleep(1)
    raise AssertionError(f"not within {PATIENCE:.0f} s: {what}; {json.dumps(status, indent=1)}")


def test_a_load_takes_it_from_one_replica_to_two_and_back_and_no_request_fails(deployed: Access) -> None:
    with talk.service(deployed, embedded=True) as url, Clients(url, 1) as steady:
        with Clients(url, CROWD) as crowd:
            until(deployed, lambda status: status["readyReplicas"] == 2, "a second replica answers")
            seen = crowd.answers
            while crowd.answers < seen + CROWD and not crowd.failures:
                time.sleep(0.5)
        until(deployed, lambda status: status["replicas"] == 1, "the second replica is gone")
        alone = steady.answers
        until(deployed, lambda _: steady.answers > alone + 1, "the last replica answers on")
    assert crowd.failures == []
    assert steady.failures == []
    status = deployed.get("td", NAME)["status"]
    changes = [(each["from"], each["to"], each["reason"]) for each in status["scaleHistory"]]
    assert changes[-2:] == [(1, 2, "Scaling"), (2, 1, "Scaling")]
