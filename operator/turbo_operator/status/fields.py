"""The figures of a status: the plan, the model, what is measured and paid now. Pure.

A live figure that moves by less than a tenth stays as it was, so that a status under load is rarely written.
"""

from __future__ import annotations

import dataclasses
from decimal import Decimal

from turbo_operator.api import (
    CanaryReason,
    DraftMethod,
    DraftStatus,
    ModelStatus,
    ObservedMetrics,
    PlanStatus,
    Predicted,
    RejectedDraft,
    RejectedPlan,
    ScaleEvent,
    ShapeStatus,
    TurboDeploymentStatus,
    UnavailableAccelerator,
    rfc3339,
)
from turbo_operator.api.status import MAX_SENTENCE, MAX_TURNED_DOWN
from turbo_operator.autoscaler import ScalingDecision
from turbo_operator.drafts.canary import CanaryVerdict
from turbo_operator.plan import Plan
from turbo_operator.plan import Predicted as Prediction
from turbo_operator.planner import money
from turbo_operator.snapshot import DraftView, Snapshot
from turbo_operator.status.cost import cost_per_hour, cost_per_million_tokens, tokens_per_second

MAX_REJECTED = 5
MAX_EVENTS = 5
_OF_CHOICE = "engine capacity_type tensor accelerators_per_replica nodes method placement max_draft_tokens"
STEP = 0.10  # of the figure that stands in the status


def model(observed: Snapshot) -> ModelStatus | None:
    """Return the model as it was inspected; None until then."""
    facts = observed.model
    if facts is None:
        return None
    shape = ShapeStatus(**dataclasses.asdict(facts.shape))
    return ModelStatus(resolved_revision=facts.revision, digest=facts.digest, shape=shape)


def draft(observed: Snapshot) -> DraftStatus | None:
    """Return the trained draft that pods use wherever they draft; None where there is none that fits."""
    view = observed.draft
    if view is None or view.method != DraftMethod.TURBO_HEADS:
        return None
    if observed.model is not None and view.target_digest != observed.model.digest:
        return None
    return _draft(view)


def canary(verdict: CanaryVerdict | None) -> DraftStatus | None:
    """Return the draft that is tried now, or waits to be."""
    return _draft(verdict.draft) if verdict is not None and not verdict.is_over else None


def turned_down(
    old: TurboDeploymentStatus, verdict: CanaryVerdict | None, now: float
) -> tuple[RejectedDraft, ...]:
    """Return the last drafts that were rejected."""
    if verdict is None or not verdict.is_over or verdict.reason == CanaryReason.PROMOTED:
        return old.rejected_drafts
    new = RejectedDraft(
        **dict(_draft(verdict.draft)),
        reason=verdict.reason,
        message=_bounded(verdict.detail),
        time=rfc3339(now),
    )
    return (*old.rejected_drafts, new)[-MAX_TURNED_DOWN:]


def _draft(view: DraftView) -> DraftStatus:
    return DraftStatus(**{name: getattr(view, name) for name in DraftStatus.model_fields})


def plan(old: PlanStatus | None, new: Plan | None, plan_hash: str | None) -> PlanStatus | None:
    """Return the plan in force; while a new one is infeasible, the old one with the reason why it stays."""
    if new is None:
        return old
    words = RejectedPlan.model_fields.keys() - {"message"}
    rejected = tuple(
        RejectedPlan(**{name: getattr(row, name) for name in words}, message=_bounded(row.detail))
        for row in new.rejected[:MAX_REJECTED]
    )
    why = {"reason": new.reason, "message": _bounded(new.detail), "rejected": rejected}
    choice = new.served
    if choice is None:
        return (old or PlanStatus()).model_copy(update=why)
    return PlanStatus(
        hash=plan_hash,
        accelerator=choice.accelerator.name,
        replicas=new.replicas,
        predicted=_predicted(choice.predicted),
        **{name: getattr(choice, name) for name in _OF_CHOICE.split()},
        **why,
    )


def serving_plan(
    old: TurboDeploymentStatus, latest: PlanStatus | None, serving: str | None
) -> PlanStatus | None:
    """Return the plan of the pods that serve, without its rejects; None where none has served."""
    if serving is None:
        return None
    known = (latest, old.serving_plan, old.plan)
    last = next((plan for plan in known if plan is not None and plan.hash == serving), None)
    return (last or PlanStatus(hash=serving)).model_copy(update={"rejected": ()})


def _bounded(sentence: str) -> str:
    """Cut a sentence to what a status holds: the planner's may name every accelerator of a large catalog."""
    return sentence if len(sentence) <= MAX_SENTENCE else f"{sentence[: MAX_SENTENCE - 3]}..."


def _predicted(prediction: Prediction) -> Predicted:
    return Predicted(
        time_to_first_token=_duration(prediction.time_to_first_token),
        time_per_output_token=_duration(prediction.time_per_output_token),
        tokens_per_second=_rate(prediction.tokens_per_second),
        cost_per_hour=_money(prediction.cost_per_hour),
        cost_per_million_tokens=_money(prediction.cost_per_million_tokens),
        provenance=prediction.provenance,
    )


def live(old: ObservedMetrics | None, observed: Snapshot, now: float) -> ObservedMetrics | None:
    """Return what is measured and paid now; None where neither is known."""
    old = old or ObservedMetrics()
    cost = cost_per_hour(observed)
    rate = _stepped(old.tokens_per_second, tokens_per_second(observed, now))
    per_million = cost_per_million_tokens(cost, float(rate)) if rate is not None else None
    gain = shown_gain(old, observed)
    if cost is None and rate is None and gain is None:
        return None
    return ObservedMetrics(
        tokens_per_second=rate,
        speedup=gain,
        cost_per_hour=_money(cost),
        cost_per_million_tokens=_money(per_million),
    )


def shown_gain(old: ObservedMetrics | None, observed: Snapshot) -> str | None:
    """Return the speedup of all pods, as it stands in the status."""
    return _stepped(old.speedup if old is not None else None, observed.gain, "{:.2f}")


def scale_history(old: TurboDeploymentStatus, scale: ScalingDecision, now: float) -> tuple[ScaleEvent, ...]:
    """Return the last changes of the desired replicas, the earliest first.

    Derived from the old status alone, so that a restarted operator adds nothing twice.
    """
    before = old.desired_replicas
    if before is None or before == scale.replicas:
        return old.scale_history
    event = ScaleEvent(time=rfc3339(now), before=before, after=scale.replicas, reason=scale.reason)
    return (*old.scale_history, event)[-MAX_EVENTS:]


def exhausted(observed: Snapshot) -> tuple[UnavailableAccelerator, ...]:
    """Return the accelerators that no pod could get, and until when they are passed over."""
    return tuple(
        UnavailableAccelerator(accelerator=name, expiration_time=rfc3339(supply.exhausted_until))
        for name, supply in sorted((observed.supply or {}).items())
        if supply.exhausted_until is not None
    )


def _stepped(old: str | None, new: float | None, form: str | None = None) -> str | None:
    """Return the old figure while the new one is within a tenth of it."""
    if new is None:
        return None
    if old is not None and abs(new - float(old)) <= STEP * float(old):
        return old
    return _rate(new) if form is None else form.format(new)


def _money(amount: Decimal | None) -> str | None:
    return None if amount is None else money(amount)


def _rate(value: float | None) -> str | None:
    """Format a rate per second, with three significant digits."""
    if value is None:
        return None
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _duration(seconds: float | None) -> str | None:
    """Format a duration in milliseconds, like 123ms or 12.3ms."""
    if seconds is None:
        return None
    milliseconds = seconds * 1000
    return f"{milliseconds:.0f}ms" if milliseconds >= 100 else f"{milliseconds:.1f}ms"
