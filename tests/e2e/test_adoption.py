"""A child that has lost its owner gets it back, and what an earlier object has left does not get another."""

from __future__ import annotations

from typing import Any

import pytest

from turbo_dev.serving_object import ServingObject
from turbo_operator import resources

pytestmark = pytest.mark.cluster

SERVICE = resources.CHILDREN["Service"]


@pytest.mark.parametrize("kind", ["Deployment", "ControllerRevision", "Service", "ConfigMap"])
def test_a_child_that_lost_its_owner_gets_it_back_and_nothing_rolls(cluster: Any, kind: str) -> None:
    served = ServingObject(cluster, f"orphan-{kind}".lower())
    resource = resources.CHILDREN[kind]
    name = {"Service": "chat", "ConfigMap": "chat-model"}.get(kind, served.variant)
    before, pods = served.child(resource, name), served.pod_names()
    assert before is not None
    cluster.api.patch(resource, served.namespace, name, {"metadata": {"ownerReferences": None}})

    def has_owner() -> bool:
        now = served.child(resource, name)
        assert now is not None
        return bool(now["metadata"].get("ownerReferences") == before["metadata"]["ownerReferences"])

    served.soon(has_owner, "it has its owner back")
    served.until_ready()
    assert served.pod_names() == pods
    cluster.until(served.rested, "nothing more is written")


def test_what_was_left_on_purpose_is_not_taken_over_by_the_next_object_of_the_name(cluster: Any) -> None:
    served = ServingObject(cluster, "left-behind")
    service, pods = served.child(SERVICE, "chat"), served.pod_names()
    served.kubectl("delete", "turbodeployment", "chat", "--cascade=orphan")
    cluster.create_deployment(served.namespace)

    def is_told() -> bool:
        ready = cluster.condition(cluster.deployment(served.namespace), "Ready")
        return "is there already" in ready["message"]

    cluster.until(is_told, "the status reports it")
    now = served.child(SERVICE, "chat")
    assert service is not None
    assert now is not None
    assert (now["spec"], served.pod_names()) == (service["spec"], pods)
    assert "ownerReferences" not in now["metadata"]
