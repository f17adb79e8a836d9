"""Models that are fetched to a claim as tests see them: a TurboDeployment, and what the cluster holds."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from turbo_dev.plan_cases import plan as plan_of
from turbo_dev.status_coherence import contradictions
from turbo_operator import render
from turbo_operator.api import CapacityType, TurboDeployment, parse
from turbo_operator.autoscaler import History
from turbo_operator.catalog import shapes
from turbo_operator.controller.decision import Decision, decide
from turbo_operator.render import fetch
from turbo_operator.settings import Settings
from turbo_operator.snapshot import Accelerator, ChildView, FetchPod, PodView, Snapshot
from turbo_operator.status import compute
from turbo_runtime.contract.documents import ModelInfo

NOW = 1_700_000_000.0
COMMIT = "c0ffee" + "0" * 34
SHAPE = shapes.shipped("HuggingFaceTB/SmolLM2-135M")
assert SHAPE is not None
FACTS = ModelInfo(SHAPE, "sha256:ab", COMMIT, 270_000_000)
CPU = Accelerator("cpu", "cpu", Decimal(2), 6 << 30, prices={CapacityType.ON_DEMAND: Decimal("0.04")})
SETTINGS = Settings(runtime_image="runtime:1", vllm_image="vllm:1")
CLAIM = {"persistentVolumeClaim": {"claimName": "weights"}}
SNAPSHOT = f"/cache/hub/models--acme--tiny/snapshots/{COMMIT}"


def document(**spec: Any) -> dict[str, Any]:
    """A TurboDeployment whose model is fetched to a claim; `spec` lies over the rest."""
    model = {"uri": "hf://acme/tiny", "tokenSecretRef": {"name": "hub"}}
    return {
        "apiVersion": "serving.turbo.dev/v1alpha1",
        "kind": "TurboDeployment",
        "metadata": {"name": "chat", "namespace": "team", "uid": "u", "generation": 1},
        "spec": {"model": model, "accelerators": {"allowed": ["cpu"]}, "cache": CLAIM, **spec},
    }


def td(**spec: Any) -> TurboDeployment:
    """The same, read."""
    return parse(document(**spec))


def plan_hash(it: TurboDeployment) -> str:
    """The hash of its plan."""
    choice = plan_of(it.spec, FACTS.shape, {"cpu": CPU}).served
    assert choice is not None
    return render.plan_hash(it, choice, FACTS)


def job(it: TurboDeployment, **fields: Any) -> ChildView:
    """Its Job that fetches."""
    manifest = fetch.job(it, FACTS, SETTINGS)
    applied = manifest["metadata"]["annotations"]["serving.turbo.dev/applied-hash"]
    return ChildView("Job", manifest["metadata"]["name"], "j", applied, **fields)


def runs(it: TurboDeployment, **fields: Any) -> FetchPod:
    """The pod of that, which runs."""
    return FetchPod("f", fetch.job_name(it, FACTS), **({"phase": "Running"} | fields))


def serving(variant: str) -> tuple[tuple[ChildView, ...], PodView]:
    """A variant with one pod that answers."""
    own: dict[str, Any] = {"plan_hash": variant, "accelerator": "cpu"}
    deployment = ChildView(
        "Deployment", f"chat-{variant}", "d", None, **own, replicas=1, available_replicas=1
    )
    revision = ChildView("ControllerRevision", f"chat-{variant}", "r", None, **own, data={"spec": {}})
    pod = PodView("p", variant, "Running", True, "10.0.0.1", None, None, accelerator="cpu")
    return (deployment, revision), pod


def look(
    it: TurboDeployment, *children: ChildView, now: float = NOW, **seen: Any
) -> tuple[Decision, dict[str, Any]]:
    """Decide, and compute the status, which contradicts itself nowhere."""
    observed = Snapshot({"cpu": CPU}, children=children, **({"model": FACTS} | seen))
    plan = plan_of(it.spec, FACTS.shape, {"cpu": CPU}) if observed.model else None
    decision = decide(it, observed, SETTINGS, now, plan, History())
    status = compute(it, observed, decision, now).dump()
    assert contradictions({**document(), "spec": it.spec.dump(), "status": status}) == []
    return decision, status


def conditions(status: Mapping[str, Any]) -> dict[str, tuple[str, str, str]]:
    """Status, reason and message by type."""
    return {each["type"]: (each["status"], each["reason"], each["message"]) for each in status["conditions"]}


def names(decision: Decision, kind: str) -> list[str]:
    """The names of the children of a kind that are decided on."""
    return [child["metadata"]["name"] for child in decision.children if child["kind"] == kind]
