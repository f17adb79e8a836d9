"""vLLM's router on a real node: requests pass through it, and none fails while pods come and go."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest

from turbo_dev import release, served
from turbo_dev.calls import Crowd
from turbo_dev.cluster import Cluster
from turbo_dev.served import NAMESPACE, Served
from turbo_operator import resources

pytestmark = [pytest.mark.node, pytest.mark.model]
CLIENT_SECONDS = 120.0


@pytest.fixture(scope="module")
def chat(node_cluster: Cluster) -> Iterator[Served]:
    served.install(node_cluster)
    small = {"spec": {"quantity": "700m"}}  # two replicas, two routers and the operator on two cores
    chat = Served(node_cluster, "routed")
    chat.api.patch(resources.TURBOACCELERATOR, "", "cpu", small)
    chat.create(routing="Router", rollout={"minReadySeconds": 0})
    chat.until(chat.in_force, "it serves through the router")
    yield chat
    chat.remove()
    release.uninstall(node_cluster.access)


def test_requests_pass_through_the_router_with_their_headers(chat: Served) -> None:
    chat.until(lambda: len(chat.routers()) == 2 and chat.is_routed(), "both routers answer")
    target = chat.target(CLIENT_SECONDS)
    body = {"model": target.model, "prompt": "1, 2, 3,", "max_tokens": 8, "temperature": 0}
    own = {"X-Request-Id": "from-the-client"}

    def is_routed() -> bool:  # kube-proxy follows the endpoints
        seen = httpx.post(f"{target.url}/completions", json=body, headers=own, timeout=CLIENT_SECONDS)
        return seen.headers.get("X-Request-Id") == "from-the-client"

    chat.until(is_routed, "the router answers")
    with httpx.Client(timeout=CLIENT_SECONDS, trust_env=False) as client:
        answer = client.post(f"{target.url}/completions", json=body, headers=own)
        assert answer.status_code == 200, answer.text
        assert answer.headers["X-Request-Id"] == "from-the-client"
        assert answer.json()["usage"]["completion_tokens"] == 8
        with client.stream("POST", f"{target.url}/completions", json={**body, "stream": True}) as stream:
            events = [line for line in stream.iter_lines() if line.startswith("data: ")]
        assert events[-1] == "data: [DONE]"
        texts = [choice["text"] for event in events[:-1] for choice in json.loads(event[6:])["choices"]]
        assert "".join(texts) == answer.json()["choices"][0]["text"]
        wrong = client.post(f"{target.url}/completions", json={**body, "temperature": -1})
        assert (wrong.status_code, "temperature" in wrong.text) == (400, True)


def test_pods_come_and_go_and_a_router_is_deleted_and_no_request_fails(chat: Served) -> None:
    with Crowd(chat.target(CLIENT_SECONDS), keeping=2, reconnecting=1) as crowd:
        chat.change(replicas=2)
        chat.until(lambda: chat.in_force() and chat.status()["readyReplicas"] == 2, "two replicas serve")
        chat.change(replicas=1)
        chat.until(lambda: chat.in_force() and chat.status()["replicas"] == 1, "one replica is left")
    assert crowd.failures == []
    assert len(crowd.calls) > 10
    lost = chat.routers()[0]["metadata"]["name"]
    with Crowd(chat.target(CLIENT_SECONDS), keeping=0, reconnecting=2) as crowd:
        chat.access.kubectl("delete", "pod", lost, "-n", NAMESPACE, "--timeout=120s", timeout=130)
        chat.until(lambda: len(chat.endpoints()) == 2, "another one has taken its place")
    assert crowd.failures == [], "of clients that connect anew"


def test_without_it_requests_go_to_the_pods_again_and_nothing_of_it_is_left(chat: Served) -> None:
    with Crowd(chat.target(CLIENT_SECONDS), keeping=0, reconnecting=2) as crowd:
        chat.change(routing="Service")
        chat.until(chat.serves_directly, "its Service selects the pods")
    assert crowd.failures == []
    kinds = "deployment,serviceaccount,rolebinding,poddisruptionbudget"

    def is_clean() -> bool:
        left = chat.access.kubectl("get", kinds, "-n", NAMESPACE, "-o", "name").split()
        return not [name for name in left if "/routed-router" in name]

    chat.until(is_clean, "nothing of it is left, with its last pod")
