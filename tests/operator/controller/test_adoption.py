"""What has lost its owner is adopted if it can only be ours, and while the owner stays."""

from __future__ import annotations

from typing import Any

import pytest

from turbo_operator.api import FIELD_MANAGER, LABEL_DEPLOYMENT, LABEL_OWNER_UID, TurboDeployment, parse
from turbo_operator.controller.adoption import adopt, is_orphan
from turbo_operator.controller.kube import ConflictError

EARLIER, CREATED, LATER = (f"2026-01-01T00:00:0{second}Z" for second in range(3))


def td(**meta: Any) -> TurboDeployment:
    facts = {"name": "chat", "namespace": "team", "uid": "mine", "creationTimestamp": CREATED}
    return parse(
        {
            "apiVersion": "serving.turbo.dev/v1alpha1",
            "kind": "TurboDeployment",
            "metadata": facts | meta,
            "spec": {"model": {"uri": "pvc://models/chat"}},
        }
    )


def orphan(kind: str = "Service", created: str = LATER, **more: Any) -> dict[str, Any]:
    applied = {"manager": FIELD_MANAGER, "operation": "Apply", "fieldsV1": {"f:spec": {}}}
    meta = {"name": "chat", "labels": {LABEL_DEPLOYMENT: "chat"}, "creationTimestamp": created}
    return {
        "kind": kind,
        "metadata": {**meta, "uid": "u", "resourceVersion": "7", "managedFields": [applied]},
        **more,
    }


def bearing(uid: str) -> list[dict[str, Any]]:
    """One of each kind that says whose pods it makes or selects."""
    labels = {LABEL_OWNER_UID: uid}
    template = {"metadata": {"labels": labels}}
    return [
        orphan("Deployment", spec={"template": template, "selector": {"matchLabels": {}}}),
        orphan("ControllerRevision", data=template),
        orphan("Service", spec={"selector": labels}),
        orphan("PodDisruptionBudget", spec={"selector": {"matchLabels": labels}}),
    ]


def test_what_we_applied_for_this_object_is_ours() -> None:
    assert is_orphan(orphan(), td())
    assert is_orphan(orphan(created=CREATED), td())
    assert all(is_orphan(body, td()) for body in bearing("mine"))


def test_what_an_earlier_object_of_the_name_has_left_is_not() -> None:
    assert not is_orphan(orphan(created=EARLIER), td())
    assert not any(is_orphan(body, td()) for body in bearing("earlier"))


def test_what_somebody_else_owns_labelled_or_applied_is_not() -> None:
    owned = orphan()
    owned["metadata"]["ownerReferences"] = [{"kind": "Other", "name": "o", "uid": "o", "controller": True}]
    unlabelled, theirs = orphan(), orphan()
    unlabelled["metadata"]["labels"] = {}
    theirs["metadata"]["managedFields"][0]["manager"] = "kubectl"
    assert not any(is_orphan(body, td()) for body in (owned, unlabelled, theirs))


class Server:
    """Has one TurboDeployment, or none, and keeps what is patched."""

    def __init__(self, **owner: Any) -> None:
        self.owner = {"metadata": owner} if owner else None
        self.patches: list[Any] = []

    async def find(self, resource: Any, namespace: str, name: str) -> Any:
        assert (resource.kind, namespace, name) == ("TurboDeployment", "team", "chat")
        return self.owner

    async def merge(self, resource: Any, namespace: str, name: str, patch: Any) -> Any:
        self.patches.append(patch["metadata"])
        return patch


async def test_an_orphan_gets_its_owner_back_once_and_only_as_it_was_seen() -> None:
    server: Any = Server(uid="mine")
    body = orphan()
    body["metadata"]["ownerReferences"] = [{"uid": "mine", "controller": False}, {"uid": "other"}]
    await adopt(server, td(), body)
    (patch,) = server.patches
    assert patch["resourceVersion"] == "7"
    assert [(owner["uid"], owner.get("controller")) for owner in patch["ownerReferences"]] == [
        ("other", None),
        ("mine", True),
    ]


@pytest.mark.parametrize(
    "owner", [{}, {"uid": "another"}, {"uid": "mine", "deletionTimestamp": LATER}], ids=str
)
async def test_nothing_is_adopted_while_the_owner_leaves(owner: dict[str, Any]) -> None:
    """The garbage collector has let the orphan go, and would remove what is given back to the owner."""
    server: Any = Server(**owner)
    with pytest.raises(ConflictError, match="is being removed"):
        await adopt(server, td(), orphan())
    assert server.patches == []
