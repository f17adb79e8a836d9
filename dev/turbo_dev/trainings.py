"""Trainings of drafts as tests see them: a TurboDeployment that asks for one, and what the cluster holds."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from turbo_operator import planner
from turbo_operator.api import CapacityType, TrainingStatus, TurboDeployment, parse
from turbo_operator.catalog import shapes
from turbo_operator.drafts import training
from turbo_operator.plan import Plan
from turbo_operator.snapshot import Accelerator, ChildView, DraftView, NodeSupply, Snapshot, Supply, TrainPod
from turbo_runtime.contract.documents import DomainEvaluation, DraftManifest, Load, MeasuredSpeedup, ModelInfo

NOW = 1_800_000_000.0
HOUR = 3600.0
MODEL = "sha256:ab"
SHAPE = shapes.shipped("HuggingFaceTB/SmolLM2-135M")
assert SHAPE is not None
FACTS = ModelInfo(SHAPE, MODEL, None, 270_000_000)
CORES = Accelerator("cpu", "cpu", Decimal(2), 6 << 30, prices={CapacityType.ON_DEMAND: Decimal("0.04")})
L4 = Accelerator("l4", "nvidia.com/gpu", Decimal(1), 24 << 30, prices={CapacityType.ON_DEMAND: Decimal(1)})
ROOM = {name: Supply((NodeSupply("n", 4, 4),)) for name in ("cpu", "l4")}
WORTH = DomainEvaluation("chat", 2.5, (0.7, 0.5), (MeasuredSpeedup(1, 1.1, 1.8),))
MADE = DraftManifest("heads", "chat-1", "sha256:" + "1" * 64, MODEL, "chat", 0, (WORTH,))
LOAD = Load(0, 0, 0, 0, 0.0, 1000, 0, 0, 0, 0, "bitwise", False)


def td(
    status: TrainingStatus | None = None,
    absent: bool = False,
    spec: Mapping[str, Any] | None = None,
    told: Mapping[str, Any] | None = None,
    **asked: Any,
) -> TurboDeployment:
    """`spec` and `told` lie over the rest of spec and status, `asked` over spec.speculation.training."""
    wanted = {
        "persistentVolumeClaim": {"claimName": "drafts"},
        "prompts": {"type": "ConfigMap", "configMap": {"name": "prompts"}},
    } | asked
    written: dict[str, Any] = {
        "model": {"uri": "pvc://models/chat"},
        "accelerators": {"allowed": ["cpu", "l4"]},
        "capture": {"persistentVolumeClaim": {"claimName": "kept"}},
        "speculation": {} if absent else {"training": wanted},
    }
    return parse(
        {
            "apiVersion": "serving.turbo.dev/v1alpha1",
            "kind": "TurboDeployment",
            "metadata": {"name": "chat", "namespace": "team", "uid": "0b0b0b0b-1111", "generation": 1},
            "spec": {**written, **(spec or {})},
            "status": {**({} if status is None else {"training": status.dump()}), **(told or {})},
        }
    )


def record(one: DraftView) -> dict[str, Any]:
    """A draft as a status tells it."""
    return {
        "name": one.name,
        "version": one.version,
        "claimName": one.claim_name,
        "path": one.path,
        "digest": one.digest,
        "targetDigest": one.target_digest,
    }


def promoted(draft: DraftView) -> dict[str, Any]:
    """A status in which a draft was promoted."""
    return {"draft": record(draft)}


def seen(**more: Any) -> Snapshot:
    """A cluster with room on both accelerators."""
    facts: dict[str, Any] = {"accelerators": {"cpu": CORES, "l4": L4}, "model": FACTS}
    return Snapshot(**(facts | {"supply": ROOM, "free": ROOM} | more))


def draft(number: int = 1, created: float = NOW, target: str = MODEL) -> DraftView:
    """What a training has made."""
    name = f"chat-draft-{number}"
    return DraftView(name, "TurboHeads", "drafts", f"chat/{number}", "v", target, False, "d", "chat", created)


def job(number: int = 1, **more: Any) -> ChildView:
    """The Job of a training."""
    return ChildView("Job", f"chat-train-{number}", f"uid-{number}", "hash", **more)


def pod(name: str = "p", number: int = 1, **more: Any) -> TrainPod:
    """Its pod, which has run for a minute."""
    facts: dict[str, Any] = {"phase": "Running", "ip": "10.0.0.9", "started": NOW - 60, "accelerator": "cpu"}
    return TrainPod(name, f"chat-train-{number}", **(facts | more))


def pending(since: float | None = None, placed: float | None = None, **more: Any) -> TrainPod:
    """Its pod, which has not run: no node has taken it since then, or one has."""
    facts: dict[str, Any] = {"phase": "Pending", "started": None, "ip": None}
    if since is not None:
        facts |= {"reason": "Unschedulable", "message": "0/3 nodes are available"}
    return pod(**(facts | {"pending_since": since, "scheduled_since": placed} | more))


def look(it: TurboDeployment, observed: Snapshot, now: float = NOW) -> training.TrainingDecision:
    """As the reconcile does: the planner is asked where a step asks."""
    plan: Plan | None = None
    if observed.model is not None:
        plan = planner.plan(planner.build_inputs(it, observed.model.shape, observed), now)
    step = training.decide(it, observed, plan, None, now)
    if step.query is None or observed.model is None:
        return step
    asked = training.question(it, observed, observed.model.shape, step.query)
    return training.decide(it, observed, plan, planner.plan(asked, now), now)


def reason(step: training.TrainingDecision) -> str:
    """The reason of its condition."""
    message = message_of(step)
    assert message.endswith((".", "!", "?")), message
    assert step.condition is not None
    return str(step.condition.reason)


def message_of(step: training.TrainingDecision) -> str:
    """The message of its condition."""
    assert step.condition is not None
    return step.condition.message


def began(**asked: Any) -> TrainingStatus:
    """The status of a training that has just begun, its Job not made yet."""
    state = look(td(**asked), seen()).state
    assert state is not None
    return state


def ran(**asked: Any) -> TrainingStatus:
    """The status of one whose pod runs."""
    state = look(td(began(**asked), **asked), seen(children=(job(),), trainings=(pod(),))).state
    assert state is not None
    return state
