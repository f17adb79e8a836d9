"""What heals within seconds once the fault in an object is gone."""

from __future__ import annotations

from typing import Any

import pytest

from turbo_operator import resources
from turbo_operator.api import LABEL_DEPLOYMENT

pytestmark = pytest.mark.cluster

DEPLOYMENT, SERVICE = resources.CHILDREN["Deployment"], resources.CHILDREN["Service"]
SOON = 5.0


def test_a_name_that_a_stranger_gives_free_is_taken_at_once(cluster: Any) -> None:
    namespace = cluster.namespace("stranger-leaves")
    ports = [{"port": 80}]
    theirs = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "chat", "namespace": namespace},
        "spec": {"selector": {"app": "theirs"}, "ports": ports},
    }
    cluster.api.create(SERVICE, theirs)
    cluster.start(namespace)
    cluster.create_deployment(namespace)

    def is_refused() -> bool:
        return bool(cluster.condition(cluster.deployment(namespace), "Ready")["reason"] == "ApplyRejected")

    cluster.until(is_refused, "it is refused")
    cluster.access.kubectl("delete", "service", "chat", "-n", namespace)
    cluster.until(lambda: not is_refused(), "it is refused no more", SOON)
    cluster.until_ready(namespace)
    selector = cluster.api.get(SERVICE, namespace, "chat")["spec"]["selector"]
    assert selector[LABEL_DEPLOYMENT] == "chat"


def test_what_serves_is_healed_while_the_api_server_refuses_its_successor(cluster: Any) -> None:
    """Found in review: a Deployment that a quota refused kept the one that serves from being written."""
    namespace = cluster.namespace("refused-successor")
    cluster.start(namespace)
    cluster.create_deployment(namespace, replicas=2)
    old = f"chat-{cluster.until_ready(namespace, replicas=2)['status']['plan']['hash']}"
    name, hard = "one-deployment", {"count/deployments.apps": "1"}
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": name, "namespace": namespace}}
    cluster.api.create(resources.QUOTA, {**quota, "spec": {"hard": hard}})
    cluster.until(
        lambda: (cluster.api.get(resources.QUOTA, namespace, name).get("status") or {}).get("used"),
        "the quota counts",
    )
    spec = {"speculation": {"maxDraftTokens": 4}}
    cluster.api.patch(resources.TURBODEPLOYMENT, namespace, "chat", {"spec": spec})
    cluster.until(
        lambda: cluster.condition(cluster.deployment(namespace), "Ready")["reason"] == "ApplyRejected",
        "the new variant is refused",
    )
    cluster.access.kubectl("scale", "deployment", old, "--replicas=0", "-n", namespace)
    cluster.until(
        lambda: cluster.api.get(DEPLOYMENT, namespace, old)["spec"]["replicas"] == 2, "it is healed", SOON
    )
    cluster.access.kubectl("delete", "resourcequota", name, "-n", namespace)


def test_a_variant_that_loses_its_label_as_a_rollout_begins_ends_and_nothing_is_made_twice(
    cluster: Any,
) -> None:
    namespace = cluster.namespace("unlabelled-rollout")
    operator = cluster.start(namespace)
    cluster.create_deployment(namespace)
    old = f"chat-{cluster.until_ready(namespace)['status']['plan']['hash']}"
    cluster.access.kubectl("label", "deployment", old, f"{LABEL_DEPLOYMENT}-", "-n", namespace)
    spec = {"speculation": {"maxDraftTokens": 4}}
    cluster.api.patch(resources.TURBODEPLOYMENT, namespace, "chat", {"spec": spec})

    def variants() -> list[str]:
        return [item["metadata"]["name"] for item in cluster.api.list(DEPLOYMENT, namespace)]

    cluster.until(lambda: len(variants()) == 1 and old not in variants(), "the new variant is alone")
    cluster.until_ready(namespace)
    created = [line for line in operator.log.read_text().splitlines() if "created" in line]
    of_variants = [line for line in created if "kind=Deployment" in line]
    assert len(of_variants) == 2, created
    assert len(created) == len(set(map(child, created))), created


def child(line: str) -> tuple[str, ...]:
    """Kind and name of what a line of the log is about."""
    return tuple(word for word in line.split() if word.startswith(("kind=", "child=")))
