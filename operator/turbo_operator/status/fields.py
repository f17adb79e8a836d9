"""The figures of a status: the plan, the model, what is measured and paid now. Pure.

A live figure that moves by less than a tenth stays as it was, and one that has changed lately stays too, so
that a status under load is rarely written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from decimal import Decimal
from typing import Any, TypeVar

from turbo_operator import api
from turbo_operator.api.status import MAX_REJECTED_DRAFTS, MAX_SENTENCE
from turbo_operator.autoscaler import ScalingDecision
from turbo_operator.budget import cost_of
from turbo_operator.drafts.canary import CanaryVerdict
from turbo_operator.plan import Plan, Predicted
from turbo_operator.planner import money
from turbo_operator.planner.explanation import messages
from turbo_operator.snapshot import AcceleratorLabels, DraftView, Snapshot

_T = TypeVar("_T")
FRESH_SECONDS = 60.0  # a load that was read longer ago says nothing of now
MAX_REJECTED = 5
MAX_EVENTS = 5
_OF_CHOICE = "engine capacity_type tensor accelerators_per_replica nodes method placement max_draft_tokens"
AWAITED_SECONDS = 60.0  # after it was ready, a first token says how long a start takes, not who came when
STEP = 0.10  # of the figure that stands in the status
REST_SECONDS = 240.0  # between two changes of tokens per second, which move all the time


def model(observed: Snapshot) -> api.ModelStatus | None:
    """Return the model as it was inspected; None until then."""
    facts = observed.model
    if facts is None:
        return None
    shape = api.ShapeStatus(**dataclasses.asdict(facts.shape))
    return api.ModelStatus(resolved_revision=facts.revision, digest=facts.digest, shape=shape)


def draft(td: api.TurboDeployment, observed: Snapshot) -> api.DraftStatus | None:
    """Return the trained draft that pods use wherever they draft; None where there is none that fits."""
    view, model = observed.draft, observed.model
    if view is None or view.method != td.spec.draft_method:
        return None
    return _draft(view) if model is None or view.target_digest == model.digest else None


def canary(verdict: CanaryVerdict | None) -> api.DraftStatus | None:
    """Return the draft that is tried now, or waits to be."""
    return _draft(verdict.draft) if verdict is not None and not verdict.is_over else None


def update_rejected_drafts(
    old: api.TurboDeploymentStatus, verdict: CanaryVerdict | None, now: float
) -> tuple[api.RejectedDraft, ...]:
    """Return the last drafts that were rejected."""
    if verdict is None or not verdict.is_over or verdict.reason == api.CanaryReason.PROMOTED:
        return old.rejected_drafts
    new = api.RejectedDraft(
        **dict(_draft(verdict.draft)),
        reason=verdict.reason,
        message=_bounded(verdict.detail),
        time=api.rfc3339(now),
    )
    return (*old.rejected_drafts, new)[-MAX_REJECTED_DRAFTS:]


def _draft(view: DraftView) -> api.DraftStatus:
    return api.DraftStatus(**{name: getattr(view, name) for name in api.DraftStatus.model_fields})


def plan(old: api.PlanStatus | None, new: Plan | None, plan_hash: str | None) -> api.PlanStatus | None:
    """Return the plan in force; while a new one is infeasible, the old one with the reason why it stays."""
    if new is None:
        return old
    words = api.RejectedPlan.model_fields.keys() - {"message"}
    rejected = tuple(
        api.RejectedPlan(**{name: getattr(row, name) for name in words}, message=_bounded(row.detail))
        for row in new.rejected[:MAX_REJECTED]
    )
    why: dict[str, Any] = {"reason": new.reason, "message": _bounded(new.detail), "rejected": rejected}
    choice = new.served
    if choice is None:
        return (old or api.PlanStatus()).model_copy(update=why)
    return api.PlanStatus(
        hash=plan_hash,
        accelerator=choice.accelerator.name,
        replicas=new.replicas,
        predicted=_predicted(choice.predicted),
        **{name: getattr(choice, name) for name in _OF_CHOICE.split()},
        data=choice.data if choice.data > 1 else None,
        **why,
    )


def pending_plan(new: Plan | None, plan_hash: str | None) -> api.PlanStatus | None:
    """Return the plan that waits for approval, without its rejects; None where none does."""
    if plan_hash is None:
        return None
    pending = plan(None, new, plan_hash)
    return None if pending is None else pending.model_copy(update={"rejected": ()})


def serving_plan(
    old: api.TurboDeploymentStatus, latest: api.PlanStatus | None, serving: str | None
) -> api.PlanStatus | None:
    """Return the plan of the pods that serve, without its rejects; None where none has served."""
    if serving is None:
        return None
    known = (latest, old.serving_plan, old.plan)
    last = next((plan for plan in known if plan is not None and plan.hash == serving), None)
    return (last or api.PlanStatus(hash=serving)).model_copy(update={"rejected": ()})


def _bounded(sentence: str) -> str:
    """Cut a sentence to what a status holds: the planner's may name every accelerator of a large catalog."""
    return sentence if len(sentence) <= MAX_SENTENCE else f"{sentence[: MAX_SENTENCE - 3]}..."


def _predicted(prediction: Predicted) -> api.Predicted:
    return api.Predicted(
        time_to_first_token=shown(prediction.time_to_first_token, _duration),
        time_per_output_token=shown(prediction.time_per_output_token, _duration),
        tokens_per_second=shown(prediction.tokens_per_second, messages.rate),
        cost_per_hour=shown(prediction.cost_per_hour, money),
        cost_per_million_tokens=shown(prediction.cost_per_million_tokens, money),
        provenance=prediction.provenance,
    )


def observed_metrics(
    old: api.ObservedMetrics | None, observed: Snapshot, now: float, changed: float | None = None
) -> api.ObservedMetrics | None:
    """Return what is measured and paid now; None where neither is known.

    `changed` is when the tokens per second of the status became what they are, in seconds since the epoch;
    None: not known. They change with the cost in any case, so that their quotient is of one time.
    """
    old = old or api.ObservedMetrics()
    cost = cost_per_hour(observed)
    rate, known = old.tokens_per_second, tokens_per_second(observed, now)
    rests = changed is not None and now - changed < REST_SECONDS and shown(cost, money) == old.cost_per_hour
    if rate is None or known is None or not rests:
        rate = stepped(rate, known, messages.rate)
    per_million = cost_per_million_tokens(cost, float(rate)) if rate is not None else None
    speedup = shown_speedup(old, observed)
    length = stepped(old.acceptance_length, acceptance_length(observed), "{:.2f}".format)
    if cost is None and rate is None and speedup is None and length is None:
        return None
    return api.ObservedMetrics(
        tokens_per_second=rate,
        speedup=speedup,
        acceptance_length=length,
        cost_per_hour=shown(cost, money),
        cost_per_million_tokens=shown(per_million, money),
    )


def acceptance_length(observed: Snapshot) -> float | None:
    """Return the tokens that a step with drafts adds to a request; None where none was drafted yet."""
    loads = [pod.load.load for pod in observed.pods if pod.is_serving and pod.load is not None]
    drafts = sum(load.drafts for load in loads)
    return 1.0 + sum(load.accepted_tokens for load in loads) / drafts if drafts else None


def shown_speedup(old: api.ObservedMetrics | None, observed: Snapshot) -> str | None:
    """Return the speedup of all pods, as it stands in the status."""
    return stepped(old.speedup if old is not None else None, observed.speedup, "{:.2f}".format)


def startup(old: api.StartupTimes | None, observed: Snapshot) -> api.StartupTimes | None:
    """Return how long the pod took to start that was created last and has become ready."""
    ready = [pod for pod in observed.pods if pod.ready and pod.created is not None]
    pod = max(ready, key=lambda pod: (pod.created, pod.name), default=None)
    if pod is None or pod.created is None:
        return old
    load = pod.load.load if pod.load is not None else None
    # What it was at first: a pod may cease to be ready, and be so again.
    known = old if old is not None and old.pod == pod.name else api.StartupTimes(pod=pod.name)
    ready_after = known.ready or _elapsed(pod.created, pod.ready_since)
    first_token = known.first_token or _elapsed(pod.created, load.first_token_time if load else None)
    if not (ready_after and first_token and _seconds(first_token) - _seconds(ready_after) <= AWAITED_SECONDS):
        first_token = None
    return api.StartupTimes(
        pod=pod.name,
        scheduling=known.scheduling or _elapsed(pod.created, pod.scheduled_since),
        pulling=known.pulling or _elapsed(pod.scheduled_since, pod.started),
        ready=ready_after,
        loading=known.loading or _elapsed(0.0, load.load_seconds if load else None),
        checking=known.checking or _elapsed(0.0, load.check_seconds if load else None),
        first_token=first_token,
    )


def _seconds(duration: str) -> float:
    return api.Duration(duration).seconds


def _elapsed(start: float | None, end: float | None) -> str | None:
    """Return the seconds between two times as a duration; None where one is not known."""
    if start is None or end is None:
        return None
    return f"{max(0.0, end - start):.1f}".removesuffix(".0") + "s"


def scale_history(
    old: api.TurboDeploymentStatus, scale: ScalingDecision, now: float
) -> tuple[api.ScaleEvent, ...]:
    """Return the last changes of the desired replicas, the earliest first.

    Derived from the old status alone, so that a restarted operator adds nothing twice.
    """
    before = old.desired_replicas
    if before is None or before == scale.replicas:
        return old.scale_history
    event = api.ScaleEvent(time=api.rfc3339(now), before=before, after=scale.replicas, reason=scale.reason)
    return (*old.scale_history, event)[-MAX_EVENTS:]


def unavailable_accelerators(observed: Snapshot) -> tuple[api.UnavailableAccelerator, ...]:
    """Return the accelerators that no pod could get, and until when they are passed over."""
    return tuple(
        api.UnavailableAccelerator(accelerator=name, expiration_time=api.rfc3339(supply.unavailable_until))
        for name, supply in sorted((observed.supply or {}).items())
        if supply.unavailable_until is not None
    )


def stepped(old: str | None, new: float | None, form: Callable[[float], str]) -> str | None:
    """Return the old figure while the new one is within a tenth of it."""
    if new is None:
        return None
    return form(new) if old is None or has_moved(old, new) else old


def has_moved(old: str | int | None, new: float) -> bool:
    """Whether a figure is no longer within a tenth of the one that stands."""
    return old is None or abs(new - float(old)) > STEP * float(old)


def shown(value: _T | None, form: Callable[[_T], str]) -> str | None:
    """Format a figure that is known."""
    return None if value is None else form(value)


def _duration(seconds: float) -> str:
    """Format a duration in milliseconds, like 123ms or 12.3ms."""
    milliseconds = seconds * 1000
    return f"{milliseconds:.0f}ms" if milliseconds >= 100 else f"{milliseconds:.1f}ms"


def cost_per_hour(observed: Snapshot) -> Decimal | None:
    """Return US dollars per hour of pods that hold accelerators; None where a price is not known."""
    holding: list[AcceleratorLabels] = [pod for pod in observed.trainings if pod.runs]
    # Of a replica on several nodes some pods may wait while others hold theirs: it counts as a whole.
    placed = (pod for pod in observed.pods if pod.pending_since is None or pod.group is not None)
    holding += [pod for pod in placed if pod.is_present]
    return cost_of(holding, observed.accelerators)


def cost_per_million_tokens(cost: Decimal | None, tokens_per_second: float | None) -> Decimal | None:
    """Return US dollars of a million output tokens at that rate; None where nothing is put out."""
    if cost is None or not tokens_per_second:
        return None
    return cost / Decimal(tokens_per_second) / 3600 * 1_000_000


def tokens_per_second(observed: Snapshot, now: float) -> float | None:
    """Return output tokens per second of all pods that answer; None where one has not reported lately."""
    rates = [
        pod.load.tokens_per_second if pod.load is not None and now - pod.load.at <= FRESH_SECONDS else None
        for pod in observed.pods
        if pod.is_present and pod.ready
    ]
    known = [rate for rate in rates if rate is not None]
    return sum(known) if known and len(known) == len(rates) else None
