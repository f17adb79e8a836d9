"""From what is wanted, planned and seen to the status of a TurboDeployment. Pure: the time is a parameter.

Conditions are positive (True is good) but for Reconciling and Stalled. A transition time moves only when its
status flips, so computing the status again from the same facts changes nothing, and a status that equals the
old one need not be written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from turbo_operator.api import (
    Calibrated,
    Condition,
    ConditionType,
    ReadyReason,
    StalledReason,
    TurboDeployment,
    TurboDeploymentStatus,
    rfc3339,
)
from turbo_operator.api.conditions import ConditionState
from turbo_operator.autoscaler import ScalingDecision
from turbo_operator.drafts import conditions as draft_conditions
from turbo_operator.drafts.canary import CanaryVerdict
from turbo_operator.drafts.training import TrainingDecision
from turbo_operator.plan import Plan
from turbo_operator.render import url
from turbo_operator.render.metadata import traffic_selector
from turbo_operator.snapshot import Snapshot
from turbo_operator.status import conditions, fields, kstatus
from turbo_operator.status.conditions import failure, in_force
from turbo_operator.status.takeover import NO_TAKEOVER, Takeover

__all__ = ["Takeover", "compute", "failure", "in_force", "invalid"]

NO_TRAINING = TrainingDecision()


def compute(
    td: TurboDeployment,
    observed: Snapshot,
    scale: ScalingDecision,
    plan: Plan | None,
    plan_hash: str | None,
    now: float,
    refused: str | None = None,
    calibrations: tuple[Calibrated, ...] = (),
    judgement: CanaryVerdict | None = None,
    step: TrainingDecision = NO_TRAINING,
    takeover: Takeover = NO_TAKEOVER,
) -> TurboDeploymentStatus:
    """The whole status. `plan` is None until the model is known, `plan_hash` while no plan is feasible.

    `refused` says in a sentence why a child of ours was not taken; `calibrations` what pods have told
    of their speed, `judgement` what the trial of a new draft has come to, `step` one look at the training of
    drafts, `takeover` how far the plan is in taking over; `now` is in seconds since the epoch.
    """
    serving = [pod for pod in observed.pods if pod.is_serving]
    trial = judgement.variant if judgement is not None else None
    scale = in_force(td, scale, plan_hash)
    verdicts = conditions.verdicts(td, observed, scale, plan, plan_hash, refused, trial, takeover)
    verdicts |= kstatus.verdicts(td, observed, scale, verdicts, takeover, refused)
    target = takeover.target or plan_hash
    gain = fields.shown_gain(td.status.observed, observed)
    verdicts |= draft_conditions.verdicts(td, observed, plan, target, judgement, step.told, gain)
    latest = fields.plan(td.status.plan, plan, plan_hash)
    selector = traffic_selector(td, observed.children)
    return TurboDeploymentStatus(
        observed_generation=td.metadata.generation,
        url=url(td),
        replicas=len(serving),
        ready_replicas=sum(pod.ready for pod in serving),
        desired_replicas=scale.replicas,
        selector=",".join(f"{key}={value}" for key, value in sorted(selector.items())),
        model=fields.model(observed),
        plan=latest,
        serving_plan=fields.serving_plan(td.status, latest, takeover.serving),
        rollout=takeover.rollout,
        draft=fields.draft(observed),
        canary=fields.canary(judgement),
        turned_down=fields.turned_down(td.status, judgement, now),
        training=step.state,
        observed=fields.live(td.status.observed, observed, now),
        calibrations=calibrations,
        scale_history=fields.scale_history(td.status, scale, now),
        exhausted=fields.exhausted(observed),
        conditions=_conditions(verdicts, td.status.conditions, td.metadata.generation, now),
    )


def invalid(document: Mapping[str, Any], problem: str, now: float) -> TurboDeploymentStatus:
    """The status of an object that is none of the API's (stored before a rule was): what runs keeps running.

    `document` is the object as the API server holds it, `problem` a sentence that names the wrong field.
    """
    old = _old_status(document.get("status"))
    generation = document["metadata"].get("generation", 0)
    message = f"The spec cannot be read: {problem}."
    verdicts = {
        ConditionType.READY: ConditionState("False", ReadyReason.INVALID_SPEC, message),
        ConditionType.RECONCILING: ConditionState("False", StalledReason.NEEDS_CHANGE, message),
        ConditionType.STALLED: ConditionState("True", StalledReason.NEEDS_CHANGE, message),
    }
    new = _conditions(verdicts, old.conditions, generation, now)
    kept = tuple(each for each in old.conditions if each.type not in verdicts)
    return old.model_copy(update={"observed_generation": generation, "conditions": (*new, *kept)})


def _old_status(raw: Any) -> TurboDeploymentStatus:
    try:
        return TurboDeploymentStatus.model_validate(raw or {})
    except ValidationError:  # unreadable like the rest of the object: then it is written anew
        return TurboDeploymentStatus()


def _conditions(
    verdicts: Mapping[ConditionType, ConditionState], old: Sequence[Condition], generation: int, now: float
) -> tuple[Condition, ...]:
    before = {condition.type: condition for condition in old}
    stamp = rfc3339(now)
    written = []
    for kind, verdict in verdicts.items():
        last = before.get(kind)
        flipped = last is None or last.status != verdict.status
        written.append(
            Condition(
                type=kind,
                status=verdict.status,
                reason=verdict.reason,
                message=verdict.message,
                last_transition_time=stamp if flipped or last is None else last.last_transition_time,
                observed_generation=generation,
            )
        )
    return tuple(written)
