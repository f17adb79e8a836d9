"""Rollouts on a full node under clients that never retry: one that fails and goes back, and a good one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from turbo_dev import podprocesses, release, served, sizes
from turbo_dev.audit_reader import AuditReader
from turbo_dev.audit_timeline import serving_pod_counts
from turbo_dev.calls import Crowd, describe
from turbo_dev.cluster import Cluster
from turbo_dev.served import Served

pytestmark = [
    pytest.mark.node,
    pytest.mark.model,
    pytest.mark.skipif(not sizes.IS_FULL, reason="rollouts on a real node take minutes: make test-full"),
]

NUM_CLIENTS, CLIENT_SECONDS = 8, 120.0
STOP_SECONDS = 25.0
FULL = {"replicas": 2, "accelerators": {"allowed": ["cpu"], "maxTotal": 2}}
ROLLOUT = {"maxUnavailable": 1, "minReadySeconds": 2}


@pytest.fixture(scope="module")
def chat(node_cluster: Cluster) -> Iterator[Served]:
    """Two replicas that serve, and no room for a third."""
    served.install(node_cluster)
    chat = Served(node_cluster, "chat")
    chat.create(**FULL, rollout=ROLLOUT)
    chat.until(chat.in_force, "both replicas serve")
    yield chat
    chat.remove()
    release.uninstall(node_cluster.access)


def test_a_plan_that_cannot_start_goes_back_while_the_last_pod_stands_still_and_no_request_fails(
    chat: Served,
) -> None:
    old = chat.status()["plan"]["hash"]
    start = time.monotonic()
    with Crowd(chat.target(CLIENT_SECONDS), keeping=NUM_CLIENTS) as crowd:
        missing = {"type": "Turbo", "image": "turbo-runtime:none"}
        chat.change(engine=missing, rollout={"progressDeadline": "60s"})
        chat.until(lambda: chat.status()["plan"]["hash"] != old, "the new plan is made")
        tried = chat.status()["plan"]["hash"]
        chat.until(lambda: any(map(lacks_image, chat.pods())), "its pod has no image")
        chat.until(lambda: chat.condition("Ready")[1] not in ("", "ModelLoading"), "the status says why")
        told = chat.condition("Ready")
        (last,) = [pod for pod in chat.pods() if served.is_ready(pod)]
        with podprocesses.stopped(podprocesses.find(served.uid(last))):
            frozen = time.monotonic()
            time.sleep(STOP_SECONDS)
        thawed = time.monotonic()
        chat.until(lambda: chat.says("Ready", "False", "RolledBack"), "it goes back")
        chat.until(lambda: chat.status()["readyReplicas"] == 2, "the old plan has both replicas again")
        chat.until(lambda: crowd.calls[-1].start > thawed, "the clients go on")
    failed = [call for call in crowd.failures if not call.overlaps(frozen, thawed)]
    assert failed == [], describe(failed, start)
    assert last["metadata"]["uid"] in {served.uid(pod) for pod in chat.pods()}
    status = chat.status()
    assert (status["servingPlan"]["hash"], status["plan"]["hash"]) == (old, tried)
    for kind in ("Ready", "Stalled"):
        state, reason, message = chat.condition(kind)
        assert (state, reason) == ("False" if kind == "Ready" else "True", "RolledBack")
        assert "turbo-runtime:none" in message
    assert chat.condition("Available")[0] == "True"
    assert list(chat.variants()) == [f"chat-{old}"]
    assert told[1] == "ImagePullBackOff", told


def lacks_image(pod: dict[str, Any]) -> bool:
    states = [each["state"] for each in pod["status"].get("containerStatuses", ())]
    return any("Image" in state.get("waiting", {}).get("reason", "") for state in states)


def test_a_good_plan_takes_over_on_a_full_node_and_no_request_fails(chat: Served) -> None:
    old = chat.status()["servingPlan"]["hash"]
    start, half = time.monotonic(), NUM_CLIENTS // 2
    began = time.time()
    stalled: set[str] = set()

    def is_over() -> bool:
        stalled.add(chat.condition("Stalled")[0])
        return chat.in_force()

    with Crowd(chat.target(CLIENT_SECONDS), half, reconnecting=half) as crowd:
        chat.change(
            engine={"image": None}, speculation={"maxDraftTokens": 4}, rollout={"progressDeadline": "10m"}
        )
        chat.until(is_over, "the new plan is in force")
        new = chat.status()["plan"]["hash"]
        in_force = time.monotonic()
        chat.until(lambda: crowd.calls[-1].start > in_force, "the new pods answer")
    assert crowd.failures == [], describe(crowd.failures, start)
    events = AuditReader(chat.access, '"pods"').read()
    counts = serving_pod_counts(events, (served.NAMESPACE, chat.name), began)
    assert len(counts) > 4, "the log shows two pods go and two come"
    assert max(counts) == 2, counts
    assert new != old
    assert list(chat.variants()) == [f"chat-{new}"]
    assert [served.is_ready(pod) for pod in chat.pods()] == [True, True]
    assert chat.status()["servingPlan"]["hash"] == new
    assert "True" not in stalled, "nobody has to change the spec for it"
