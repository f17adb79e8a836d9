"""Drafts and kept prompts on a real API server: what may change as pods run changes without a rollout."""

from __future__ import annotations

import json
from typing import Any

import pytest

from turbo_operator import resources
from turbo_operator.api import API_VERSION

pytestmark = pytest.mark.cluster

CONFIGMAP = resources.CHILDREN["ConfigMap"]
DEPLOYMENT = resources.CHILDREN["Deployment"]
MODEL = "sha256:" + "0" * 64  # of the facts that the test's kubelet reports


def draft(namespace: str, name: str, path: str, target: str = MODEL) -> dict[str, Any]:
    return {
        "apiVersion": API_VERSION,
        "kind": "TurboDraft",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "method": "TurboHeads",
            "location": {"claimName": "drafts", "path": path},
            "version": name,
            "digest": MODEL,
            "targetDigest": target,
        },
    }


def named(cluster: Any, namespace: str) -> dict[str, Any]:
    found = cluster.api.get(CONFIGMAP, namespace, "chat-drafts")
    document: dict[str, Any] = json.loads(found["data"]["drafts.json"]) if found else {"there": "is none"}
    return document


def pods_of(cluster: Any, namespace: str) -> list[str]:
    """Names of the variants: another one is a rollout."""
    return sorted(item["metadata"]["name"] for item in cluster.api.list(DEPLOYMENT, namespace))


def ready(cluster: Any, namespace: str) -> tuple[str, str]:
    found = cluster.condition(cluster.deployment(namespace), "DraftReady")
    return found["status"], found["reason"]


def ask_for(cluster: Any, namespace: str, name: str) -> None:
    text = json.dumps({"spec": {"speculation": {"draftRef": {"name": name}}}})
    cluster.access.kubectl("patch", "td", "chat", "-n", namespace, "--type=merge", "-p", text)


def test_a_draft_that_comes_later_is_taken_up_and_another_one_without_a_rollout(cluster: Any) -> None:
    namespace = cluster.namespace("drafts")
    cluster.start(namespace)
    cluster.create_deployment(namespace, speculation={"draftRef": {"name": "first"}})
    cluster.until_ready(namespace)
    assert ready(cluster, namespace) == ("False", "NotFound")
    without = pods_of(cluster, namespace)

    cluster.access.apply(draft(namespace, "first", "chat/1"))
    cluster.until(
        lambda: named(cluster, namespace) == {"heads": "/drafts/drafts/chat/1", "version": "first"},
        "the draft is named to pods",
    )
    cluster.until(
        lambda: len(with_it := pods_of(cluster, namespace)) == 1 and with_it != without, "pods mount it"
    )
    cluster.until_ready(namespace)
    status = cluster.deployment(namespace)["status"]
    assert (status["draft"]["name"], status["draft"]["version"]) == ("first", "first")
    assert status["plan"]["maxDraftTokens"] == 32
    assert ready(cluster, namespace) == ("Unknown", "Loading")  # no engine answers in this tier
    with_it = pods_of(cluster, namespace)

    cluster.access.apply(draft(namespace, "second", "chat/2"))
    ask_for(cluster, namespace, "second")
    cluster.until(
        lambda: named(cluster, namespace) == {"heads": "/drafts/drafts/chat/2", "version": "second"},
        "the other one is named",
    )
    assert pods_of(cluster, namespace) == with_it

    ask_for(cluster, namespace, "third")  # which nobody has applied yet
    cluster.until(
        lambda: ready(cluster, namespace) == ("False", "NotFound"), "the status says that it is not there"
    )
    assert named(cluster, namespace) == {"heads": "/drafts/drafts/chat/2", "version": "second"}
    assert pods_of(cluster, namespace) == with_it
    ask_for(cluster, namespace, "second")

    cluster.access.apply(draft(namespace, "second", "chat/2", target="sha256:other"))
    cluster.until(lambda: named(cluster, namespace) == {}, "one of another model is named to nobody")
    cluster.until(
        lambda: ready(cluster, namespace) == ("False", "TargetModelMismatch"), "and the status says so"
    )
    assert pods_of(cluster, namespace) == with_it
    cluster.until_ready(namespace)


def test_what_is_kept_of_prompts_changes_without_a_rollout_and_ends_with_one(cluster: Any) -> None:
    namespace = cluster.namespace("capture")
    cluster.start(namespace)
    capture = {"persistentVolumeClaim": {"claimName": "prompts"}, "sampleFraction": "0.5"}
    cluster.create_deployment(namespace, capture=capture)
    cluster.until_ready(namespace)

    def settings() -> dict[str, Any]:
        found = cluster.api.get(CONFIGMAP, namespace, "chat-capture")
        document: dict[str, Any] = json.loads(found["data"]["capture.json"]) if found else {}
        return document

    def patch(**change: Any) -> None:
        text = json.dumps({"spec": {"capture": change}})
        cluster.access.kubectl("patch", "td", "chat", "-n", namespace, "--type=merge", "-p", text)

    cluster.until(lambda: settings().get("sampleFraction") == 0.5, "the settings are there")
    before = pods_of(cluster, namespace)
    patch(sampleFraction="1", redact=["[0-9]{16}"])
    cluster.until(lambda: settings().get("sampleFraction") == 1.0, "the change is there")
    assert settings()["redact"] == ["[0-9]{16}"]
    assert pods_of(cluster, namespace) == before
    patch(suspend=True)
    cluster.until(
        lambda: settings()["sampleFraction"] == 0 and not {*pods_of(cluster, namespace)} & {*before},
        "pods keep nothing until others that do not mount the settings have replaced them",
    )
