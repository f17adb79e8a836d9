"""The next Job: on what, under which number, for how long; planned anew while no pod of it has run. Pure.

A training that has run is bound to its folder and its accelerator. One that has not is bound to its number
alone: it follows the spec, and leaves an accelerator on which its wait has timed out.
Nothing of the deployment's load, targets and budget holds for it: the cheapest accelerator that fits one
replica of the model, beside what a training takes, and has room will do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from turbo_operator import api
from turbo_operator.api import PlanReason, TrainingReason, TrainingStatus
from turbo_operator.api.condition_state import ConditionState, false, unknown
from turbo_operator.budget import footprint_of
from turbo_operator.commitments import NOTHING
from turbo_operator.drafts.training import manifests
from turbo_operator.drafts.training.job_state import (
    MIN_SECONDS,
    AcceleratorQuery,
    JobRequest,
    TrainingDecision,
    bought_seconds,
    over_budget,
)
from turbo_operator.plan import Choice, Plan
from turbo_operator.planner import money
from turbo_operator.planner.capabilities import EAGLE3_TARGETS, describe_model_lack
from turbo_operator.planner.inputs import PlannerInputs, within_budgets
from turbo_operator.planner.performance.memory import GIB, on_cpu
from turbo_operator.planner.performance.speculation import head_parameters
from turbo_operator.rollout import Bounds, variant_states
from turbo_operator.snapshot import Accelerator, Snapshot, TrainPod
from turbo_runtime.contract.documents import ModelShape

MAX_PASSED_OVER = 32  # that a status holds
# Of `turbo distill` by its defaults: hidden states, and the logits of a step of 256 places over 8,192 tokens,
# of the draft and of the model, with what their gradients take, for each of 4 tokens that are drafted.
_STATES = GIB
_LOGITS = 256 * 8192 * 4 * 3 * 4
_DEPTH = 4
_LEARNT_BYTES = 16  # of one weight that is learnt: in float32, its gradient and two moments
HOST_BYTES = 2 * GIB  # beside a device: what is read of prompts, answers and states on their way


@dataclass(frozen=True, slots=True)
class TrainingInputs:
    """One look at a training whose model and plan are known."""

    td: api.TurboDeployment
    training: api.Training
    observed: Snapshot
    digest: str  # of the model
    shape: ModelShape
    serving: Choice  # the plan that the draft is for
    answer: Plan | None  # the planner's, to what the step before it `query`; None at first
    now: float
    state: TrainingStatus | None

    @property
    def unfinished(self) -> TrainingStatus | None:
        """The state of a training that may go on."""
        state = self.state
        return state if state is not None and state.result in (None, TrainingReason.BUDGET_EXCEEDED) else None

    def work_hash(self, accelerator: Accelerator) -> str:
        """Hash what decides the draft of a training on an accelerator."""
        return manifests.work_hash(self.td, self.training, self.digest, accelerator, self.serving.dtype)


def start_or_resume(inputs: TrainingInputs) -> TrainingDecision:
    """Begin the next training, or resume the one that is half done, on what the planner chooses."""
    old, pinned = inputs.unfinished, inputs.training.accelerator_name or ""
    if old is not None and old.start_time is not None:
        row = inputs.observed.accelerators.get(old.accelerator_name or "")
        if row is not None and pinned in ("", row.name) and old.input_hash == inputs.work_hash(row):
            pinned = row.name  # another machine's threads and arithmetic make another draft
    passed_over = old.excluded_accelerators if old is not None else ()
    query = AcceleratorQuery(pinned, inputs.serving.dtype, passed_over)
    if inputs.answer is None:
        message = "A training is due, and the planner looks for its accelerator."
        condition = unknown(TrainingReason.WAITING_FOR_ACCELERATOR, message)
        return TrainingDecision(condition, inputs.state, query=query)
    return _begin(inputs, query, inputs.answer)


def replan(inputs: TrainingInputs, waiting: TrainingDecision, pods: Sequence[TrainPod]) -> TrainingDecision:
    """Plan anew for a training whose Job is there and of which no pod has run, which `waiting` tells of."""
    old, spec = inputs.state, within_budgets(inputs.td.spec, inputs.observed)
    assert old is not None  # it names the Job
    current, allowed = old.accelerator_name or "", spec.accelerators or api.Accelerators()
    is_timed_out = any(
        inputs.now - pod.pending_since >= allowed.pending_timeout.seconds
        for pod in pods
        if pod.pending_since is not None
        and not pod.terminating
        and pod.accelerator == api.label_value(current)
    )
    is_known = current in inputs.observed.accelerators and current in (allowed.allowed or (current,))
    pinned = inputs.training.accelerator_name or (current if is_known and not is_timed_out else "")
    passed_over = old.excluded_accelerators
    if is_timed_out:
        passed_over = tuple(dict.fromkeys((*passed_over, current)))[-MAX_PASSED_OVER:]
    query = AcceleratorQuery(pinned, inputs.serving.dtype, passed_over)
    if inputs.answer is None:
        return replace(waiting, query=query)
    step = _begin(inputs, query, inputs.answer)
    if step.job_request is not None:
        return replace(step, condition=waiting.condition, kept_job=waiting.kept_job)
    if is_timed_out:  # nothing else is to be had: it waits on, and all are tried again
        return replace(waiting, state=old.model_copy(update={"excluded_accelerators": ()}))
    return step


def _begin(inputs: TrainingInputs, query: AcceleratorQuery, answer: Plan) -> TrainingDecision:
    td, training, state, old = inputs.td, inputs.training, inputs.state, inputs.unfinished
    choice = chosen(td, training, answer, inputs.shape)
    if isinstance(choice, ConditionState):
        return TrainingDecision(choice, state)
    # the accelerator as it is, with a training's memory in addition
    accelerator = inputs.observed.accelerators[choice.accelerator.name]
    memory = accelerator.memory_bytes if on_cpu(accelerator) else choice.host_memory_bytes + HOST_BYTES
    choice = replace(choice, accelerator=accelerator, host_memory_bytes=memory)
    if (unaffordable := _unaffordable(inputs, choice)) is not None:
        return TrainingDecision(unaffordable, state)
    price, work = choice.predicted.cost_per_hour, inputs.work_hash(accelerator)
    if old is not None and (old.start_time is None or old.input_hash == work):
        new = old.model_copy(update={"result": None, "message": None, "completion_time": None})
    else:
        last = manifests.last_draft(td, (draft.name for draft in inputs.observed.drafts))
        new = TrainingStatus(
            number=1 + max(last, state.number if state else 0),
            input_hash=work,
            spec_hash="",
            below_threshold_time=state.below_threshold_time if state else None,
        )
    new = new.model_copy(
        update={
            "input_hash": work,
            "spec_hash": manifests.spec_hash(training),
            "target_digest": inputs.digest,
            "accelerator_name": accelerator.name,
            "excluded_accelerators": query.passed_over,
            "cost_per_hour": None if price is None else str(price),
            "cost": None if price is None else (new.cost or "0"),
        }
    )
    deadline = bought_seconds(training, new, inputs.now)
    if deadline is not None and deadline < MIN_SECONDS:
        return over_budget(training, new, inputs.now)
    cost = "" if price is None else f" for {money(price)} $/h"
    verb = "begins" if new.start_time is None else "goes on"
    message = f"Training {new.number} {verb} on {accelerator.name}{cost}."
    request = JobRequest(new.number, work, choice, inputs.serving, deadline)
    return TrainingDecision(false(TrainingReason.TRAINING, message), new, job_request=request)


def _unaffordable(inputs: TrainingInputs, choice: Choice) -> ConditionState | None:
    """Say why a training waits: with the replicas it would cost, or hold, more than the spec allows."""
    td, observed = inputs.td, inputs.observed
    # A rollout or a canary may hold more than is desired, and of another accelerator.
    states = variant_states(observed.children, observed.pods, observed.accelerators, inputs.now)
    present = sum(state.held for state in states)
    replicas = max(td.status.desired_replicas or 1, present)
    cost, accelerators = td.spec.cost or api.Cost(), td.spec.accelerators or api.Accelerators()
    # The Job that this one takes the place of is counted already.
    allowance = replace(observed.allowance, trainings=NOTHING)
    bounds = Bounds(max_total=accelerators.max_total, max_per_hour=cost.max_per_hour, allowance=allowance)
    serving, trainer = (footprint_of(each, td.spec.pod_template.spec) for each in (inputs.serving, choice))
    held = [(state.footprint, state.held) for state in states]
    broken = bounds.exceeded([*held, (serving, replicas - present), (trainer, 1)])
    if broken is None:
        return None
    message = (
        f"A training on {choice.accelerator.name} waits: {broken}, which holds for the "
        f"{'replica' if replicas == 1 else f'{replicas} replicas'} and the training together. Raise it, or "
        "train while fewer replicas run."
    )
    return false(TrainingReason.WAITING_FOR_BUDGET, message)


def chosen(
    td: api.TurboDeployment, training: api.Training, answer: Plan, shape: ModelShape
) -> Choice | ConditionState:
    """Read from the planner's answer what a training runs on, or why on nothing."""
    choice = answer.choice
    # What vLLM serves and the trainer, which is Turbo's, does not read, or vLLM does not draft for.
    has_drafts = not td.spec.is_on_vllm or shape.architecture in EAGLE3_TARGETS
    if td.spec.draft_method == api.Method.EAGLE3 and not (has_drafts and describe_model_lack(shape) is None):
        able = "whose weights are not quantized in this format"
        if not has_drafts:  # then an unquantized copy does not help
            able = f"of another architecture than {shape.architecture}"
        message = (
            f"EAGLE-3 drafts are trained for a model {able}: name a trained draft in speculation.draftRef or "
            "draftModel, or leave training out."
        )
        return false(TrainingReason.NO_ACCELERATOR, message)
    if choice is not None:
        if training.max_cost is None or choice.predicted.cost_per_hour is not None:
            return choice
        message = (
            f"spec.speculation.training.maxCost is set and {choice.accelerator.name} has no "
            f"{choice.capacity_type} price: write spec.pricing.perAcceleratorHour on that TurboAccelerator, "
            "or leave maxCost out."
        )
        return false(TrainingReason.PRICE_UNKNOWN, message)
    if training.accelerator_name is not None and answer.reason == PlanReason.ACCELERATOR_NOT_FOUND:
        message = (
            f"There is no TurboAccelerator {training.accelerator_name}: create it, or correct "
            "spec.speculation.training.acceleratorName."
        )
        return false(TrainingReason.NO_ACCELERATOR, message)
    reason = {
        PlanReason.INSUFFICIENT_CAPACITY: TrainingReason.WAITING_FOR_ACCELERATOR,
        PlanReason.PRICE_UNKNOWN: TrainingReason.PRICE_UNKNOWN,
    }.get(PlanReason(answer.reason), TrainingReason.NO_ACCELERATOR)
    return false(reason, f"No accelerator can be had for a training. {answer.detail}")


def question(
    td: api.TurboDeployment, observed: Snapshot, shape: ModelShape, query: AcceleratorQuery
) -> PlannerInputs:
    """Ask for one replica: the planner knows of no trainings."""
    spec = within_budgets(td.spec, observed)
    allowed = spec.accelerators or api.Accelerators()
    names = (query.pinned,) if query.pinned else allowed.allowed
    wanted = {"allowed": names, "max_per_replica": None, "max_total": None}
    dtype = "Float32" if query.dtype == "float32" else "BFloat16"
    replica = spec.model_copy(
        update={
            "model": spec.model.model_copy(update={"dtype": dtype}),
            "engine": spec.engine.model_copy(update={"type": "Turbo"}),
            "speculation": api.Speculation(mode="Disabled"),
            "accelerators": allowed.model_copy(update=wanted),
            "replicas": 1,
            "scaling": api.Scaling(mode=api.ScalingMode.EXTERNAL),
            **dict.fromkeys(("parallelism", "workload", "targets", "cost")),
        }
    )
    # what a training holds in addition to the model that it serves itself
    learnt = _DEPTH * 2 * shape.hidden_size**2
    if spec.draft_method == api.Method.EAGLE3:
        learnt = head_parameters(api.Method.EAGLE3, shape, _DEPTH)
    used = _STATES + _LOGITS + _LEARNT_BYTES * learnt
    catalog = {
        name: replace(row, memory_bytes=max(0, row.memory_bytes - used))
        for name, row in observed.accelerators.items()
    }
    free = None if query.pinned else observed.free
    if free is not None:
        free = {
            name: replace(supply, unavailable_until=math.inf) if name in query.passed_over else supply
            for name, supply in free.items()
        }
    return PlannerInputs(replica, shape, catalog, free, None, {}, None)
