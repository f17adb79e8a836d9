"""From what is wanted, planned and seen to the status of a TurboDeployment. Pure: the time is a parameter.

Conditions are positive (True is good) but for Reconciling and Stalled. A transition time moves only when its
status flips, so computing the status again from the same facts changes nothing, and a status that equals the
old one need not be written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from turbo_operator import api
from turbo_operator.api.condition_state import false, true
from turbo_operator.drafts import conditions as draft_conditions
from turbo_operator.plan import Plan
from turbo_operator.render import url
from turbo_operator.render.metadata import traffic_selector
from turbo_operator.snapshot import Snapshot
from turbo_operator.status import fields
from turbo_operator.status.conditions import Conditions, Outcome, in_force
from turbo_operator.status.failures import failure
from turbo_operator.status.rollout_state import RolloutState
from turbo_operator.status.saving import is_saving_asked, saving
from turbo_operator.status.targets import TargetTracker, targets_met
from turbo_operator.status.timestamps import stamp

__all__ = ["Outcome", "RolloutState", "compute", "failure", "in_force", "invalid", "is_saving_asked"]


def compute(
    td: api.TurboDeployment,
    observed: Snapshot,
    outcome: Outcome,
    now: float,
    refused: str | None = None,
    *,
    passes: bool = False,
    tracker: TargetTracker = TargetTracker(),  # noqa: B008  frozen
    undrafted: Plan | None = None,
    rate_changed: float | None = None,
) -> api.TurboDeploymentStatus:
    """Compute the whole status; `now` is in seconds since the epoch.

    `refused` says in a sentence why a child of ours was not taken; whether that `passes` by itself. `tracker`
    has counted how long requests took; `undrafted` is the plan of the same targets without speculation; and
    `rate_changed` is when the tokens per second of the status last did.
    """
    plan_hash, verdict, rollout = outcome.plan_hash, outcome.verdict, outcome.rollout
    scale = in_force(td, outcome.scale, plan_hash)
    outcome = dataclasses.replace(outcome, scale=scale)
    states = Conditions(td, observed, outcome, now, refused, passes).states()
    if scale.replicas == 0:  # what was measured is of pods that are not wanted any more
        observed = dataclasses.replace(observed, speedup=None)
    speedup = fields.shown_speedup(td.status.observed, observed)
    states |= draft_conditions.states(
        td, observed, outcome.plan, rollout.target or plan_hash, verdict, outcome.step.condition, speedup
    )
    if met := targets_met(td, observed, tracker, now):
        states[api.ConditionType.TARGETS_MET] = met
    serving = [pod for pod in observed.pods if pod.is_serving]
    plan = fields.plan(td.status.plan, outcome.plan, plan_hash)
    selector = traffic_selector(td, observed.children)
    return api.TurboDeploymentStatus(
        observed_generation=td.metadata.generation,
        url=url(td),
        replicas=len(serving),
        ready_replicas=sum(pod.ready for pod in serving),
        desired_replicas=scale.replicas,
        selector=",".join(f"{key}={value}" for key, value in sorted(selector.items())),
        model=fields.model(observed),
        cache=outcome.cache.status,
        plan=plan,
        pending_plan=fields.pending_plan(outcome.best or outcome.plan, outcome.approval.pending),
        serving_plan=fields.serving_plan(td.status, plan, rollout.serving),
        rollout=rollout.status,
        draft=fields.draft(td, observed),
        canary=fields.canary(verdict),
        rejected_drafts=fields.update_rejected_drafts(td.status, verdict, now),
        training=outcome.step.state,
        observed=fields.observed_metrics(td.status.observed, observed, now, rate_changed),
        calibrations=outcome.calibrations,
        saving=saving(observed, undrafted, speedup),
        startup=fields.startup(td.status.startup, observed),
        scale_history=fields.scale_history(td.status, scale, now),
        unavailable_accelerators=fields.unavailable_accelerators(observed),
        conditions=stamp(states, td.status.conditions, td.metadata.generation, now),
    )


def invalid(document: Mapping[str, Any], problem: str, now: float) -> api.TurboDeploymentStatus:
    """Return the status of an object that breaks a rule of the API, stored before it was: what runs keeps
    running.

    `document` is the object as the API server holds it, `problem` a sentence that names the wrong field.
    """
    try:
        old = api.TurboDeploymentStatus.model_validate(document.get("status") or {})
    except ValidationError:  # unreadable like the rest of the object: then it is written anew
        old = api.TurboDeploymentStatus()
    generation = document["metadata"].get("generation", 0)
    message = f"The spec cannot be read: {problem}."
    states = {
        api.ConditionType.READY: false(api.ReadyReason.INVALID_SPEC, message),
        api.ConditionType.RECONCILING: false(api.StalledReason.USER_ACTION_REQUIRED, message),
        api.ConditionType.STALLED: true(api.StalledReason.USER_ACTION_REQUIRED, message),
    }
    new = stamp(states, old.conditions, generation, now)
    others = (condition for condition in old.conditions if condition.type not in states)
    return old.model_copy(update={"observed_generation": generation, "conditions": (*new, *others)})
