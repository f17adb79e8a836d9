"""The next Job: on what, under which number, for how long; asked for anew while no pod of it has run. Pure.

A training that has run is bound to its folder and its accelerator. One that has not is bound to its number
alone: it follows the spec, and leaves an accelerator that it waits for in vain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from turbo_operator.api import (
    Accelerators,
    PlanReason,
    Training,
    TrainingReason,
    TrainingStatus,
    TurboDeployment,
    label_value,
)
from turbo_operator.api.conditions import ConditionState
from turbo_operator.budget import footprint_of
from turbo_operator.drafts.training import names
from turbo_operator.drafts.training.accelerator_query import planned_on
from turbo_operator.drafts.training.budget import LEAST_SECONDS, bought_seconds, over_budget
from turbo_operator.drafts.training.hardware import dtype
from turbo_operator.drafts.training.step import AcceleratorQuery, JobRequest, TrainingDecision
from turbo_operator.plan import Choice, Plan
from turbo_operator.planner import money
from turbo_operator.rollout import Bounds
from turbo_operator.snapshot import Snapshot, TrainPod
from turbo_runtime.contract.model import ModelInfo

MAX_PASSED_OVER = 32  # that a status holds


@dataclass(frozen=True, slots=True)
class Case:
    """One look at a training that is asked for."""

    td: TurboDeployment
    training: Training
    observed: Snapshot
    answer: Plan | None  # the planner's, to what the step before it `asks`; None at first
    now: float
    state: TrainingStatus | None


@dataclass(frozen=True, slots=True)
class TrainingTarget:
    """What a draft is trained for."""

    model: ModelInfo
    choice: Choice


def due(it: Case, served: TrainingTarget) -> TrainingDecision:
    """The next training, or the one that is half done, on what the planner chooses."""
    old = _unfinished(it)
    pinned = it.training.accelerator or ""
    if old is not None and old.started is not None and _goes_on(it, served, old):
        # another machine's threads and arithmetic make another draft
        pinned = old.accelerator or ""
    ask = AcceleratorQuery(pinned, dtype(served.choice), old.passed_over if old is not None else ())
    if it.answer is None:
        message = "A training is due, and the planner looks for its accelerator."
        return TrainingDecision(
            ConditionState("Unknown", TrainingReason.WAITING_FOR_ACCELERATOR, message), it.state, asks=ask
        )
    return _begun(it, served, ask, it.answer)


def anew(
    it: Case, served: TrainingTarget, waits: TrainingDecision, pods: Sequence[TrainPod]
) -> TrainingDecision:
    """The same for a training whose Job is there and of which no pod has run, which `waits` tells of."""
    old = it.state
    if old is None:
        return waits
    mine = old.accelerator or ""
    allowed = it.td.spec.accelerators or Accelerators()
    in_vain = any(
        it.now - pod.pending_since >= allowed.pending_timeout_seconds
        for pod in pods
        if pod.pending_since is not None and not pod.terminating and pod.accelerator == label_value(mine)
    )
    stays = not in_vain and mine in it.observed.accelerators and mine in (allowed.allowed or (mine,))
    pinned = it.training.accelerator or (mine if stays else "")
    passed_over = old.passed_over
    if in_vain:
        passed_over = tuple(dict.fromkeys((*passed_over, mine)))[-MAX_PASSED_OVER:]
    ask = AcceleratorQuery(pinned, dtype(served.choice), passed_over)
    if it.answer is None:
        return replace(waits, asks=ask)
    step = _begun(it, served, ask, it.answer)
    if step.begin is not None:
        return replace(step, told=waits.told, keep=waits.keep)
    if in_vain:  # nothing else is to be had: it waits on, and all are tried again
        return replace(waits, state=old.model_copy(update={"passed_over": ()}))
    return step


def _unfinished(it: Case) -> TrainingStatus | None:
    old = it.state
    return old if old is not None and old.result in (None, TrainingReason.OVER_BUDGET) else None


def _goes_on(it: Case, served: TrainingTarget, old: TrainingStatus) -> bool:
    """Whether what is half done is what is asked for."""
    row = it.observed.accelerators.get(old.accelerator or "")
    return (
        row is not None
        and it.training.accelerator in (None, row.name)
        and old.work == names.work_hash(it.td, it.training, served.model.digest, row, dtype(served.choice))
    )


def _begun(it: Case, served: TrainingTarget, ask: AcceleratorQuery, answer: Plan) -> TrainingDecision:
    td, training = it.td, it.training
    found = chosen(training, answer)
    if isinstance(found, ConditionState):
        return TrainingDecision(found, it.state)
    choice = planned_on(found, it.observed)
    if (unaffordable := _unaffordable(it, served.choice, choice)) is not None:
        return TrainingDecision(unaffordable, it.state)
    name, price = choice.accelerator.name, choice.predicted.cost_per_hour
    work = names.work_hash(td, training, served.model.digest, choice.accelerator, ask.dtype)
    old = _unfinished(it)
    if old is not None and (old.started is None or old.work == work):
        new = old.model_copy(update={"result": None, "message": None, "ended": None})
    else:
        taken = names.last_draft(td, (draft.name for draft in it.observed.drafts))
        new = TrainingStatus(
            number=1 + max(taken, it.state.number if it.state else 0),
            work=work,
            spec_hash="",
            below_since=it.state.below_since if it.state else None,
        )
    new = new.model_copy(
        update={
            "work": work,
            "spec_hash": names.spec_hash(training),
            "target_digest": served.model.digest,
            "accelerator": name,
            "passed_over": ask.passed_over,
            "cost_per_hour": None if price is None else str(price),
            "spent": None if price is None else (new.spent or "0"),
        }
    )
    deadline = bought_seconds(training, new, it.now)
    if deadline is not None and deadline < LEAST_SECONDS:
        return over_budget(training, new, it.now)
    began = "begins" if new.started is None else "goes on"
    message = f"Training {new.number} {began} on {name}{'' if price is None else f' for {money(price)} $/h'}."
    begin = JobRequest(new.number, work, choice, served.choice, deadline)
    return TrainingDecision(ConditionState("False", TrainingReason.TRAINING, message), new, begin=begin)


def _unaffordable(it: Case, serving: Choice, choice: Choice) -> ConditionState | None:
    """Why a training waits: with the replicas it would cost, or hold, more than the spec allows."""
    td, there = it.td, sum(pod.is_present for pod in it.observed.pods)
    replicas = max(td.status.desired_replicas or 1, there)  # a rollout or a canary may have one more
    cost, accelerators = td.spec.cost, td.spec.accelerators
    bounds = Bounds(
        max_total=accelerators.max_total if accelerators else None,
        max_per_hour=cost.max_per_hour if cost else None,
    )
    broken = bounds.exceeded(
        [(footprint_of(each, td.spec.template), count) for each, count in ((serving, replicas), (choice, 1))]
    )
    if broken is None:
        return None
    message = (
        f"A training on {choice.accelerator.name} waits: {broken}, which holds for the "
        f"{'replica' if replicas == 1 else f'{replicas} replicas'} and the training together. Raise it, or "
        "train while fewer replicas run."
    )
    return ConditionState("False", TrainingReason.WAITING_FOR_BUDGET, message)


def chosen(training: Training, answer: Plan) -> Choice | ConditionState:
    """What the planner's answer says that a training runs on, or why on nothing."""
    choice = answer.choice
    if choice is not None:
        if training.max_cost is None or choice.predicted.cost_per_hour is not None:
            return choice
        message = (
            f"spec.speculation.training.maxCost is set and {choice.accelerator.name} has no "
            f"{choice.capacity_type} price: write spec.pricing.perAcceleratorHour on that TurboAccelerator, "
            "or leave maxCost out."
        )
        return ConditionState("False", TrainingReason.PRICE_UNKNOWN, message)
    if training.accelerator is not None and answer.reason == PlanReason.NO_PROFILE:
        message = (
            f"There is no TurboAccelerator {training.accelerator}: create it, or correct "
            "spec.speculation.training.accelerator."
        )
        return ConditionState("False", TrainingReason.NO_ACCELERATOR, message)
    reason = {
        PlanReason.NO_CAPACITY: TrainingReason.WAITING_FOR_ACCELERATOR,
        PlanReason.PRICE_UNKNOWN: TrainingReason.PRICE_UNKNOWN,
    }.get(PlanReason(answer.reason), TrainingReason.NO_ACCELERATOR)
    return ConditionState("False", reason, f"No accelerator can be had for a training. {answer.detail}")
