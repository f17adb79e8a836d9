"""A TurboDeployment on vLLM whose EAGLE-3 draft is loaded, or tried, as the operator sees it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from turbo_dev.canaries import NOW, with_pods
from turbo_dev.plan_examples import fast
from turbo_dev.trainings import FACTS, MODEL
from turbo_operator import planner, render
from turbo_operator.api import TurboDeployment, parse
from turbo_operator.autoscaler import History
from turbo_operator.controller.decision import Decision, decide
from turbo_operator.drafts import canary
from turbo_operator.drafts.canary import CanaryVerdict
from turbo_operator.drafts.speedup import SpeedupTracker
from turbo_operator.plan import Choice, Plan
from turbo_operator.settings import Settings
from turbo_operator.snapshot import ChildView, DraftView, LoadSample, PodView, Snapshot
from turbo_runtime.contract.documents import Load

SETTINGS = Settings(runtime_image="r:1", vllm_image="v:1")
CARD = fast("card", 80, "1.00")
DIGEST = f"sha256:{'0' * 64}"
# 1 + 0.8 + 0.8 0.7 + 0.8 0.7 0.5 = 2.64 tokens a step of three drafts
FIRST = DraftView(
    "chat-draft-1",
    "EAGLE3",
    "drafts",
    "chat/1-ab",
    "chat-1",
    MODEL,
    digest=DIGEST,
    deployment="chat",
    created=1.0,
    acceptance=(0.8, 0.7, 0.5),
)
SECOND = replace(FIRST, name="chat-draft-2", path="chat/2-cd", version="chat-2", created=2.0)
TRAINING = {
    "persistentVolumeClaim": {"claimName": "drafts"},
    "prompts": {"type": "ConfigMap", "configMap": {"name": "prompts"}},
}


def td(status: dict[str, Any] | None = None, **spec: Any) -> TurboDeployment:
    """The deployment, with what its status tells."""
    return parse(
        {
            "apiVersion": "serving.turbo.dev/v1alpha1",
            "kind": "TurboDeployment",
            "metadata": {"name": "chat", "namespace": "team", "uid": "u", "generation": 1},
            "spec": {
                "model": {"uri": "pvc://models/chat", "maxModelLen": 2048},
                "speculation": {"method": "EAGLE3", "training": TRAINING, "maxDraftTokens": 4},
                "rollout": {"canary": {"minGenerationDuration": "20s", "minDuration": "60s"}},
                **spec,
            },
            "status": status or {},
        }
    )


def seen(*pods: PodView, draft: DraftView | None = None, **more: Any) -> Snapshot:
    """Pods and candidates; `draft` is what pods are to load."""
    return Snapshot({CARD.name: CARD}, None, pods=pods, model=FACTS, draft=draft, **more)


def planned(it: TurboDeployment, observed: Snapshot) -> Plan:
    """Its plan."""
    return planner.plan(planner.build_inputs(it, FACTS.shape, observed), NOW)


def chosen(it: TurboDeployment, observed: Snapshot) -> Choice:
    """What the plan runs on."""
    choice = planned(it, observed).choice
    assert choice is not None
    assert choice.engine == "VLLM"
    return choice


def hash_of(it: TurboDeployment, draft: DraftView | None) -> str:
    """Plan hash of the pods that load a draft."""
    return render.plan_hash(it, chosen(it, seen(draft=draft)), FACTS, draft)


def pod(name: str, variant: str, draft: DraftView | None = None, load: Load | None = None) -> PodView:
    """A pod of vLLM that answers."""
    sample = None if load is None else LoadSample(0.0, load)
    label = draft.version if draft is not None else None
    about = ("Running", True, "10.0.0.1", None, None)
    return PodView(name, variant, *about, load=sample, engine="VLLM", draft_label=label)


def load(seconds: float, tokens: int) -> Load:
    """What the page of a pod says once its requests have taken that, for so many tokens."""
    idle = Load(0, 0, 0, 0, 0.0, 1000, 0, 0, 0, tokens, "distribution", False)
    return replace(idle, decode_seconds=seconds, decode_tokens=tokens)


def plans(it: TurboDeployment, observed: Snapshot) -> tuple[Choice | None, Plan | None]:
    """What serves, and the plan of pods that try a draft, as a reconcile would ask for them."""
    choice = planned(it, observed).choice
    asked = canary.trial(it, observed, choice)
    return choice, None if asked is None else planner.plan(asked, NOW)


def look(
    it: TurboDeployment,
    observed: Snapshot,
    speedups: SpeedupTracker,
    now: float,
    known: tuple[Choice | None, Plan | None] | None = None,
) -> tuple[SpeedupTracker, CanaryVerdict | None]:
    """The verdict on the canary; `known` are the plans, which no load changes."""
    choice, trial = known or plans(it, observed)
    return canary.update_canary(it, observed, choice, speedups, now, trial)


def decided(
    it: TurboDeployment,
    observed: Snapshot,
    speedups: SpeedupTracker | None = None,
    verdict: CanaryVerdict | None = None,
) -> Decision:
    """What is made of it; Deployments have the pods that they count."""
    speedups, observed = speedups or SpeedupTracker(), with_pods(observed)
    plan = planned(it, observed)
    observed = canary.add_verdict(observed, speedups, verdict)
    run = speedups.run
    return decide(it, observed, SETTINGS, NOW, plan, History(), canary_run=run, verdict=verdict)


def children(made: Decision) -> dict[str, dict[str, Any]]:
    """The children that shall be, by kind and name."""
    both = (*made.children, *made.canary_children)
    return {f"{each['kind']} {each['metadata']['name']}": dict(each) for each in both}


def frozen(made: Decision) -> tuple[ChildView, ...]:
    """The ControllerRevisions among the children, as the cache holds them."""
    return tuple(
        ChildView("ControllerRevision", each["metadata"]["name"], "r", None, hash_in(each), data=each["data"])
        for each in children(made).values()
        if each["kind"] == "ControllerRevision"
    )


def hash_in(child: dict[str, Any]) -> str:
    """The plan hash in a child's name."""
    return str(child["metadata"]["name"]).removeprefix("chat-")
