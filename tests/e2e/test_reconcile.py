"""The operator against a real API server, under the role that the chart gives it."""

from __future__ import annotations

import re
import time
from typing import Any

import httpx
import pytest

from turbo_operator import resources
from turbo_operator.controller.kube import NotOwnedError

pytestmark = pytest.mark.cluster

DEPLOYMENT = resources.CHILDREN["Deployment"]
SERVICE = resources.CHILDREN["Service"]


def test_an_applied_object_becomes_ready_and_rests(cluster: Any) -> None:
    """All children, status, no finalizer, nothing of ours in the user's metadata; then no further write."""
    namespace = cluster.namespace("first-light")
    operator = cluster.start(namespace)
    cluster.create_deployment(namespace)
    body = cluster.until_ready(namespace)
    plan = body["status"]["plan"]["hash"]
    cluster.until(
        lambda: (
            sorted(cluster.children(namespace))
            == [
                "ConfigMap/chat-model",
                f"ControllerRevision/chat-{plan}",
                f"Deployment/chat-{plan}",
                "PodDisruptionBudget/chat",
                "Service/chat",
            ]
        ),
        "the children are those of a serving deployment",
    )
    assert "finalizers" not in body["metadata"]
    assert "annotations" not in body["metadata"]
    assert body["status"]["url"] == f"http://chat.{namespace}.svc/v1"
    for child in cluster.children(namespace).values():
        (owner,) = child["metadata"]["ownerReferences"]
        assert (owner["uid"], owner["controller"]) == (body["metadata"]["uid"], True)

    written = len(cluster.writes(namespace))
    time.sleep(2)
    assert len(cluster.writes(namespace)) == written
    assert [event for event in cluster.writes(namespace) if event["responseStatus"]["code"] >= 400] == []
    assert httpx.get(operator.health).status_code == 200
    # Told as it went: in the object's namespace, once each, with the words of its conditions.
    events = [
        event
        for event in cluster.api.list(resources.EVENT, namespace)
        if event["regarding"].get("uid") == body["metadata"]["uid"]
    ]
    events.sort(key=lambda event: event["eventTime"])
    told = [(event["reason"], event["type"]) for event in events]
    assert told[0] == ("Inspecting", "Normal")
    assert ("Planned", "Normal") in told
    assert told[-1] == ("Serving", "Normal")
    assert len(told) == len(set(told))
    described = cluster.access.kubectl("describe", "td", "chat", "-n", namespace)
    assert re.search(r"Normal\s+Serving\s+\S+\s+turbo-operator\s+1 of 1 replicas serve", described), described
    metrics = httpx.get(operator.metrics).text
    assert 'turbo_operator_api_requests_total{code="200",resource="services",verb="PATCH"}' not in metrics
    assert 'turbo_operator_api_requests_total{code="201",resource="services",verb="PATCH"} 1.0' in metrics
    assert 'turbo_operator_reconcile_seconds_count{result="done"}' in metrics
    assert 'code="403"' not in metrics, "the role allows all that the operator does"
    operator.stop()


def test_a_restart_with_nothing_to_do_writes_nothing(cluster: Any) -> None:
    namespace = cluster.namespace("restart")
    first = cluster.start(namespace)
    cluster.create_deployment(namespace)
    cluster.until_ready(namespace)
    first.stop()
    written = len(cluster.writes(namespace))
    size = first.log.stat().st_size
    second = cluster.start(namespace)
    cluster.until(lambda: "watching" in second.log.read_bytes()[size:].decode(), "the operator has listed")
    time.sleep(2)
    second.stop()
    assert len(cluster.writes(namespace)) == written


def test_an_object_is_deleted_at_once_while_the_operator_is_down_and_its_children_follow(
    cluster: Any,
) -> None:
    namespace = cluster.namespace("deletion")
    operator = cluster.start(namespace)
    cluster.create_deployment(namespace)
    cluster.until_ready(namespace)
    operator.stop()
    start = time.monotonic()
    cluster.access.kubectl("delete", "td", "chat", "-n", namespace)
    assert time.monotonic() - start < 5
    assert cluster.api.get(resources.TURBODEPLOYMENT, namespace, "chat") is None
    cluster.until(lambda: not cluster.children(namespace), "the garbage collector has taken the children")
    cluster.until(lambda: not cluster.api.list(resources.POD, namespace), "and their pods")


def test_scaling_and_a_new_plan_go_through_and_leave_one_variant(cluster: Any) -> None:
    namespace = cluster.namespace("changes")
    cluster.start(namespace)
    cluster.create_deployment(namespace)
    old = cluster.until_ready(namespace)["status"]["plan"]["hash"]
    cluster.access.kubectl("scale", "td/chat", "--replicas=2", "-n", namespace)
    body = cluster.until_ready(namespace, replicas=2)
    assert body["status"]["plan"]["hash"] == old
    change = {"spec": {"speculation": {"maxDraftTokens": 4}}}
    cluster.api.patch(resources.TURBODEPLOYMENT, namespace, "chat", change)
    cluster.until(
        lambda: (
            [old not in name for name in cluster.children(namespace) if name.startswith("Deployment/")]
            == [True]
        ),
        "the new variant alone is left",
    )
    body = cluster.until_ready(namespace, replicas=2)
    assert body["status"]["plan"]["maxDraftTokens"] == 4
    cluster.access.kubectl("scale", "td/chat", "--replicas=0", "-n", namespace)
    cluster.until_ready(namespace, replicas=0)


def test_a_hand_edit_of_a_child_and_its_removal_are_put_right(cluster: Any) -> None:
    namespace = cluster.namespace("drift")
    cluster.start(namespace)
    cluster.create_deployment(namespace)
    cluster.until_ready(namespace)
    cluster.api.patch(
        SERVICE, namespace, "chat", {"spec": {"selector": {"serving.turbo.dev/role": "nobody"}}}
    )
    cluster.until(
        lambda: (
            cluster.api.get(SERVICE, namespace, "chat")["spec"]["selector"]["serving.turbo.dev/role"]
            == "serving"
        ),
        "the selector is ours again",
    )
    budget = resources.CHILDREN["PodDisruptionBudget"]
    cluster.access.kubectl("delete", "pdb", "chat", "-n", namespace)
    cluster.until(lambda: cluster.api.get(budget, namespace, "chat"), "the budget is back")
    # What others add beside our fields is theirs.
    cluster.api.patch(SERVICE, namespace, "chat", {"metadata": {"annotations": {"team": "theirs"}}})
    written = len(cluster.writes(namespace))
    time.sleep(1)
    assert len(cluster.writes(namespace)) == written


def test_an_object_of_somebody_else_is_never_taken_over(cluster: Any) -> None:
    namespace = cluster.namespace("stranger")
    theirs = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "chat", "namespace": namespace},
        "spec": {"selector": {"app": "theirs"}, "ports": [{"port": 80}]},
    }
    cluster.api.create(SERVICE, theirs)
    cluster.start(namespace)
    cluster.create_deployment(namespace)
    refusal = NotOwnedError("Service", "chat").sentence
    cluster.until(
        lambda: cluster.condition(cluster.deployment(namespace), "Ready")["message"] == refusal,
        "the condition says whose it is",
    )
    assert cluster.api.get(SERVICE, namespace, "chat")["spec"]["selector"] == {"app": "theirs"}


def test_a_price_that_a_user_sets_survives_a_restart_and_replans(cluster: Any) -> None:
    namespace = cluster.namespace("prices")
    operator = cluster.start(namespace, TURBO_APPLY_CATALOG="true")
    cluster.create_deployment(namespace)
    cluster.until_ready(namespace)
    price = {"spec": {"pricing": {"perAcceleratorHour": {"onDemand": "0.05"}}}}
    cluster.api.patch(resources.TURBOACCELERATOR, "", "cpu", price)
    cluster.until(
        lambda: cluster.deployment(namespace)["status"]["plan"]["predicted"]["costPerHour"] == "0.05",
        "the new price counts",
    )
    operator.stop()
    assert "TurboAccelerator written" in operator.log.read_text()
    size = operator.log.stat().st_size
    cluster.start(namespace, TURBO_APPLY_CATALOG="true")
    done = "the shipped accelerators are known"
    cluster.until(lambda: done in operator.log.read_bytes()[size:].decode(), "the operator is back")
    assert "TurboAccelerator written" not in operator.log.read_bytes()[size:].decode()
    assert cluster.api.get(resources.TURBOACCELERATOR, "", "cpu")["spec"]["pricing"][
        "perAcceleratorHour"
    ] == {"onDemand": "0.05"}


def test_two_namespaces_are_served_and_a_third_is_not(cluster: Any) -> None:
    names = [cluster.namespace(f"watched-{number}") for number in range(3)]
    for namespace in names:
        cluster.create_deployment(namespace)
    cluster.start(",".join(names[:2]))
    for namespace in names[:2]:
        cluster.until_ready(namespace)
    assert "status" not in cluster.deployment(names[2])


def test_a_cluster_without_the_kinds_is_told_so_in_one_sentence(cluster: Any, tmp_path: Any) -> None:
    crd = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/turboaccelerators.serving.turbo.dev"
    served = {"spec": {"versions": cluster.api.send("GET", crd)["spec"]["versions"]}}
    hidden = {"spec": {"versions": [{**served["spec"]["versions"][0], "served": False}]}}
    cluster.api.send("PATCH", crd, hidden, "application/merge-patch+json")
    try:
        operator = cluster.start("no-kinds")
        assert operator.process.wait(30) == 1
        assert (
            "does not know TurboAccelerator: install the CustomResourceDefinitions"
            in operator.log.read_text()
        )
    finally:
        cluster.api.send("PATCH", crd, served, "application/merge-patch+json")


def test_an_object_made_again_under_its_name_gets_children_of_its_own(cluster: Any) -> None:
    namespace = cluster.namespace("again")
    operator = cluster.start(namespace)
    cluster.create_deployment(namespace)
    cluster.until_ready(namespace)
    cluster.access.kubectl("delete", "td", "chat", "-n", namespace)
    uid = cluster.create_deployment(namespace)["metadata"]["uid"]
    cluster.until(
        lambda: (
            {child["metadata"]["ownerReferences"][0]["uid"] for child in cluster.children(namespace).values()}
            == {uid}
        ),
        "every child belongs to the new object",
    )
    cluster.until_ready(namespace)
    assert "belongs to somebody else" not in operator.log.read_text()


def test_an_operator_without_its_rights_ends_and_says_which_it_lacks(cluster: Any) -> None:
    binding = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/turbo"
    kept = cluster.api.send("GET", binding)
    cluster.api.send("DELETE", binding)
    try:
        operator = cluster.start("")
        assert operator.process.wait(60) == 1
        assert "cannot list resource" in operator.log.read_text()
    finally:
        del kept["metadata"]["resourceVersion"], kept["metadata"]["uid"]
        cluster.api.send("POST", binding.rpartition("/")[0], kept)
