"""Faults of a pod, of a child and of the node, on a real node: each heals by itself, or says what is missing.

Under one request a second that nobody retries.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from turbo_dev import podprocesses, release, served, sizes
from turbo_dev.calls import Pulse
from turbo_dev.cluster import Cluster
from turbo_dev.node import PAUSE_IMAGE
from turbo_dev.served import DEPLOYMENT, NAMESPACE, Served
from turbo_operator import resources
from turbo_operator.api import LABEL_DEPLOYMENT, LABEL_OWNER_UID, LABEL_ROLE, ROLE_SERVING

pytestmark = [
    pytest.mark.node,
    pytest.mark.model,
    pytest.mark.skipif(
        not sizes.IS_FULL,
        reason="repairs on a real node take minutes: make test-full",
    ),
]

CLIENT_SECONDS = 20.0
SOON = 45.0  # of what the operator does at once: a busy node may take them
QUIET_SECONDS = 5.0  # in which nothing happens
HOLD = "example.com/hold"
# A pod that ends serves on until load balancers know, and its last requests are short.
LEAVE_SECONDS = 60.0
ROLLOUT = {"minReadySeconds": 2}
STEP_SECONDS = 20  # that one step of the engine may take

Heal = Callable[[str, Callable[[], object], Callable[[], object]], None]


@pytest.fixture(scope="module")
def chat(node_cluster: Cluster) -> Iterator[Served]:
    """One replica that serves on a node that has room for two."""
    served.install(node_cluster)
    chat = Served(node_cluster, "chat")
    chat.create(rollout=ROLLOUT, engine={"stepTimeout": f"{STEP_SECONDS}s"})
    chat.until(chat.in_force, "it serves")
    yield chat
    chat.remove()
    release.uninstall(node_cluster.access)


@pytest.fixture
def pulse(chat: Served) -> Iterator[Pulse]:
    with Pulse(chat.target(CLIENT_SECONDS)) as pulse:
        chat.until(lambda: pulse.answered_since(0.0), "it answers")
        yield pulse


@pytest.fixture
def heal(chat: Served, record_property: Callable[[str, object], None]) -> Heal:
    """Cause a fault and wait until it is healed; the run's summary tells how long that took."""

    def heal(fault_name: str, fault: Callable[[], object], is_healed: Callable[[], object]) -> None:
        start = time.monotonic()
        fault()
        chat.until(is_healed, f"healed: {fault_name}", SOON)
        record_property("healed", f"{time.monotonic() - start:6.2f} s  {fault_name}")

    return heal


def variant(chat: Served) -> dict[str, Any]:
    (found,) = chat.variants().values()
    return found


def pause(name: str, cores: str, labels: dict[str, str] | None = None) -> dict[str, Any]:
    """A pod that does nothing."""
    container = {"name": "pause", "image": PAUSE_IMAGE, "resources": {"requests": {"cpu": cores}}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": labels or {}},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [container]},
    }


def label(name: str, value: str | None) -> dict[str, Any]:
    """A patch of a label; None removes it."""
    return {"metadata": {"labels": {name: value}}}


def until_answered(chat: Served, pulse: Pulse) -> None:
    since = time.monotonic()
    chat.until(lambda: pulse.answered_since(since), "a new request is answered")


def test_a_pod_whose_engine_stands_still_leaves_the_service_and_starts_again(
    chat: Served, pulse: Pulse
) -> None:
    (pod,) = chat.pods()
    (engine,) = podprocesses.find(served.uid(pod), podprocesses.ENGINE)
    os.kill(engine, signal.SIGSTOP)
    chat.until(lambda: not chat.endpoints(), "it leaves the Service", 2 * STEP_SECONDS)

    def container() -> dict[str, Any]:
        (now,) = chat.pods()
        found: dict[str, Any] = now["status"]["containerStatuses"][0]
        return found

    chat.until(lambda: container()["restartCount"] == 1, "its container is started again", 2 * STEP_SECONDS)
    assert served.uid(chat.pods()[0]) == served.uid(pod)
    assert (
        f"has not finished a step for {STEP_SECONDS} s" in container()["lastState"]["terminated"]["message"]
    )
    chat.until(chat.in_force, "it serves again")
    until_answered(chat, pulse)


def test_a_child_that_is_renamed_by_its_label_and_scaled_to_nothing_serves_again(
    chat: Served, pulse: Pulse, heal: Heal
) -> None:
    name = variant(chat)["metadata"]["name"]

    def rename_and_scale() -> None:
        chat.api.patch(DEPLOYMENT, NAMESPACE, name, label(LABEL_DEPLOYMENT, "theirs"))
        chat.api.patch(DEPLOYMENT, NAMESPACE, name, {"spec": {"replicas": 0}})

    def is_back() -> bool:
        child = variant(chat)
        return child["metadata"]["labels"].get(LABEL_DEPLOYMENT) == "chat" and child["spec"]["replicas"] == 1

    heal("B: label of a Deployment overwritten, then scaled to 0", rename_and_scale, is_back)

    def has_settled() -> bool:
        """The pod that ends may answer still, and the status of the TurboDeployment be of before."""
        child = variant(chat)
        is_seen = child["status"]["observedGeneration"] == child["metadata"]["generation"]
        serves = child["status"].get("availableReplicas") == len(chat.pods()) == len(chat.endpoints()) == 1
        return bool(is_seen and serves)

    chat.until(has_settled, "one pod serves")
    chat.until(chat.in_force, "it serves again")
    until_answered(chat, pulse)


def test_a_pod_whose_label_goes_and_comes_is_counted_again(chat: Served, pulse: Pulse, heal: Heal) -> None:
    (pod,) = chat.pods()
    name = pod["metadata"]["name"]

    def is_told() -> bool:
        status = chat.status()
        counts = (status["replicas"], status["readyReplicas"])
        return counts == (1, 1) and chat.condition("Available")[2].startswith("1 of 1")

    chat.api.patch(resources.POD, NAMESPACE, name, label(LABEL_DEPLOYMENT, None))
    chat.until(lambda: bool(chat.pods()), "another takes its place")
    chat.api.patch(resources.POD, NAMESPACE, name, label(LABEL_DEPLOYMENT, "chat"))
    chat.until(lambda: len(chat.pods()) == 1, "one is left")
    heal("F: label of a serving pod off and on; from its spare's end to a right status", is_told, is_told)
    until_answered(chat, pulse)


def test_a_strangers_pod_with_the_labels_of_a_serving_one_gets_no_request(chat: Served, pulse: Pulse) -> None:
    (ours,) = chat.endpoints()
    labels = {LABEL_DEPLOYMENT: "chat", LABEL_ROLE: ROLE_SERVING}
    chat.api.create(resources.POD, pause("theirs", "10m", labels))
    try:
        chat.access.kubectl("wait", "pod/theirs", "-n", NAMESPACE, "--for=condition=Ready", "--timeout=100s")
        end = time.monotonic() + QUIET_SECONDS
        while time.monotonic() < end:
            assert chat.endpoints() == {ours}
            time.sleep(0.5)
        assert chat.status()["replicas"] == 1
    finally:
        chat.access.kubectl("delete", "pod", "theirs", "-n", NAMESPACE, "--timeout=100s")
    assert pulse.failures == []


def test_a_held_variant_ends_its_pods_and_the_status_names_what_holds_it(
    chat: Served, pulse: Pulse, heal: Heal
) -> None:
    old = variant(chat)["metadata"]["name"]
    hold = {"metadata": {"finalizers": [HOLD]}}
    chat.api.patch(DEPLOYMENT, NAMESPACE, old, hold)
    try:
        heal(
            "E: label of a Deployment removed",
            lambda: chat.api.patch(DEPLOYMENT, NAMESPACE, old, label(LABEL_DEPLOYMENT, None)),
            lambda: variant(chat)["metadata"]["labels"].get(LABEL_DEPLOYMENT) == "chat",
        )
        chat.change(speculation={"maxDraftTokens": 4})
        new = f"chat-{_new_hash(chat, old)}"
        chat.until(
            lambda: "deletionTimestamp" in chat.variants()[old]["metadata"], "the old variant is deleted"
        )
        chat.until(
            lambda: [pod["metadata"]["name"].startswith(f"{new}-") for pod in chat.pods()] == [True],
            "its pods end",
        )
        assert chat.variants()[old]["spec"]["replicas"] == 0
        chat.until(lambda: HOLD in chat.condition("Reconciling")[2], "the status names the finalizer", SOON)
        assert chat.condition("Reconciling")[0] == "True"
    finally:
        heal(
            "H: finalizer of somebody's on the old Deployment; from its removal to UpToDate",
            lambda: chat.api.patch(DEPLOYMENT, NAMESPACE, old, {"metadata": {"finalizers": None}}),
            chat.in_force,
        )
    assert list(chat.variants()) == [new]
    created = [
        line
        for line in chat.operator_log().splitlines()
        if "created" in line and new in line and '"Deployment"' in line
    ]
    assert len(created) == 1, created
    assert pulse.failures == []


def _new_hash(chat: Served, old: str) -> str:
    chat.until(lambda: f"chat-{chat.status()['plan']['hash']}" != old, "the new plan is made")
    found: str = chat.status()["plan"]["hash"]
    return found


def delete(chat: Served, resource: resources.Resource) -> None:
    """Delete the one child of that kind."""
    ((name, _),) = children(chat, resource).items()
    chat.api.send("DELETE", resource.path(NAMESPACE, name))


def children(chat: Served, resource: resources.Resource) -> dict[str, dict[str, Any]]:
    """What the TurboDeployment owns of a kind and is not on its way out, by name."""
    return {
        item["metadata"]["name"]: item
        for item in chat.api.list(resource, NAMESPACE)
        if any(owner["name"] == chat.name for owner in item["metadata"].get("ownerReferences", ()))
        and "deletionTimestamp" not in item["metadata"]
    }


@pytest.mark.parametrize(
    ("kind", "path", "theirs"),
    [
        ("Deployment", "/spec/template/spec/containers/0/image", "example.com/theirs:1"),
        ("Deployment", "/spec/template/spec/nodeSelector", {"theirs": "yes"}),
        ("Deployment", "/spec/paused", True),
        ("Service", "/spec/selector/theirs", "yes"),
        ("Service", "/spec/ports/0/targetPort", 81),
        ("PodDisruptionBudget", "/spec/minAvailable", 1),
    ],
)
def test_what_somebody_writes_into_a_child_is_taken_out_again(
    chat: Served, pulse: Pulse, heal: Heal, kind: str, path: str, theirs: Any
) -> None:
    resource = resources.CHILDREN[kind]
    ((name, before),) = children(chat, resource).items()
    patch = [{"op": "add", "path": path, "value": theirs}]
    heal(
        f"{kind}: {path}",
        lambda: chat.api.send("PATCH", resource.path(NAMESPACE, name), patch, "application/json-patch+json"),
        lambda: [item["spec"] for item in children(chat, resource).values()] == [before["spec"]],
    )
    chat.until(lambda: chat.in_force() and len(chat.pods()) == 1, "it has settled")
    until_answered(chat, pulse)


@pytest.mark.parametrize("kind", ["ConfigMap", "ControllerRevision", "PodDisruptionBudget", "Service"])
def test_a_child_that_is_deleted_is_made_again(chat: Served, heal: Heal, kind: str) -> None:
    resource = resources.CHILDREN[kind]
    before = children(chat, resource).keys()
    assert before

    def is_back() -> bool:
        return children(chat, resource).keys() == before

    heal(f"{kind} deleted", lambda: delete(chat, resource), is_back)
    with Pulse(chat.target(CLIENT_SECONDS)) as pulse:  # a new Service has another address
        until_answered(chat, pulse)


def test_a_pod_that_loses_the_label_by_which_the_service_finds_it_gets_it_back(
    chat: Served, pulse: Pulse, heal: Heal
) -> None:
    (pod,) = chat.pods()
    name, uid = pod["metadata"]["name"], pod["metadata"]["labels"][LABEL_OWNER_UID]
    heal(
        "label of a pod by which the Service finds it removed; until the Service has the pod again",
        lambda: chat.api.patch(resources.POD, NAMESPACE, name, label(LABEL_OWNER_UID, None)),
        lambda: chat.pods()[0]["metadata"]["labels"].get(LABEL_OWNER_UID) == uid and chat.endpoints(),
    )
    until_answered(chat, pulse)


def test_a_third_replica_waits_for_room_and_a_deleted_child_is_made_again(
    chat: Served, pulse: Pulse, heal: Heal
) -> None:
    chat.change(replicas=3)
    chat.until(lambda: len(chat.pods()) == 2, "there is a second one")
    gone = variant(chat)["metadata"]

    def is_back() -> bool:
        found = chat.variants().get(gone["name"])
        return found is not None and found["metadata"]["uid"] != gone["uid"]

    heal("C: Deployment deleted while a third replica has no room", lambda: delete(chat, DEPLOYMENT), is_back)
    chat.until(lambda: chat.status()["readyReplicas"] == 2, "two serve")
    chat.until(lambda: chat.condition("Available")[2].startswith("2 of 3"), "the third is missed")
    assert "the cluster and its quotas hold 2 of cpu" in chat.condition("Available")[2]
    assert chat.condition("Available")[0] == "True"
    assert len(chat.pods()) == 2
    until_answered(chat, pulse)


def controllers(chat: Served) -> set[str]:
    """Names of the ReplicaSets of its pods; an empty one for a pod that has none, as while one lets it go."""
    owners = [pod["metadata"].get("ownerReferences") or [{"name": ""}] for pod in chat.pods()]
    return {references[0]["name"] for references in owners}


def test_a_deployment_that_is_deleted_without_its_pods_on_a_full_node_is_made_again_around_them(
    chat: Served, pulse: Pulse
) -> None:
    pods = {served.uid(pod) for pod in chat.pods()}
    assert len(pods) == 2
    orphaned = "-n", NAMESPACE, "--cascade=orphan", "--wait=false"
    for is_replica_set_too in (False, True, False, True):
        gone = variant(chat)["metadata"]
        chat.until(lambda: len(controllers(chat) - {""}) == len(controllers(chat)) == 1, "one has them", SOON)
        (controller,) = controllers(chat)
        chat.access.kubectl("delete", "deployment", gone["name"], *orphaned)
        if is_replica_set_too:
            chat.access.kubectl("delete", "replicaset", controller, *orphaned)
        chat.until(
            lambda uid=gone["uid"]: (
                [found["metadata"]["uid"] != uid for found in chat.variants().values()] == [True]
            ),
            "it is made again",
            SOON,
        )
        chat.until(
            lambda: variant(chat)["status"].get("availableReplicas") == 2, "it has its pods again", SOON
        )
    time.sleep(QUIET_SECONDS)  # that nothing ends them can only be waited for
    assert {served.uid(pod) for pod in chat.pods()} == pods
    until_answered(chat, pulse)
    assert pulse.failures == []


def test_an_object_gets_the_replicas_that_have_room_and_says_so(node_cluster: Cluster, chat: Served) -> None:
    chat.change(replicas=1)
    chat.until(chat.in_force, "one is left")
    other = Served(node_cluster, "other")
    try:
        other.create(replicas=2, rollout=ROLLOUT)
        other.until(lambda: other.status().get("readyReplicas") == 1, "one of two serves")
        other.until(lambda: other.condition("Available")[2].startswith("1 of 2"), "the second is missed")
        assert "hold" in other.condition("Available")[2]
        assert len(other.pods()) == 1
    finally:
        other.remove()


def tells_of_no_place(chat: Served) -> bool:
    """By the operator's count, or the scheduler's where the pod was made before the rival was counted."""
    status, _, message = chat.condition("Available")
    return status == "False" and ("hold 0 of cpu" in message or "Insufficient cpu" in message)


def test_a_suspended_one_whose_place_is_taken_says_so_and_serves_when_it_is_free(
    chat: Served, pulse: Pulse, heal: Heal
) -> None:
    chat.change(suspend=True)
    chat.until(lambda: not chat.pods(), "its pod is gone", LEAVE_SECONDS)
    chat.api.create(resources.POD, pause("rival", "1500m"))
    try:
        chat.access.kubectl("wait", "pod/rival", "-n", NAMESPACE, "--for=condition=Ready", "--timeout=100s")
        heal(
            "G: unsuspended while a rival has its place; until the status says so",
            lambda: chat.change(suspend=False),
            lambda: tells_of_no_place(chat),
        )
    finally:
        heal(
            "G: the rival deleted, its end included; until the pod has the node",
            lambda: chat.access.kubectl("delete", "pod", "rival", "-n", NAMESPACE, "--timeout=100s"),
            lambda: any("nodeName" in pod["spec"] for pod in chat.pods()),
        )
    chat.until(chat.in_force, "it serves again")
    until_answered(chat, pulse)
