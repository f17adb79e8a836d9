"""What the API server refuses holds up nothing that serves, and lets nothing take its place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from turbo_operator.api import ANNOTATION_APPLIED_HASH, GROUP, TurboDeployment, parse
from turbo_operator.controller import child_writer
from turbo_operator.controller.cache.store import Cache, Key
from turbo_operator.controller.child_writer import ChildWriter
from turbo_operator.controller.kube import OutdatedError, RefusedError, TerminatingError
from turbo_operator.resources import Resource
from turbo_operator.snapshot import Presence

KEY = Key("team", "chat")
OWNER = {"kind": "TurboDeployment", "name": "chat", "uid": "u", "controller": True}


def td(**spec: Any) -> TurboDeployment:
    return parse(
        {
            "apiVersion": "serving.turbo.dev/v1alpha1",
            "kind": "TurboDeployment",
            "metadata": {"name": "chat", "namespace": "team", "uid": "u"},
            "spec": {"model": {"uri": "pvc://models/chat"}, **spec},
        }
    )


def manifest(kind: str, name: str, replicas: int | None = None, version: int = 0) -> dict[str, Any]:
    meta = {
        "name": name,
        "namespace": "team",
        "annotations": {ANNOTATION_APPLIED_HASH: f"{kind} {name} {replicas}"},
        "labels": {f"{GROUP}/deployment": "chat"},
    }
    mounts = {"spec": {"volumes": [{"configMap": {"name": "chat-drafts"}}]}}
    spec = {} if replicas is None else {"spec": {"replicas": replicas, "template": mounts}}
    if version:
        meta |= {"uid": f"{kind} {name}", "resourceVersion": str(version), "ownerReferences": [OWNER]}
    return {"kind": kind, "metadata": meta, **spec}


class Server:
    """Takes what it is sent but for what it refuses, by kind and name; `theirs` are objects that exist."""

    def __init__(
        self, *refused: tuple[str, str], theirs: Mapping[tuple[str, str], Any] | None = None
    ) -> None:
        self.refused, self.theirs, self.applied = set(refused), dict(theirs or {}), []  # type: ignore[var-annotated]
        self.deleted: list[tuple[str, str]] = []

    async def find(self, resource: Resource, _: str, name: str) -> Any:
        return self.theirs.get((resource.kind, name))

    async def delete(self, resource: Resource, _: str, name: str, __: str) -> None:
        self.deleted.append((resource.kind, name))

    async def apply(self, resource: Resource, wanted: Mapping[str, Any]) -> Any:
        name = wanted["metadata"]["name"]
        if (resource.kind, name) in self.refused:
            raise RefusedError(403, "Forbidden", f"no {name}")
        self.applied.append((name, (wanted.get("spec") or {}).get("replicas")))
        meta = {"uid": f"{resource.kind} {name}", "resourceVersion": "9", "ownerReferences": [OWNER]}
        return {**wanted, "kind": resource.kind, "metadata": {**wanted["metadata"], **meta}}


async def written(server: Server, existing: list[dict[str, Any]], *wanted: dict[str, Any]) -> Any:
    cache = Cache()
    for body in existing:
        cache.put_child(body)
    writer = ChildWriter(KEY, td(), cache, server, set())  # type: ignore[arg-type]
    try:
        await writer.write_children(wanted)
    except OutdatedError as error:
        return error
    return writer.refusal


async def test_what_serves_is_healed_though_its_successor_is_refused() -> None:
    server = Server(("Deployment", "chat-new"))
    existing = [manifest("Deployment", "chat-old", 0, version=1)]
    new, old = manifest("Deployment", "chat-new", 1), manifest("Deployment", "chat-old", 2)
    error = await written(server, existing, new, old)
    assert isinstance(error, RefusedError)
    assert server.applied == [("chat-old", 2)]


@pytest.mark.parametrize("refused", [("ConfigMap", "chat-drafts"), ("Deployment", "chat-old")])
async def test_nothing_is_lowered_beside_a_refusal_and_nothing_takes_its_place(
    refused: tuple[str, str],
) -> None:
    """Found in review: the new variant grew with every look while the old one stayed as it was."""
    server = Server(refused)
    existing = [manifest("Deployment", f"chat-{name}", 2, version=1) for name in ("old", "new")]
    for body in existing:
        body["status"] = {"availableReplicas": 2}
    mounted = manifest("ConfigMap", "chat-drafts")
    old, new = manifest("Deployment", "chat-old", 1), manifest("Deployment", "chat-new", 3)
    assert isinstance(await written(server, existing, mounted, old, new), RefusedError)
    assert [name for name, _ in server.applied if name != "chat-drafts"] == []


@pytest.mark.parametrize(("name", "exists"), [("chat-model", False), ("chat-drafts", True)])
async def test_a_refused_configmap_holds_up_nothing_where_pods_start_without_it_or_with_what_was(
    name: str, exists: bool
) -> None:
    """Found in review: a rollback stood still at one of three replicas for a ConfigMap that none mounts."""
    server = Server(("ConfigMap", name))
    existing = [manifest("Deployment", f"chat-{name}", 2, version=1) for name in ("old", "new")]
    existing += [manifest("ConfigMap", name, version=1)] if exists else []
    for body in existing:
        body["status"] = {"availableReplicas": 2}
        body["metadata"]["annotations"] = {ANNOTATION_APPLIED_HASH: "earlier"}
    old, new = manifest("Deployment", "chat-old", 1), manifest("Deployment", "chat-new", 3)
    assert isinstance(await written(server, existing, manifest("ConfigMap", name), old, new), RefusedError)
    assert server.applied == [("chat-old", 1), ("chat-new", 3)]


async def test_a_deployment_without_a_pod_that_answers_goes_however_slow_others_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Found in review: a webhook took seconds to refuse, and a plan that had failed kept its place."""
    monkeypatch.setattr(child_writer, "FRESH_SECONDS", 0.0)
    server = Server()
    failed = manifest("Deployment", "chat-new", 2, version=1)
    assert await written(server, [failed], manifest("Deployment", "chat-new", 0)) is None
    assert server.applied == [("chat-new", 0)]


async def test_nothing_is_lowered_by_what_was_seen_long_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by the storm: each write took seconds, and the last one ended a pod that had become ready."""
    monkeypatch.setattr(child_writer, "FRESH_SECONDS", 0.0)
    server = Server()
    existing = [manifest("Deployment", f"chat-{name}", 2, version=1) for name in ("old", "new")]
    for body in existing:
        body["status"] = {"availableReplicas": 2}
    old, new = manifest("Deployment", "chat-old", 1), manifest("Deployment", "chat-new", 3)
    assert isinstance(await written(server, existing, new, old), OutdatedError)
    assert server.applied == [("chat-new", 3)]


async def test_a_deployment_is_never_without_its_revision() -> None:
    server = Server(("ControllerRevision", "chat-new"))
    wanted = manifest("ControllerRevision", "chat-new"), manifest("Deployment", "chat-new", 1)
    assert isinstance(await written(server, [], *wanted), RefusedError)
    assert server.applied == []


async def test_what_an_earlier_object_left_is_a_matter_of_time_and_says_so() -> None:
    left = manifest("Service", "chat", version=1)
    left["metadata"]["ownerReferences"] = [{**OWNER, "uid": "an earlier one"}]
    server = Server(theirs={("Service", "chat"): left})
    error = await written(server, [], manifest("Service", "chat"), manifest("PodDisruptionBudget", "chat"))
    assert isinstance(error, TerminatingError)
    assert not error.is_final
    assert "Service chat of an earlier TurboDeployment is still being removed" in error.message
    assert server.applied == [("chat", None)], "the rest is written"


@pytest.mark.parametrize(
    ("routing", "presence", "goes"),
    [
        ("Gateway", Presence.UNKNOWN, False),
        ("Gateway", Presence.REFUSED, False),
        ("Gateway", Presence.PRESENT, False),  # seen after the decision was made
        ("Gateway", Presence.ABSENT, True),  # with its kind: nothing is kept of it
        ("Service", Presence.PRESENT, True),
    ],
)
async def test_a_pool_that_is_asked_for_stays_though_it_could_not_be_rendered(
    routing: str, presence: Presence, goes: bool
) -> None:
    """Found in review: pools were listed while it was not known yet that there are any, and deleted."""
    cache, server = Cache(), Server()
    cache.put_child(manifest("InferencePool", "chat", version=1))
    cache.presences["InferencePool", None] = presence
    await ChildWriter(KEY, td(routing=routing), cache, server, set()).prune([], set())  # type: ignore[arg-type]
    assert server.deleted == ([("InferencePool", "chat")] if goes else [])
