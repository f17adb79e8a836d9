"""A TurboDeployment whose new draft is tried, as the operator sees it: for tests of what it makes of that."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from turbo_dev.plan_cases import plan as plan_of
from turbo_dev.trainings import CORES, FACTS, MODEL, promoted, record
from turbo_operator import render
from turbo_operator.api import TurboDeployment, parse
from turbo_operator.autoscaler import History
from turbo_operator.controller.decision import Decision, decide
from turbo_operator.drafts import canary
from turbo_operator.drafts.canary import CanaryVerdict
from turbo_operator.drafts.speedup import SpeedupTracker
from turbo_operator.plan import Choice, Plan
from turbo_operator.settings import Settings
from turbo_operator.snapshot import ChildView, DraftView, PodView, Snapshot

SETTINGS = Settings(runtime_image="r:1")
NOW = 1_700_000_000.0


def draft(name: str, version: str = "", target: str = MODEL) -> DraftView:
    """A candidate of the deployment."""
    version = version or name
    return DraftView(
        name,
        "TurboHeads",
        "drafts",
        f"chat/{name}",
        version,
        target,
        digest=f"sha256:{version}",
        deployment="chat",
        created=1.0,
    )


OLD, NEW = draft("chat-draft-1"), draft("chat-draft-2")


def td(told: dict[str, Any] | None = None, **spec: Any) -> TurboDeployment:
    """The deployment, with what its status tells."""
    prompts = {"type": "ConfigMap", "configMap": {"name": "prompts"}}
    trained = {"persistentVolumeClaim": {"claimName": "drafts"}, "prompts": prompts}
    return parse(
        {
            "apiVersion": "serving.turbo.dev/v1alpha1",
            "kind": "TurboDeployment",
            "metadata": {"name": "chat", "namespace": "team", "uid": "u", "generation": 1},
            "spec": {
                "model": {"uri": "pvc://models/chat"},
                "speculation": {"training": trained},
                "rollout": {"canary": {"minGenerationDuration": "20s", "minDuration": "60s"}},
                **spec,
            },
            "status": told or {},
        }
    )


def rejected_drafts(*drafts: DraftView) -> dict[str, Any]:
    """The status where those were tried in vain."""
    why = {"reason": "NoImprovement", "message": "No.", "time": "2026-01-01T00:00:00Z"}
    return {"rejectedDrafts": [{**record(one), **why} for one in drafts]}


def planned(it: TurboDeployment) -> Plan:
    """Its plan."""
    return plan_of(it.spec, FACTS.shape, {CORES.name: CORES})


def chosen(it: TurboDeployment) -> Choice:
    """What the plan runs on."""
    choice = planned(it).choice
    assert choice is not None
    return choice


def seen(*pods: PodView, drafts: tuple[DraftView, ...] = (OLD, NEW), now: DraftView | None = OLD) -> Snapshot:
    """Pods and candidates; `now` is what pods are to use."""
    return Snapshot({CORES.name: CORES}, None, (), pods, model=FACTS, draft=now, drafts=drafts)


def variant_of(it: TurboDeployment, one: DraftView = NEW) -> str:
    """Plan hash of the pods that try a draft."""
    return render.plan_hash(it, chosen(it), FACTS, one, canary=True)


def stable_of(it: TurboDeployment, one: DraftView | None = OLD) -> str:
    """Plan hash of all others, which use a draft."""
    return render.plan_hash(it, chosen(it), FACTS, one)


WITH_OLD = td(promoted(OLD))
TRY, STABLE = variant_of(WITH_OLD), stable_of(WITH_OLD)


def look(
    it: TurboDeployment, observed: Snapshot, speedups: SpeedupTracker, now: float
) -> tuple[SpeedupTracker, CanaryVerdict | None]:
    """What has become of the canary."""
    return canary.update_canary(it, observed, planned(it).choice, speedups, now)


def decided(
    it: TurboDeployment,
    observed: Snapshot,
    speedups: SpeedupTracker,
    verdict: CanaryVerdict | None,
    now: float = NOW,
) -> Decision:
    """What is made of it; Deployments have the pods that they count."""
    observed = canary.add_verdict(with_pods(observed), speedups, verdict)
    run = speedups.run
    return decide(it, observed, SETTINGS, now, planned(it), History(), canary_run=run, verdict=verdict)


def with_pods(observed: Snapshot) -> Snapshot:
    """Add the ready pods that Deployments count and that are not among those that were seen."""
    pods = list(observed.pods)
    for child in observed.children:
        known = sum(pod.ready and pod.plan_hash == child.plan_hash for pod in pods)
        for number in range(known, child.available_replicas):
            about = (child.plan_hash or "", "Running", True, "10.0.0.9", None, None)
            pods.append(PodView(f"{child.name}-{number}", *about))
    return replace(observed, pods=tuple(pods))


def children(
    it: TurboDeployment,
    observed: Snapshot,
    speedups: SpeedupTracker,
    verdict: CanaryVerdict | None,
    now: float = NOW,
) -> dict[str, dict[str, Any]]:
    """The children that shall be, by kind and name."""
    made = decided(it, observed, speedups, verdict, now)
    both = (*made.children, *made.canary_children)
    return {f"{each['kind']} {each['metadata']['name']}": dict(each) for each in both}


def replicas(made: dict[str, dict[str, Any]]) -> dict[str, int]:
    """Of each variant that shall be, by plan hash."""
    deployments = [each for each in made.values() if each["kind"] == "Deployment"]
    return {each["metadata"]["name"].removeprefix("chat-"): each["spec"]["replicas"] for each in deployments}


def named(made: dict[str, dict[str, Any]], file: str = "chat-drafts") -> str:
    """What pods read as the drafts that they are to use."""
    text: str = made[f"ConfigMap {file}"]["data"]["drafts.json"]
    return text


def up(
    plan_hash: str, replicas: int = 1, available: int | None = None, message: str | None = None
) -> ChildView:
    """A Deployment; all of its replicas answer where nothing else is said."""
    answer = replicas if available is None else available
    name = f"chat-{plan_hash}"
    return ChildView("Deployment", name, plan_hash, None, plan_hash, replicas, answer, 1, 1, message=message)
