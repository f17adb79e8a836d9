"""What one look at a TurboDeployment comes to, before anything is written. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from turbo_operator import autoscaler, render, rollout, status
from turbo_operator.api import (
    Calibrated,
    RolloutReason,
    RolloutStatus,
    ScaleEvent,
    TurboDeployment,
    TurboDeploymentStatus,
    epoch,
)
from turbo_operator.autoscaler import Event, History, ScalingDecision
from turbo_operator.budget import footprint_of
from turbo_operator.drafts import canary, training
from turbo_operator.drafts.canary import CanaryVerdict
from turbo_operator.drafts.speedup import CanaryRun
from turbo_operator.drafts.training.manifests import training_job
from turbo_operator.plan import Plan
from turbo_operator.planner.performance import calibration_history
from turbo_operator.planner.performance.calibration import Online
from turbo_operator.render.metadata import digest
from turbo_operator.rollout import VariantState
from turbo_operator.settings import Settings
from turbo_operator.snapshot import Snapshot
from turbo_operator.status import Takeover

Manifest = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Decision:
    """The children that shall be, and what the status tells of."""

    scale: ScalingDecision
    plan: Plan | None
    plan_hash: str | None
    takeover: Takeover  # how far the plan is in taking over from the one before
    calibrations: tuple[Calibrated, ...]  # what pods have told of their speed
    online: Online | None  # what that is known from
    judgement: CanaryVerdict | None  # of the draft that is tried
    trial: CanaryRun | None
    children: tuple[Manifest, ...]  # all but those of the trial
    trial_children: tuple[Manifest, ...]
    kept: frozenset[str]  # names of variants that shall exist, whether or not their template is at hand
    step: training.TrainingDecision  # of the training of a draft
    training_job: Manifest | None  # that it begins


def decide(
    td: TurboDeployment,
    observed: Snapshot,
    settings: Settings,
    now: float,
    plan: Plan | None,
    history: History,
    online: Online | None = None,
    step: training.TrainingDecision = status.NO_TRAINING,
    trial: CanaryRun | None = None,
    judgement: CanaryVerdict | None = None,
) -> Decision:
    """The decision, pure: the same observation at the same time, after the same past: the same children."""
    plan_hash: str | None = None
    choice = plan.served if plan is not None else None
    if observed.model is not None and choice is not None:
        plan_hash = render.plan_hash(td, choice, observed.model, observed.draft)
    states = rollout.variant_states(observed.children, observed.pods, observed.accelerators)
    scale = autoscaler.scale(
        td.spec,
        plan,
        [pod for pod in observed.pods if pod.ready or trial is None or pod.plan_hash != trial.variant],
        history,
        now,
        present=_present(td, states),
        supply=observed.supply.get(choice.accelerator.name) if choice and observed.supply else None,
        fresh_seconds=autoscaler.NUM_MISSED * settings.scrape_seconds,
    )
    scale = status.in_force(td, scale, plan_hash)
    tried = trial.variant if trial is not None else None
    makes_room = canary.makes_room(td, observed, choice, trial, scale.replicas, now)
    takeover, variants = _roll(td, observed, plan, plan_hash, states, scale, tried, makes_room, now)
    calibrations, online = calibration_history.update_calibrations(td, observed, online, now)
    is_tried = judgement is not None and any(variant.plan_hash == tried for variant in variants)
    trying = judgement.draft if judgement is not None and is_tried else None
    children = render.children(td, observed, choice, variants, settings, trying)
    own = render.names_of_trial(td, tried) if tried is not None else frozenset()
    job = None
    if step.begin is not None and observed.model is not None:
        job = training_job(td, step.begin, observed.model, settings)
    return Decision(
        scale,
        plan,
        plan_hash,
        takeover,
        calibrations,
        online,
        judgement,
        trial,
        tuple(each for each in children if each["metadata"]["name"] not in own),
        tuple(each for each in children if each["metadata"]["name"] in own),
        frozenset(render.variant_name(td, variant.plan_hash) for variant in variants),
        step,
        job,
    )


def _present(td: TurboDeployment, states: Sequence[VariantState]) -> int | None:
    """The replicas that were asked for last; None before the first. Variants on the way share them."""
    asked = rollout.asked_replicas(states)
    return asked if asked is None or td.status.desired_replicas is None else td.status.desired_replicas


def _roll(
    td: TurboDeployment,
    observed: Snapshot,
    plan: Plan | None,
    plan_hash: str | None,
    states: Sequence[VariantState],
    scale: ScalingDecision,
    tried: str | None,
    makes_room: bool,
    now: float,
) -> tuple[Takeover, tuple[rollout.Variant, ...]]:
    """The next step between two plans, and what the status keeps of it."""
    choice = plan.served if plan is not None else None
    footprint = footprint_of(choice, td.spec.template) if choice is not None else None
    bounds = rollout.bounds_of(td, observed, (footprint, *(state.footprint for state in states)), now)
    recorded = td.status.serving_plan.hash if td.status.serving_plan is not None else None
    serving = rollout.serving_variant(
        [state for state in states if state.plan_hash != tried], plan_hash, recorded
    )
    over_limits = bounds.is_overspent((state.footprint, state.replicas) for state in states)
    progress = _followed(td, observed, plan_hash, states, scale, serving, over_limits, now)
    rolled_back = progress is not None and progress.reason == RolloutReason.ROLLED_BACK
    wanted = rollout.Wanted(
        plan_hash,
        scale.replicas,
        serving,
        rolled_back,
        tried,
        makes_room,
        bool(progress is not None and progress.over_limits),
    )
    step = rollout.next_step(states, wanted, footprint, bounds, now)
    if step.target == plan_hash and step.is_over:
        serving, progress = plan_hash, None
    takeover = Takeover(plan_hash, step.target, serving, progress, step.waits, step.waits_for_spec)
    return takeover, step.variants


def _followed(
    td: TurboDeployment,
    observed: Snapshot,
    plan_hash: str | None,
    states: Sequence[VariantState],
    scale: ScalingDecision,
    serving: str | None,
    over_limits: bool,
    now: float,
) -> RolloutStatus | None:
    """The rollout's status before the step; a suspension ends it, so that what was given up is tried anew."""
    last = td.status.rollout
    if td.spec.suspend or (last is not None and plan_hash not in (None, last.plan_hash)):
        last = None
    if plan_hash is None or td.spec.suspend:
        return last
    if scale.replicas == 0:
        return last if last is not None and last.reason == RolloutReason.ROLLED_BACK else None
    progress = dataclasses.replace(_progress(td, observed, plan_hash, states), over_limits=over_limits)
    return rollout.follow(last, progress, serving, now, td.spec.rollout.progress_deadline_seconds)


def _progress(
    td: TurboDeployment, observed: Snapshot, plan_hash: str, states: Sequence[VariantState]
) -> rollout.Progress:
    state = next((each for each in states if each.plan_hash == plan_hash), None)
    progress = rollout.Progress.of_pods(
        plan_hash,
        digest(td.spec.model_dump(mode="json", exclude={"replicas"}, exclude_defaults=True))[:16],
        state.replicas if state is not None else 0,
        state.available if state is not None else 0,
        [pod for pod in observed.pods if pod.plan_hash == plan_hash],
    )
    made = next(
        (each for each in observed.children if each.kind == "Deployment" and each.plan_hash == plan_hash),
        None,
    )
    is_refused = made is not None and made.message is not None and not made.is_over_quota
    return dataclasses.replace(
        progress,
        has_placed=progress.has_placed or is_refused,  # no node is waited for, but a policy or a webhook
        failure=status.failure(observed, plan_hash),
    )


def status_of(
    td: TurboDeployment, observed: Snapshot, decision: Decision, now: float, refused: str | None = None
) -> TurboDeploymentStatus:
    """The status that tells of a decision; `refused` says in a sentence why a child of ours was not taken."""
    return status.compute(
        td,
        observed,
        decision.scale,
        decision.plan,
        decision.plan_hash,
        now,
        refused,
        decision.calibrations,
        decision.judgement,
        decision.step,
        decision.takeover,
    )


def restored(events: Sequence[ScaleEvent]) -> History:
    """What the autoscaler knows after a start: what the status has kept."""
    return History.restored(Event(epoch(each.time), each.before, each.after, each.reason) for each in events)
