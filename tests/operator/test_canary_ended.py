"""What becomes of pods that a draft was tried on, and of a trial whose objects the API server refuses."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from turbo_dev.canaries import (
    NEW,
    NOW,
    OLD,
    SETTINGS,
    STABLE,
    TRY,
    WITH_OLD,
    children,
    look,
    named,
    rejected_drafts,
    seen,
    td,
    up,
    variant_of,
)
from turbo_dev.held import held
from turbo_dev.trainings import CORES, promoted
from turbo_operator.api import (
    API_VERSION,
    LABEL_DEPLOYMENT,
    LABEL_OWNER_UID,
    CanaryReason,
    Provisioning,
    TurboDeployment,
)
from turbo_operator.controller.budgets.reservations import Reservations
from turbo_operator.controller.cache.store import Cache, Key
from turbo_operator.controller.kube import Kube, RefusedError
from turbo_operator.controller.reconciler import Reconciler
from turbo_operator.drafts.speedup import SpeedupTracker
from turbo_operator.inventory.store import InventoryStore
from turbo_operator.resources import Resource
from turbo_operator.snapshot import DraftView, Snapshot

CANARY_FILE = "chat-drafts-canary"


def rejected(now: DraftView | None, tried: DraftView = NEW, **told: Any) -> tuple[TurboDeployment, Snapshot]:
    """After a verdict against a draft whose pod stands in for a replica that finds no place."""
    it = td({**({} if now is None else promoted(now)), "desiredReplicas": 2, **told}, replicas=2)
    variant = variant_of(it, tried)
    before = replace(seen(drafts=(tried,), now=now), children=(up(STABLE, 2),))
    speedups, verdict = look(it, before, SpeedupTracker(), NOW)
    made = children(it, before, speedups, verdict)
    assert f"Deployment chat-{variant}" in made
    there = (up(STABLE, 2, 1), up(variant), *held(made.values()))
    over = td({**it.status.dump(), **rejected_drafts(tried)}, replicas=2)
    return over, replace(before, children=there)


def test_a_pod_that_tried_a_draft_in_vain_drafts_as_all_others_do_while_it_stands_in_for_one() -> None:
    it, observed = rejected(OLD)
    made = children(it, observed, SpeedupTracker(), None)
    assert f"Deployment chat-{TRY}" in made
    assert named(made, CANARY_FILE) == named(made)
    assert NEW.path not in named(made, CANARY_FILE)


@pytest.mark.parametrize(
    ("now", "tried"), [(None, NEW), (OLD, replace(NEW, claim_name="others"))], ids=["none", "another claim"]
)
def test_it_drafts_with_no_trained_one_where_it_can_have_none_of_those_in_use(
    now: DraftView | None, tried: DraftView
) -> None:
    it, observed = rejected(now, tried)
    assert named(children(it, observed, SpeedupTracker(), None), CANARY_FILE) == "{}\n"


def test_a_pod_of_an_earlier_trial_does_not_take_up_the_draft_that_is_tried_next() -> None:
    it, observed = rejected(OLD)
    third = replace(NEW, name="chat-draft-3", version="3", path="chat/3", digest="sha256:3")
    observed = replace(observed, drafts=(NEW, third))
    speedups, verdict = look(it, observed, SpeedupTracker(), NOW)
    assert verdict is not None
    assert verdict.draft == third
    made = children(it, observed, speedups, verdict)
    assert f"Deployment chat-{variant_of(it, third)}" not in made  # it waits until all replicas are there
    assert named(made, CANARY_FILE) == named(made)


META = {"namespace": "team", "generation": 1, "resourceVersion": "1"}
READY = {"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}}


def owned(kind: str, name: str, owner: str, uid: str) -> dict[str, Any]:
    reference = {"kind": owner, "name": uid, "uid": uid, "controller": True}
    meta = {**META, "name": name, "uid": name, "labels": {LABEL_DEPLOYMENT: "chat", LABEL_OWNER_UID: "u"}}
    return {"kind": kind, "metadata": {**meta, "ownerReferences": [reference]}}


class Server(Kube):
    """Keeps what is applied, and reports Deployments as up, but takes none on which a draft is tried."""

    def __init__(self) -> None:
        self.deployment: dict[str, Any] = {
            "apiVersion": API_VERSION,
            "kind": "TurboDeployment",
            "metadata": {**META, "name": "chat", "uid": "u"},
            "spec": WITH_OLD.spec.dump(),
            "status": WITH_OLD.status.dump(),
        }
        self.kept: set[str] = set()
        self.removed: set[str] = set()
        self.labels: dict[str, str] = {}  # of the pods of the last Deployment
        self._version = 1

    async def find(self, resource: Resource, namespace: str, name: str) -> dict[str, Any] | None:
        return None

    async def apply(
        self, resource: Resource, wanted: Mapping[str, Any], *, force: bool = True
    ) -> dict[str, Any]:
        meta = wanted["metadata"]
        if (resource.kind, meta["name"]) == ("Deployment", f"chat-{TRY}"):
            raise RefusedError(422, "Invalid", "no such pod is wanted here")
        self.kept.add(f"{resource.kind} {meta['name']}")
        if resource.kind == "Deployment":
            self.labels = wanted["spec"]["template"]["metadata"]["labels"]
        told = {"observedGeneration": 1, "availableReplicas": wanted.get("spec", {}).get("replicas")}
        return {**wanted, "metadata": self._stamped(meta), "status": told}

    async def apply_status(self, resource: Resource, wanted: Mapping[str, Any]) -> dict[str, Any]:
        meta = self._stamped(self.deployment["metadata"])
        self.deployment = {**self.deployment, "metadata": meta, "status": wanted["status"]}
        return self.deployment

    async def delete(self, resource: Resource, namespace: str, name: str, uid: str) -> None:
        self.removed.add(f"{resource.kind} {name}")

    def _stamped(self, meta: Mapping[str, Any]) -> dict[str, Any]:
        self._version += 1
        return {**META, "uid": meta["name"], **meta, "resourceVersion": str(self._version)}


def test_what_the_api_server_refuses_of_a_canary_is_told_of_the_draft_and_holds_up_nothing_else() -> None:
    cache, inventory, server = Cache(), InventoryStore(lambda _: None), Server()
    cache.put_deployment(server.deployment)
    elastic = replace(CORES, provisioning=Provisioning.ELASTIC)
    cache.accelerators.put({"metadata": {**META, "name": "cpu", "uid": "a"}}, elastic)
    inventory.take_stock(cache.accelerators_by_name(), 0.0)
    for each in (OLD, NEW):
        cache.drafts.put({"metadata": {**META, "name": each.name, "uid": each.name}}, each)
    model = children(WITH_OLD, seen(), SpeedupTracker(), None)["ConfigMap chat-model"]
    unwanted = {**model, "apiVersion": "policy/v1", "kind": "PodDisruptionBudget"}
    for manifest, name in ((model, "chat-model"), (unwanted, "chat-unwanted")):
        meta = {**manifest["metadata"], **META, "name": name, "uid": name}
        cache.put_child({**manifest, "metadata": meta})
    operator = Reconciler(cache, inventory, server, SETTINGS, lambda: NOW, Reservations(cache))

    async def look_on() -> None:
        for _ in range(5):  # the plan is told, its Deployment made, what tries refused, and once more
            await operator.reconcile(Key("team", "chat"))
            if not server.labels:
                continue
            cache.pods.put_set(owned("ReplicaSet", "rs", "Deployment", f"chat-{STABLE}"))
            pod = owned("Pod", "pod", "ReplicaSet", "rs")
            pod["metadata"] |= {"labels": server.labels}
            cache.pods.put({**pod, "spec": {"nodeName": "n"}, **READY})

    asyncio.run(look_on())
    assert f"Deployment chat-{STABLE}" in server.kept
    assert "PodDisruptionBudget chat-unwanted" in server.removed
    told = {each["type"]: each for each in server.deployment["status"]["conditions"]}
    promoted = told["DraftPromoted"]
    assert (promoted["status"], promoted["reason"]) == ("Unknown", CanaryReason.APPLY_REJECTED)
    assert "no such pod is wanted here" in promoted["message"]
    assert (told["Stalled"]["status"], told["Ready"]["reason"]) == ("False", "Serving")
