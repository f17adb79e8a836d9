"""What one look at a TurboDeployment comes to, before anything is written. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from turbo_operator import canary, render, rollout, scaler, status, training
from turbo_operator.api import Calibrated, ScaleEvent, TurboDeployment, TurboDeploymentStatus, epoch
from turbo_operator.canary import Judgement
from turbo_operator.gains import Trial
from turbo_operator.observed import Observed
from turbo_operator.planned import Plan
from turbo_operator.planner.online import Online
from turbo_operator.planning import calibrating
from turbo_operator.render import drafts
from turbo_operator.scaler import Event, History, Scale
from turbo_operator.settings import Settings

Manifest = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Decision:
    """The children that shall be, and what the status tells of."""

    scale: Scale
    plan: Plan | None
    plan_hash: str | None
    calibrations: tuple[Calibrated, ...]  # what pods have told of their speed
    online: Online | None  # what that is known from
    judgement: Judgement | None  # of the draft that is tried
    trial: Trial | None
    children: tuple[Manifest, ...]  # all but those of the trial
    trial_children: tuple[Manifest, ...]
    step: training.Step  # of the training of a draft
    training_job: Manifest | None  # that it begins


def decide(
    td: TurboDeployment,
    observed: Observed,
    settings: Settings,
    now: float,
    plan: Plan | None,
    history: History,
    online: Online | None = None,
    step: training.Step = status.NO_TRAINING,
    trial: Trial | None = None,
    judgement: Judgement | None = None,
) -> Decision:
    """The decision, pure: the same observation at the same time, after the same past: the same children."""
    plan_hash: str | None = None
    choice = plan.choice if plan is not None else None
    if observed.model is not None and choice is not None:
        plan_hash = render.plan_hash(td, choice, observed.model, observed.draft)
    present = rollout.present_replicas(observed.children)
    if trial is not None or drafts.are_tried(td, observed.children):
        present = td.status.desired_replicas or present  # a pod in its place counts as a replica
    scale = scaler.scale(
        td.spec,
        plan,
        [pod for pod in observed.pods if pod.ready or trial is None or pod.plan_hash != trial.variant],
        history,
        now,
        present=present,
        supply=observed.supply.get(choice.accelerator.name) if choice and observed.supply else None,
        fresh_seconds=scaler.NUM_MISSED * settings.scrape_seconds,
    )
    tried = trial.variant if trial is not None else None
    makes_room = canary.makes_room(td, observed, choice, trial, scale.replicas, now)
    variants = rollout.next_variants(observed.children, plan_hash, scale.replicas, tried, makes_room)
    calibrations, online = calibrating.heard(td, observed, online, now)
    is_tried = judgement is not None and any(variant.plan_hash == tried for variant in variants)
    trying = judgement.draft if judgement is not None and is_tried else None
    children = render.children(td, observed, choice, variants, settings, trying)
    own = render.names_of_trial(td, tried) if tried is not None else frozenset()
    job = None
    if step.begin is not None and observed.model is not None:
        job = render.training_job(td, step.begin, observed.model, settings)
    return Decision(
        scale,
        plan,
        plan_hash,
        calibrations,
        online,
        judgement,
        trial,
        tuple(each for each in children if each["metadata"]["name"] not in own),
        tuple(each for each in children if each["metadata"]["name"] in own),
        step,
        job,
    )


def status_of(
    td: TurboDeployment, observed: Observed, decision: Decision, now: float, refused: str | None = None
) -> TurboDeploymentStatus:
    """The status that tells of a decision; `refused` is what the API server said against a child of ours."""
    it = decision
    return status.compute(
        td, observed, it.scale, it.plan, it.plan_hash, now, refused, it.calibrations, it.judgement, it.step
    )


def restored(events: Sequence[ScaleEvent]) -> History:
    """What the autoscaler knows after a start: what the status has kept."""
    return History.restored(Event(epoch(each.time), each.before, each.after, each.reason) for each in events)
