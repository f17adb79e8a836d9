"""The figures of a status: the plan, the model, what is measured and paid now. Pure.

A live figure that moves by less than a tenth stays as it was, so that a status under load is rarely written.
"""

from __future__ import annotations

import dataclasses

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
STEP = 0.10  # of the figure that stands in the status


def model(observed: Snapshot) -> ModelStatus | None:
    """The model as it was inspected; None until then."""
    facts = observed.model
    if facts is None:
        return None
    shape = ShapeStatus(**dataclasses.asdict(facts.shape))
    return ModelStatus(resolved_revision=facts.revision, digest=facts.digest, shape=shape)


def draft(observed: Snapshot) -> DraftStatus | None:
    """The trained draft that pods use wherever they draft; None where there is none that fits."""
    found = observed.draft
    if found is None or found.method != DraftMethod.TURBO_HEADS:
        return None
    if observed.model is not None and found.target_digest != observed.model.digest:
        return None
    return _draft(found)


def canary(judgement: CanaryVerdict | None) -> DraftStatus | None:
    """The draft that is tried now, or waits to be."""
    return _draft(judgement.draft) if judgement is not None and not judgement.over else None


def turned_down(
    old: TurboDeploymentStatus, judgement: CanaryVerdict | None, now: float
) -> tuple[RejectedDraft, ...]:
    """The last drafts that were tried in vain."""
    if judgement is None or not judgement.over or judgement.reason == CanaryReason.PROMOTED:
        return old.turned_down
    new = RejectedDraft(
        **dict(_draft(judgement.draft)),
        reason=judgement.reason,
        message=_bounded(judgement.detail),
        time=rfc3339(now),
    )
    return (*old.turned_down, new)[-MAX_TURNED_DOWN:]


def _draft(found: DraftView) -> DraftStatus:
    return DraftStatus(
        name=found.name,
        version=found.version,
        claim_name=found.claim_name,
        path=found.path,
        digest=found.digest,
        target_digest=found.target_digest,
    )


def plan(old: PlanStatus | None, new: Plan | None, plan_hash: str | None) -> PlanStatus | None:
    """The plan in force; while a new one is infeasible, the old one with the reason why it stays."""
    if new is None:
        return old
    rejected = tuple(
        RejectedPlan(
            accelerator=row.accelerator,
            engine=row.engine,
            capacity_type=row.capacity_type,
            tensor=row.tensor,
            nodes=row.nodes,
            method=row.method,
            reason=row.reason,
            detail=_bounded(row.detail),
        )
        for row in new.rejected[:MAX_REJECTED]
    )
    choice = new.served
    if choice is None:
        kept = old or PlanStatus()
        return kept.model_copy(
            update={"reason": new.reason, "detail": _bounded(new.detail), "rejected": rejected}
        )
    return PlanStatus(
        hash=plan_hash,
        engine=choice.engine,
        accelerator=choice.accelerator.name,
        capacity_type=choice.capacity_type,
        tensor=choice.tensor,
        accelerators_per_replica=choice.accelerators_per_replica,
        nodes=choice.nodes,
        method=choice.method,
        placement=choice.placement,
        max_draft_tokens=choice.max_draft_tokens,
        replicas=new.replicas,
        predicted=_predicted(choice.predicted),
        reason=new.reason,
        detail=_bounded(new.detail),
        rejected=rejected,
    )


def serving_plan(
    old: TurboDeploymentStatus, latest: PlanStatus | None, serving: str | None
) -> PlanStatus | None:
    """The plan of the pods that serve, without what was rejected for it; None where none has served."""
    if serving is None:
        return None
    known = (latest, old.serving_plan, old.plan)
    found = next((plan for plan in known if plan is not None and plan.hash == serving), None)
    return (found or PlanStatus(hash=serving)).model_copy(update={"rejected": ()})


def _bounded(sentence: str) -> str:
    """As long as a status holds one: the planner's may name every accelerator of a large catalogue."""
    return sentence if len(sentence) <= MAX_SENTENCE else f"{sentence[: MAX_SENTENCE - 3]}..."


def _predicted(prediction: Prediction) -> Predicted:
    cost, per_million = prediction.cost_per_hour, prediction.cost_per_million_tokens
    return Predicted(
        time_to_first_token=_duration(prediction.time_to_first_token),
        time_per_output_token=_duration(prediction.time_per_output_token),
        tokens_per_second=_rate(prediction.tokens_per_second),
        cost_per_hour=None if cost is None else money(cost),
        cost_per_million_tokens=None if per_million is None else money(per_million),
        provenance=prediction.provenance,
    )


def live(old: ObservedMetrics | None, observed: Snapshot, now: float) -> ObservedMetrics | None:
    """What is measured and paid now; None where neither is known."""
    old = old or ObservedMetrics()
    cost = cost_per_hour(observed)
    rate = _stepped(old.tokens_per_second, tokens_per_second(observed, now))
    per_million = cost_per_million_tokens(cost, float(rate)) if rate is not None else None
    gain = shown_gain(old, observed)
    if cost is None and rate is None and gain is None:
        return None
    return ObservedMetrics(
        tokens_per_second=rate,
        gain=gain,
        cost_per_hour=None if cost is None else money(cost),
        cost_per_million_tokens=None if per_million is None else money(per_million),
    )


def shown_gain(old: ObservedMetrics | None, observed: Snapshot) -> str | None:
    """The gain of all pods, as it stands in the status."""
    return _stepped(old.gain if old is not None else None, observed.gain, "{:.2f}")


def scale_history(old: TurboDeploymentStatus, scale: ScalingDecision, now: float) -> tuple[ScaleEvent, ...]:
    """The last changes of what is wanted, the earliest first.

    Derived from the old status alone, so that a restarted operator adds nothing twice.
    """
    before = old.desired_replicas
    if before is None or before == scale.replicas:
        return old.scale_history
    event = ScaleEvent(time=rfc3339(now), before=before, after=scale.replicas, reason=scale.reason)
    return (*old.scale_history, event)[-MAX_EVENTS:]


def exhausted(observed: Snapshot) -> tuple[UnavailableAccelerator, ...]:
    """The accelerators that a pod has waited for in vain, and until when they are passed over."""
    return tuple(
        UnavailableAccelerator(accelerator=name, until=rfc3339(supply.exhausted_until))
        for name, supply in sorted((observed.supply or {}).items())
        if supply.exhausted_until is not None
    )


def _stepped(old: str | None, new: float | None, form: str | None = None) -> str | None:
    """The old figure while the new one is within a tenth of it."""
    if new is None:
        return None
    if old is not None and abs(new - float(old)) <= STEP * float(old):
        return old
    return _rate(new) if form is None else form.format(new)


def _rate(value: float | None) -> str | None:
    """Per second, with three digits that count."""
    if value is None:
        return None
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _duration(seconds: float | None) -> str | None:
    """In milliseconds, like 123ms or 12.3ms."""
    if seconds is None:
        return None
    milliseconds = seconds * 1000
    return f"{milliseconds:.0f}ms" if milliseconds >= 100 else f"{milliseconds:.1f}ms"
