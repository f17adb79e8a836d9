"""Training of drafts: whether one is due, what the one that runs is at, and how it has ended. Pure.

    no draft for the model, or a speedup below the bound for the window  ->  due  ->  Job  ->  TurboDraft

A training is one number, one folder and one TurboDraft, however many Jobs and pods it takes. One that ended
badly waits until the spec changes, so that nothing is paid twice for the same failure. Everything is read
from what the cluster holds (the status, the Job and its pods, TurboDrafts): it is the same after a restart.
"""

from __future__ import annotations

import math
from dataclasses import replace

from turbo_operator.api import TrainingReason, TrainingStatus, TurboDeployment, epoch, rfc3339
from turbo_operator.api.condition_state import ConditionState, false, true, unknown
from turbo_operator.drafts.training import job_state, manifests
from turbo_operator.drafts.training.job_state import NO_TRAINING as NO_TRAINING
from turbo_operator.drafts.training.job_state import AcceleratorQuery as AcceleratorQuery
from turbo_operator.drafts.training.job_state import JobRequest as JobRequest
from turbo_operator.drafts.training.job_state import TrainingDecision as TrainingDecision
from turbo_operator.drafts.training.job_state import format_progress as format_progress
from turbo_operator.drafts.training.next_job import TrainingInputs, replan, start_or_resume
from turbo_operator.drafts.training.next_job import chosen as chosen
from turbo_operator.drafts.training.next_job import question as question
from turbo_operator.plan import Plan
from turbo_operator.planner import OFF
from turbo_operator.snapshot import DraftView, Snapshot, identity


def decide(
    td: TurboDeployment, observed: Snapshot, plan: Plan | None, answer: Plan | None, now: float
) -> TrainingDecision:
    """Decide once. `answer` is the planner's to what the step before it `query`, None at first."""
    training, state = td.spec.speculation.training, td.status.training
    name = manifests.job_name(td, state.number) if state is not None else ""
    jobs = (child for child in observed.children if (child.kind, child.name) == ("Job", name))
    job = next(jobs, None)
    pods = [pod for pod in observed.trainings if pod.job == name]
    if state is not None:
        state = job_state.update_state(state, pods, now, job.ended if job is not None else None)
    if training is None or training.suspend or td.spec.suspend:
        if state is not None and state.result is not None:
            state = state.model_copy(update={"spec_hash": ""})  # switched on again, it is tried again
        if training is None:
            return TrainingDecision(state=state)
        off = "spec.suspend is true" if td.spec.suspend else "spec.speculation.training.suspend is true"
        message = f"{off}: nothing is trained, and drafts stay."
        return TrainingDecision(false(TrainingReason.SUSPENDED, message), state)
    if state is not None and state.result is None:
        draft_name = manifests.draft_name(td, state.number)
        if any(draft.name == draft_name for draft in observed.drafts):  # it is published
            update = {"result": TrainingReason.TRAINED, "completion_time": rfc3339(now)}
            state = state.model_copy(update=update)
    serving, inputs = plan.served if plan is not None else None, None
    # On vLLM pods answer without drafts until there is the first one.
    drafts = serving is not None and (serving.method != OFF or td.spec.is_on_vllm)
    if observed.model is not None and serving is not None and drafts:
        model = observed.model
        inputs = TrainingInputs(
            td, training, observed, model.digest, model.shape, serving, answer, now, state
        )
    if job is not None and state is not None and state.result is None:
        if job.complete or job.failed or state.start_time is not None:
            return job_state.read_job_state(training, job, state, pods, now)
        waiting = job_state.wait(job, state, pods, now)
        return waiting if inputs is None else replan(inputs, waiting, pods)
    if inputs is None:
        message = "A draft is trained once the model is known and a plan that drafts is feasible."
        step = TrainingDecision(unknown(TrainingReason.WAITING_FOR_PLAN, message), state)
    else:
        step = _decide_without_job(inputs)
    state = step.state
    if step.job_request is None and state is not None and state.result == TrainingReason.TRAINING_FAILED:
        # with it stays what its pods have said
        return replace(step, kept_job=manifests.job_name(td, state.number))
    return step


def fitting(td: TurboDeployment, observed: Snapshot) -> list[DraftView]:
    """Return the drafts of the deployment that are for its engine and the model that is served, oldest
    first.
    """
    wanted = td.spec.draft_method, observed.model.digest if observed.model is not None else None
    return [draft for draft in observed.drafts if (draft.method, draft.target_digest) == wanted]


def _decide_without_job(inputs: TrainingInputs) -> TrainingDecision:
    """Decide where every Job is over: what is waited for, or the next one."""
    observed, state, training = inputs.observed, inputs.state, inputs.training
    drafts = fitting(inputs.td, observed)
    since = _below_since(inputs, drafts)
    if state is None and since is not None:  # somebody else's candidate, whose speedup is to be remembered
        state = TrainingStatus(number=0, input_hash="", spec_hash="", result=TrainingReason.TRAINED)
    if state is not None:
        state = state.model_copy(update={"below_threshold_time": None if since is None else rfc3339(since)})
    inputs = replace(inputs, state=state)
    unfinished = state is not None and state.result is None
    is_measured = observed.speedup is not None  # without requests, nothing is paid for
    again = is_measured and since is not None and inputs.now - since >= training.trigger.window.seconds
    if drafts and not again and not unfinished:
        message = f"TurboDraft {drafts[-1].name} was trained for the model that is served."
        if since is not None:
            due = rfc3339(since + training.trigger.window.seconds)
            message += (
                f" The measured speedup is below {training.trigger.speedup_below} since {rfc3339(since)}: if "
                f"it stays there, another one is trained from {due} on."
            )
        return TrainingDecision(true(TrainingReason.TRAINED, message), state)
    if (blocked := _blocked(inputs, drafts)) is not None:
        return TrainingDecision(blocked, state)
    if training.prompts.type == "Captured" and not drafts and not unfinished:
        captured = sum(pod.load.load.captured or 0 for pod in observed.pods if pod.load)
        if captured < training.trigger.min_prompts:
            message = (
                f"{captured} prompts were captured by the pods that run, and spec.speculation.training."
                f"trigger.minPrompts asks for {training.trigger.min_prompts}: wait, or ask for less."
            )
            return TrainingDecision(false(TrainingReason.WAITING_FOR_PROMPTS, message), state)
    answers = any(pod.is_serving and pod.ready for pod in observed.pods)
    if inputs.td.spec.is_on_vllm and not answers:
        message = "A draft for vLLM learns from the answers of the pods that serve, and none is ready."
        return TrainingDecision(false(TrainingReason.WAITING_FOR_PODS, message), state)
    step = start_or_resume(inputs)
    ending = next((pod for pod in observed.trainings if pod.exit_code is None), None)
    if step.job_request is not None and ending is not None:
        message = f"Pod {ending.name} of an earlier Job has yet to end, and holds its accelerator till then."
        return TrainingDecision(false(TrainingReason.WAITING_FOR_ACCELERATOR, message), state)
    return step


def _below_since(inputs: TrainingInputs, drafts: list[DraftView]) -> float | None:
    """Return since when the speedup is below the bound, in seconds since the epoch. A new draft has its own
    time, which begins once it was promoted or rejected: until then another one would only take its place.
    """
    bound, speedup, status = inputs.training.trigger.speedup_below, inputs.observed.speedup, inputs.td.status
    known = {identity(draft) for draft in (*status.rejected_drafts, status.draft) if draft is not None}
    if bound is None or not drafts or identity(drafts[-1]) not in known:
        return None
    if speedup is not None and speedup >= bound:
        return None
    since = (
        epoch(inputs.state.below_threshold_time)
        if inputs.state and inputs.state.below_threshold_time
        else None
    )
    if since is not None and since < drafts[-1].created:
        since = None
    return inputs.now if since is None and speedup is not None else since


def _blocked(inputs: TrainingInputs, drafts: list[DraftView]) -> ConditionState | None:
    """Say what ended badly and waits for a change of the spec, or for new captured prompts."""
    state, training = inputs.state, inputs.training
    if state is None or state.spec_hash != manifests.spec_hash(training):
        return None
    if state.result == TrainingReason.TRAINED and not drafts and state.target_digest == inputs.digest:
        return _useless(inputs, state)
    if state.result not in (TrainingReason.BUDGET_EXCEEDED, TrainingReason.TRAINING_FAILED):
        return None
    is_captured = training.prompts.type == "Captured"
    is_retried = is_captured and state.result == TrainingReason.TRAINING_FAILED
    ended = epoch(state.completion_time) if is_retried and state.completion_time else math.inf
    if inputs.now - ended >= training.trigger.window.seconds:
        return None  # traffic has brought others
    return false(TrainingReason(state.result), state.message or "It left no message.")


def _useless(inputs: TrainingInputs, state: TrainingStatus) -> ConditionState:
    """Say that a draft was made for this very model, and none fits: the next would fare no better."""
    name, own = manifests.draft_name(inputs.td, state.number), inputs.td.metadata.name
    draft = next((draft for draft in inputs.observed.drafts if draft.name == name), None)
    if draft is not None:
        message = (
            f"TurboDraft {name} was trained for the model {draft.target_digest}, and {inputs.digest} is "
            "served. Where another one lies under its path now, delete ConfigMap "
            f"{own}-model: it is inspected anew."
        )
    else:
        message = (
            f"TurboDraft {name}, which was trained for the model that is served, is gone, cannot be read, or "
            f"has lost its spec.deploymentName: apply it again, with spec.deploymentName: {own}."
        )
    message += " To train another one change spec.speculation.training, or switch suspend on and off."
    return false(TrainingReason.TRAINING_FAILED, message)
