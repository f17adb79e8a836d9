"""What the API server takes and the operator cannot bring about becomes a sentence; others go on."""

from __future__ import annotations

from typing import Any

import pytest

from turbo_operator import resources
from turbo_operator.api import API_VERSION

pytestmark = pytest.mark.cluster

CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
QUOTA = resources.Resource("ResourceQuota", "", "v1", "resourcequotas")

# Name, spec, reason and part of the sentence of the condition Ready.
REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    (
        "unknown-accelerator",
        {"accelerators": {"allowed": ["abacus"]}},
        "AcceleratorNotFound",
        "no TurboAccelerator abacus",
    ),
    ("too-dear", {"cost": {"maxPerHour": "0.01"}}, "BudgetExceeded", "above spec.cost.maxPerHour of 0.01"),
    ("too-many", {"replicas": 9, "cost": {"maxPerHour": "0.30"}}, "BudgetExceeded", "for 9 replicas"),
    ("too-small", {"accelerators": {"allowed": ["tiny"]}}, "InsufficientMemory", "tiny"),
    (
        "no-price",
        {"accelerators": {"allowed": ["tiny", "unpriced"]}},
        "PriceUnknown",
        "price of unpriced is unknown",
    ),
    (
        "too-long",
        {"model": {"uri": "pvc://models/m.gguf", "maxModelLen": 100000}},
        "NotYetSupported",
        "maxModelLen is 100000",
    ),
    (
        "contradiction",
        {
            "podTemplate": {
                "spec": {
                    "resources": {
                        "requests": {"ephemeral-storage": "4Gi"},
                        "limits": {"ephemeral-storage": "2Gi"},
                    }
                }
            }
        },
        "ApplyRejected",
        "must be less than or equal to ephemeral-storage limit",
    ),
    (  # this API server has no image volumes
        "in-an-image",
        {"model": {"uri": "oci://registry.test/smollm2:1"}},
        "InspectFailed",
        "dropped that of registry.test/smollm2:1: take Kubernetes",
    ),
    (
        "more-cores",
        {"podTemplate": {"spec": {"resources": {"limits": {"cpu": "16"}}}}},
        "NotYetSupported",
        "choose another TurboAccelerator",
    ),
    (
        "no-class",
        {"podTemplate": {"spec": {"priorityClassName": "missing"}}},
        "InspectRetrying",
        "has made no pod",
    ),
    (
        "unreadable",
        {"model": {"uri": "pvc://models/gone.gguf"}},
        "InspectRetrying",
        "there is no file gone.gguf",
    ),
]


def accelerator(name: str, memory: Any, **pricing: Any) -> dict[str, Any]:
    spec = {"resourceName": "cpu", "memory": f"{memory}Gi", "provisioning": "Elastic"} | pricing
    return {"apiVersion": API_VERSION, "kind": "TurboAccelerator", "metadata": {"name": name}, "spec": spec}


def ready(cluster: Any, namespace: str, name: str) -> dict[str, Any]:
    return cluster.condition(cluster.deployment(namespace, name), "Ready")


def test_every_bad_object_says_why_and_a_good_one_beside_them_stays_ready(cluster: Any) -> None:
    namespace = cluster.namespace("bad-objects")
    price = {"pricing": {"perAcceleratorHour": {"onDemand": "0.01"}}}
    cluster.access.apply(accelerator("tiny", "0.1", **price), accelerator("unpriced", 4))
    cluster.kubelet.unreadable["unreadable"] = "there is no file gone.gguf below /models"
    cluster.kubelet.unreadable["in-an-image"] = "there is no folder /models"
    operator = cluster.start(namespace)
    cluster.create_deployment(namespace, "good")
    cluster.until_ready(namespace, "good")
    before = ready(cluster, namespace, "good")
    for name, spec, _, _ in REFUSED:
        cluster.create_deployment(namespace, name, **spec)
    for name, _, reason, sentence in REFUSED:
        cluster.until(
            lambda name=name, sentence=sentence: sentence in ready(cluster, namespace, name)["message"],
            f"{name} says {sentence!r}: {ready(cluster, namespace, name)}",
        )
        said = ready(cluster, namespace, name)
        assert (said["status"], said["reason"]) == ("False", reason)
    cluster.create_deployment(namespace, "late")
    cluster.until_ready(namespace, "late")
    assert ready(cluster, namespace, "good") == before
    operator.stop()


def test_a_corrected_spec_is_inspected_anew_and_serves(cluster: Any) -> None:
    """A Job cannot be changed: what was wrong with its pod must not hold the corrected object up."""
    namespace = cluster.namespace("corrected")
    cluster.start(namespace)
    cluster.create_deployment(namespace, podTemplate={"spec": {"priorityClassName": "missing"}})
    cluster.until(
        lambda: "has made no pod" in ready(cluster, namespace, "chat")["message"], "the Job is stuck"
    )
    cluster.access.kubectl(
        "patch",
        "td",
        "chat",
        "-n",
        namespace,
        "--type=json",
        '--patch=[{"op":"remove","path":"/spec/podTemplate"}]',
    )
    cluster.until_ready(namespace)


def test_what_the_api_server_refuses_is_not_asked_for_again_and_again(cluster: Any) -> None:
    namespace = cluster.namespace("refused-once")
    cluster.start(namespace)
    toleration = {
        "operator": "Exists",
        "value": "x",
    }  # the rules of pods forbid it, those of the overlay do not
    cluster.create_deployment(namespace, podTemplate={"spec": {"tolerations": [toleration]}})
    cluster.until(lambda: ready(cluster, namespace, "chat")["reason"] == "ApplyRejected", "it is refused")
    cluster.create_deployment(namespace, "other")
    cluster.until_ready(namespace, "other")
    codes = [
        event["responseStatus"]["code"]
        for event in cluster.all_writes(namespace)
        if event["objectRef"]["resource"] == "jobs"
    ]
    assert 1 <= codes.count(422) <= 2


def test_a_quota_is_a_condition_and_its_end_is_noticed(cluster: Any) -> None:
    namespace = cluster.namespace("quota")
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "none", "namespace": namespace},
        "spec": {"hard": {"count/deployments.apps": "0"}},
    }
    cluster.api.create(QUOTA, quota)
    cluster.until(
        lambda: (
            "count/deployments.apps"
            in cluster.api.get(QUOTA, namespace, "none").get("status", {}).get("used", {})
        ),
        "the quota counts",
    )
    cluster.start(namespace, TURBO_RESYNC_SECONDS="1")
    cluster.create_deployment(namespace)
    cluster.until(
        lambda: "exceeded quota" in ready(cluster, namespace, "chat")["message"],
        "the condition names the quota",
    )
    cluster.access.kubectl("delete", "resourcequota", "none", "-n", namespace)
    cluster.until_ready(namespace)


def test_an_object_stored_before_a_rule_was_made_says_so_and_stops_nobody(cluster: Any) -> None:
    namespace = cluster.namespace("predates")
    path = f"{CRDS}/turbodeployments.serving.turbo.dev"
    strict = cluster.api.send("GET", path)["spec"]["versions"]
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    lax = [{**strict[0], "schema": {"openAPIV3Schema": schema}}]
    invalid = {"model": {"uri": "ftp://old"}}
    cluster.api.send("PATCH", path, {"spec": {"versions": lax}}, "application/merge-patch+json")
    try:
        cluster.until(lambda: stored(cluster, namespace, invalid), "the lax schema is in force")
    finally:
        cluster.api.send("PATCH", path, {"spec": {"versions": strict}}, "application/merge-patch+json")
    cluster.start(namespace)
    cluster.create_deployment(namespace, "good")
    cluster.until_ready(namespace, "good")
    cluster.until(
        lambda: ready(cluster, namespace, "old")["reason"] == "InvalidSpec", "the old one is invalid"
    )
    assert "spec.model.uri: write hf://" in ready(cluster, namespace, "old")["message"]


def stored(cluster: Any, namespace: str, spec: dict[str, Any]) -> bool:
    """Whether the API server takes the object: a new schema is in force a moment after it was written."""
    body = {"apiVersion": API_VERSION, "kind": "TurboDeployment", "metadata": {"name": "old"}, "spec": spec}
    code = cluster.api.client.post(resources.TURBODEPLOYMENT.path(namespace), json=body).status_code
    assert code in (201, 422)
    return bool(code == 201)
