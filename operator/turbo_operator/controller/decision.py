"""Decides a TurboDeployment's children and status from a snapshot, before anything is written. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from turbo_operator import api, autoscaler, render, rollout, status
from turbo_operator.approval import decide_approval
from turbo_operator.autoscaler import Event, History
from turbo_operator.budget import Footprint, footprint_of
from turbo_operator.commitments import Allowance, Entry
from turbo_operator.drafts import canary, training
from turbo_operator.drafts.canary import CanaryVerdict
from turbo_operator.drafts.speedup import CanaryRun
from turbo_operator.drafts.training.manifests import training_job, turbo_draft
from turbo_operator.inventory import unavailable
from turbo_operator.plan import Plan
from turbo_operator.planner.performance.calibration import OnlineCorrection, update_calibrations
from turbo_operator.render import fetch, pod
from turbo_operator.render.metadata import digest
from turbo_operator.rollout import VariantState
from turbo_operator.settings import Settings
from turbo_operator.snapshot import ChildView, JobPod, Snapshot
from turbo_operator.status import Outcome, RolloutState, model_cache

# While the model is unknown, the next look: that a Job makes no pod is an event that never comes.
INSPECTING_SECONDS = 10.0
LIVE_SECONDS = 60.0  # between two looks at what is measured and paid
ROLLOUT_SECONDS = 10.0  # and at a rollout: that there is room again is no event of its own

Manifest = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision(Outcome):
    """The desired children, and everything that the status reports."""

    online: OnlineCorrection | None  # what the calibrations are known from
    canary_run: CanaryRun | None
    children: tuple[Manifest, ...]  # all but those of the canary
    canary_children: tuple[Manifest, ...]
    kept: frozenset[str]  # names of variants that shall exist, whether or not their template is at hand
    training_job: Manifest | None  # that begins
    turbo_draft: Manifest | None  # that a training has made
    entry: Entry  # what it holds, and the most that it may come to by this


def decide(
    td: api.TurboDeployment,
    observed: Snapshot,
    settings: Settings,
    now: float,
    plan: Plan | None,
    history: History,
    online: OnlineCorrection | None = None,
    step: training.TrainingDecision = training.NO_TRAINING,
    canary_run: CanaryRun | None = None,
    verdict: CanaryVerdict | None = None,
    best: Plan | None = None,
) -> Decision:
    """Decide a TurboDeployment's children and status: the same snapshot, time and past give the same.

    `plan` is the one in force, `best` the planner's, where that is another one that waits for approval.
    """
    best = best or plan
    choice = plan.served if plan is not None else None
    plan_hash = plan_hash_of(td, observed, plan)
    approval = decide_approval(td, plan_hash, best, plan_hash_of(td, observed, best))
    canary_hash = canary_run.variant if canary_run is not None else None
    seen = observed.children, observed.pods, observed.accelerators
    states = rollout.variant_states(*seen, now, td.spec.rollout.min_ready_seconds)
    asked = rollout.asked_replicas(states)  # None before the first; variants on the way share them
    scale = autoscaler.scale(
        td.spec,
        plan,
        [pod for pod in observed.pods if pod.ready or pod.plan_hash != canary_hash],
        history,
        now,
        present=asked if asked is None or td.status.desired_replicas is None else td.status.desired_replicas,
        supply=observed.supply.get(choice.accelerator.name) if choice and observed.supply else None,
        allowance=observed.allowance,
        routers=observed.routers if render.router.is_wanted(td, settings) else (),
        fresh_seconds=autoscaler.NUM_MISSED * settings.scrape_seconds,
    )
    scale = status.in_force(td, scale, plan_hash)
    if approval.holds and asked and scale.replicas and td.spec.scaling_mode != api.ScalingMode.EXTERNAL:
        # They are counted for a plan that is not in force.
        scale = dataclasses.replace(scale, replicas=max(scale.replicas, asked))
    fetch_job = None
    if observed.model is not None and pod.fetched_claim(td) is not None:
        fetch_job = fetch.job(td, observed.model, settings)
    cache = model_cache.build_model_cache(td, observed, now, _applied_hash(fetch_job))
    fetch_job = fetch_job if cache.wants_job else None
    makes_room = canary.makes_room(td, observed, choice, canary_run, scale.replicas, now)
    footprint = footprint_of(choice, td.spec.pod_template.spec) if choice is not None else None
    bounds = rollout.bounds_of(td, observed, (footprint, *(state.footprint for state in states)), now)
    recorded = td.status.serving_plan.hash if td.status.serving_plan is not None else None
    awaits_copy = scale.replicas > 0 and cache.blocks(observed, plan_hash, recorded)
    awaited = approval.condition if approval.holds else cache.condition if awaits_copy else None
    canaries = {canary_hash, *render.canary_hashes(td, observed)}
    own_states = [state for state in states if state.plan_hash not in canaries]
    serving = rollout.serving_variant(own_states, plan_hash, recorded, scale.replicas, bounds)
    is_over_limits = bounds.is_overspent((state.footprint, state.replicas) for state in states)
    progress = _follow(
        td, observed, plan_hash, states, scale.replicas, serving, is_over_limits, cache.is_missing, now
    )
    available = next((state.available for state in states if state.plan_hash == plan_hash), 0)
    canary_spec, step_limit = td.spec.rollout.canary, None
    if progress is not None and serving is not None and scale.replicas:
        counts = scale.replicas, available
        progress = rollout.pass_gates(progress, canary_spec, observed.pods, serving, *counts, now)
        step_limit = rollout.step_replicas(canary_spec, progress.passed_steps or 0, scale.replicas)
    has_canary = any(state.plan_hash == canary_hash and state.replicas for state in states)
    wanted = rollout.Wanted(
        None if awaits_copy or approval.holds else plan_hash,
        scale.replicas,
        serving,
        progress is not None and progress.reason == api.RolloutReason.ROLLED_BACK,
        canary_hash if not approval.holds and (has_canary or not cache.is_missing) else None,
        makes_room,
        bool(progress is not None and progress.over_limits),
        step_limit,
    )
    present = [each for each in states if not (awaits_copy and each.plan_hash == plan_hash)]
    move = rollout.next_step(present, wanted, footprint, bounds, now)
    if move.target == plan_hash and move.is_over:
        serving, progress = plan_hash, None
    state = RolloutState(plan_hash, move.target, serving, progress, move.waits, move.waits_for_spec)
    if progress is not None:
        what = rollout.describe_step(progress, canary_spec, scale.replicas, available)
        state = dataclasses.replace(state, step=what)
    if awaited is not None:
        state = dataclasses.replace(state, waits=awaited.message, waits_for_spec=False)
    calibrations, online = update_calibrations(td, observed, online, now)
    is_tried = verdict is not None and any(variant.plan_hash == canary_hash for variant in move.variants)
    tried = (verdict.draft, verdict.choice) if verdict is not None and verdict.choice and is_tried else None
    # Made before that ReplicaSet is gone, a Deployment would get neither its name nor its pods.
    releasing = {
        ("Deployment", render.variant_name(td, each.plan_hash))
        for each in states
        if each.plan_hash in observed.releasing and each.replicas and not each.exists
    }
    able = min(scale.replicas, max(move.fitting, sum(variant.replicas for variant in move.variants)))
    # One of those that fit may leave, but never the last of several that are wanted.
    min_available = max(able - 1, min(able, scale.replicas - 1, 1), 0)
    children = tuple(
        child
        for child in render.children(
            td, observed, choice, move.variants, settings, tried, min_available, fetch_job
        )
        if (child["kind"], child["metadata"]["name"]) not in releasing
    )
    own = render.canary_names(td, canary_hash) if canary_hash is not None else frozenset()
    if verdict is not None and canary_run is not None and not is_tried:
        is_short = not rollout.has_taken_over(states, move.target, scale.replicas)
        takes_over = state.status is not None
        verdict = verdict.held_up(
            state.rolled_back, takes_over, is_short, cache.is_missing, is_unapproved=approval.holds
        )
    job, trainer, draft_object = None, None, None
    # Neither a replica that is added now nor a Job is in the count that the other one was decided by.
    before = {state.plan_hash: state.replicas for state in states}
    others = [variant for variant in move.variants if variant.plan_hash != canary_hash]
    grows = any(variant.replicas > before.get(variant.plan_hash, 0) for variant in others)
    if step.job_request is not None and observed.model is not None and not (grows or cache.is_missing):
        job = training_job(td, step.job_request, observed.model, settings)
        trainer = footprint_of(step.job_request.choice, td.spec.pod_template.spec)
    training_spec = td.spec.speculation.training
    if step.finished is not None and step.state is not None and training_spec is not None:
        draft_object = turbo_draft(td, training_spec, step.state, step.finished)
    return Decision(
        scale,
        plan,
        plan_hash,
        state,
        calibrations,
        verdict,
        step,
        render.router.lack(td, settings) or render.gateway.lack(td, observed),
        _inspects_anew(td, observed, children),
        cache,
        awaited,
        approval,
        None if best is plan else best,
        online=online,
        canary_run=canary_run,
        children=tuple(child for child in children if child["metadata"]["name"] not in own),
        canary_children=tuple(child for child in children if child["metadata"]["name"] in own),
        kept=frozenset(render.variant_name(td, variant.plan_hash) for variant in move.variants),
        training_job=job,
        turbo_draft=draft_object,
        entry=_entry(observed.allowance, states, move, footprint, trainer),
    )


def plan_hash_of(td: api.TurboDeployment, observed: Snapshot, plan: Plan | None) -> str | None:
    """Hash a plan; None while there is none, or the model is unknown."""
    choice = plan.served if plan is not None else None
    if choice is None or observed.model is None:
        return None
    return render.plan_hash(td, choice, observed.model, observed.draft)


def _entry(
    allowance: Allowance,
    states: Sequence[VariantState],
    move: rollout.Step,
    footprint: Footprint | None,
    trainer: Footprint | None,
) -> Entry:
    """Return what is held, and what may be on the way: before, after and once the step's target has taken
    over. What gives way keeps its place in the budget for what follows.

    `footprint` is of a replica of the plan, `trainer` of a training that begins.
    """
    known = {state.plan_hash: state for state in states}

    def held_with(plan_hash: str, replicas: int) -> rollout.Holding:
        state = known.get(plan_hash)
        if state is None:  # of the plan, or a canary of it
            return footprint, replicas
        return state.footprint, state.held_with(replicas)

    before = rollout.amount_of((state.footprint, state.held) for state in states)
    after = rollout.amount_of(
        held_with(plan_hash, replicas)
        for plan_hash, replicas in {**dict.fromkeys(known, 0), **move.replicas}.items()
    )
    target = known.get(move.target or "")
    goal = footprint if target is None else target.footprint
    most = before | after | rollout.amount_of([(goal, move.fitting)])
    trainings = allowance.trainings | rollout.amount_of([(trainer, 1)])  # one takes the place of the other
    return Entry(before + allowance.trainings + allowance.earlier, most + trainings + allowance.earlier)


def _follow(
    td: api.TurboDeployment,
    observed: Snapshot,
    plan_hash: str | None,
    states: Sequence[VariantState],
    replicas: int,
    serving: str | None,
    is_over_limits: bool,
    lacks_model: bool,
    now: float,
) -> api.RolloutStatus | None:
    """Return the rollout's status before the step; a suspension ends it, so that it is tried anew."""
    last = td.status.rollout
    if td.spec.suspend or (last is not None and plan_hash not in (None, last.plan_hash)):
        last = None
    if plan_hash is None or td.spec.suspend:
        # No deadline runs while there is no plan that could make progress.
        is_under_way = last is not None and last.reason is None
        return last.model_copy(update={"last_progress_time": None}) if last and is_under_way else last
    spec_hash = digest(td.spec.model_dump(mode="json", exclude={"replicas"}, exclude_defaults=True))[:16]
    if replicas == 0:
        rolled_back = (api.RolloutReason.ROLLED_BACK, spec_hash)
        return last if last is not None and (last.reason, last.spec_hash) == rolled_back else None
    state = next((state for state in states if state.plan_hash == plan_hash), None)
    progress = rollout.Progress.of_pods(
        plan_hash,
        spec_hash,
        state.replicas if state is not None else 0,
        state.available if state is not None else 0,
        [pod for pod in observed.pods if pod.plan_hash == plan_hash],
    )
    deployment = canary.deployment_of(observed, plan_hash)
    is_refused = deployment is not None and deployment.message is not None and not deployment.is_over_quota
    progress = dataclasses.replace(
        progress,
        # No node is waited for, but a policy or a webhook. Pods that lack the model wait for that instead.
        has_placed=(progress.has_placed or is_refused) and not lacks_model,
        is_waiting=progress.is_waiting or lacks_model,
        failure=status.failure(observed, plan_hash),
        over_limits=is_over_limits,
    )
    return rollout.follow(last, progress, serving, now, td.spec.rollout.progress_deadline.seconds)


def next_look(
    td: api.TurboDeployment, observed: Snapshot, decision: Decision, now: float, scrape_seconds: float
) -> float:
    """Return the seconds until something may change without an event."""
    if observed.model is None:
        return INSPECTING_SECONDS
    status, seconds = decision.rollout.status, [LIVE_SECONDS]
    deadline = rollout.seconds_left(status, now, td.spec.rollout.progress_deadline.seconds)
    # A pod that has just become ready is waited for beyond the deadline.
    deadline = ROLLOUT_SECONDS if deadline == 0.0 else deadline
    expiry = unavailable.next_look(td, observed.pods, now)
    seconds += [max(1.0, due) for due in (expiry, deadline) if due is not None]
    if decision.rollout.waits is not None or (status is not None and status.reason is None):
        seconds.append(ROLLOUT_SECONDS)
    # loads grow old, and windows pass
    if td.spec.scaling_mode == api.ScalingMode.METRICS or decision.canary_run is not None:
        seconds.append(scrape_seconds)
    return min(seconds)


def is_stale_inspection(job: ChildView, wanted_hash: str, pods: Iterable[JobPod]) -> bool:
    """Whether a Job that is still wanted must make room for a new one: a Job cannot be changed.

    It was rendered from another spec, or it is complete and its answer went with its pod before it was read.
    """
    has_pod = any(pod.job == job.name for pod in pods)
    return job.applied_hash != wanted_hash or (job.complete and not has_pod)


def _inspects_anew(td: api.TurboDeployment, observed: Snapshot, children: Iterable[Manifest]) -> bool:
    """Whether what is seen of the inspection is of a Job that is about to be replaced."""
    name = render.job_name(td)
    job = next((child for child in observed.children if (child.kind, child.name) == ("Job", name)), None)
    new = next((child for child in children if child["metadata"]["name"] == name), None)
    wanted_hash = _applied_hash(new)
    return (
        job is not None
        and wanted_hash is not None
        and (is_stale_inspection(job, wanted_hash, observed.inspecting))
    )


def _applied_hash(manifest: Manifest | None) -> str | None:
    return None if manifest is None else str(manifest["metadata"]["annotations"][api.ANNOTATION_APPLIED_HASH])


def restore_history(events: Sequence[api.ScaleEvent]) -> History:
    """Return what the autoscaler knows after a start: what the status has kept."""
    return History.restored(
        Event(api.epoch(each.time), each.before, each.after, each.reason) for each in events
    )
