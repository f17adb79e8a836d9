"""The decision: whether a training is due, what the one that runs is at, and how it has ended. Pure.

    no draft for the model, or a gain below the bound for the window  ->  due  ->  Job  ->  TurboDraft

A training is one number, one folder and one TurboDraft, however many Jobs and pods it takes. One that ended
badly waits until the spec changes, so that nothing is paid twice for the same failure.
"""

from __future__ import annotations

from dataclasses import replace

from turbo_operator.api import DraftMethod, TrainingReason, TrainingStatus, TurboDeployment, epoch, rfc3339
from turbo_operator.api.conditions import ConditionState
from turbo_operator.drafts.training import job_state, names
from turbo_operator.drafts.training.next_job import Case, TrainingTarget, anew, due
from turbo_operator.drafts.training.progress import followed
from turbo_operator.drafts.training.step import TrainingDecision
from turbo_operator.plan import Plan
from turbo_operator.planner import OFF
from turbo_operator.snapshot import DraftView, Snapshot, identity


def decide(
    td: TurboDeployment, observed: Snapshot, plan: Plan | None, answer: Plan | None, now: float
) -> TrainingDecision:
    """One look. `answer` is the planner's to the question that the step before it `asks`, None at first."""
    training, old = td.spec.speculation.training, td.status.training
    name = names.job_name(td, old.number) if old is not None else ""
    job = next((each for each in observed.children if (each.kind, each.name) == ("Job", name)), None)
    pods = [pod for pod in observed.trainings if pod.job == name]
    state = followed(old, pods, now, job.ended if job is not None else None) if old is not None else None
    if training is None or not training.enabled or td.spec.suspend:
        if state is not None and state.result is not None:
            state = state.model_copy(update={"spec_hash": ""})  # switched on again, it is tried again
        if training is None:
            return TrainingDecision(state=state)
        off = "spec.suspend is true" if td.spec.suspend else "spec.speculation.training.enabled is false"
        message = f"{off}: nothing is trained, and drafts stay."
        return TrainingDecision(ConditionState("False", TrainingReason.TRAINING_DISABLED, message), state)
    choice = plan.served if plan is not None else None
    served = None
    if observed.model is not None and choice is not None and choice.method != OFF:
        served = TrainingTarget(observed.model, choice)
    if state is not None and state.result is None and _is_published(td, observed, state):
        state = state.model_copy(update={"result": TrainingReason.TRAINED, "ended": rfc3339(now)})
    it = Case(td, training, observed, answer, now, state)
    if job is not None and state is not None and state.result is None:
        if job.complete or job.failed or state.started is not None:
            return job_state.read_job_state(training, job, state, pods, now)
        waits = job_state.waits(job, state, pods, now)
        return waits if served is None else anew(it, served, waits, pods)
    step = _idle(it, served)
    if step.begin is None and step.state is not None and step.state.result == TrainingReason.TRAINING_FAILED:
        # with it stays what its pods have said
        return replace(step, keep=names.job_name(td, step.state.number))
    return step


def fitting(observed: Snapshot) -> list[DraftView]:
    """The drafts of the deployment that are for the model that is served, oldest first."""
    digest = observed.model.digest if observed.model is not None else None
    return [
        draft
        for draft in observed.drafts
        if draft.target_digest == digest and draft.method == DraftMethod.TURBO_HEADS
    ]


def _is_published(td: TurboDeployment, observed: Snapshot, state: TrainingStatus) -> bool:
    return any(draft.name == names.draft_name(td, state.number) for draft in observed.drafts)


def _idle(it: Case, served: TrainingTarget | None) -> TrainingDecision:
    """No Job is there that is not over: what is waited for, or the next one."""
    observed, state, training = it.observed, it.state, it.training
    if served is None:
        message = "A draft is trained once the model is known and a plan that drafts is feasible."
        return TrainingDecision(ConditionState("Unknown", TrainingReason.WAITING_FOR_PLAN, message), state)
    drafts = fitting(observed)
    since = _below_since(it, drafts)
    if state is None and since is not None:  # somebody else's candidate, whose gain is to be remembered
        state = TrainingStatus(number=0, work="", spec_hash="", result=TrainingReason.TRAINED)
    if state is not None:
        state = state.model_copy(update={"below_since": None if since is None else rfc3339(since)})
    it = replace(it, state=state)
    unfinished = state is not None and state.result is None
    measured = observed.gain is not None  # where nobody asks, nothing is paid for
    again = measured and since is not None and it.now - since >= training.trigger.window_seconds
    if drafts and not again and not unfinished:
        return TrainingDecision(_trained(it, drafts[-1], since), state)
    if (blocked := _blocked(it, served, drafts)) is not None:
        return TrainingDecision(blocked, state)
    if training.prompts.captured is not None and not drafts and not unfinished:
        captured = sum(pod.load.load.captured or 0 for pod in observed.pods if pod.load)
        wanted = training.trigger.min_prompts
        if captured < wanted:
            message = (
                f"{captured} prompts were captured by the pods that run, and "
                f"spec.speculation.training.trigger.minPrompts asks for {wanted}: wait, or ask for less."
            )
            return TrainingDecision(
                ConditionState("False", TrainingReason.WAITING_FOR_PROMPTS, message), state
            )
    return due(it, served)


def _below_since(it: Case, drafts: list[DraftView]) -> float | None:
    """Since when the gain is below the bound, in seconds since the epoch; a new draft has its own time, which
    begins once it was tried: until then another one would only take its place.
    """
    bound, gain = it.training.trigger.gain_below, it.observed.gain
    if bound is None or not drafts or not _was_tried(it.td, drafts[-1]):
        return None
    if gain is not None and gain >= bound:
        return None
    since = epoch(it.state.below_since) if it.state and it.state.below_since else None
    if since is not None and since < drafts[-1].created:
        since = None
    return it.now if since is None and gain is not None else since


def _was_tried(td: TurboDeployment, draft: DraftView) -> bool:
    """Whether it was promoted or turned down."""
    known = (*td.status.turned_down, td.status.draft)
    return identity(draft) in {identity(each) for each in known if each is not None}


def _trained(it: Case, draft: DraftView, since: float | None) -> ConditionState:
    message = f"TurboDraft {draft.name} was trained for the model that is served."
    if since is not None:
        at = rfc3339(since + it.training.trigger.window_seconds)
        message += (
            f" The measured gain is below {it.training.trigger.gain_below} since {rfc3339(since)}: "
            f"if it stays there, another one is trained from {at} on."
        )
    return ConditionState("True", TrainingReason.TRAINED, message)


def _blocked(it: Case, served: TrainingTarget, drafts: list[DraftView]) -> ConditionState | None:
    """What ended badly and waits for a change of the spec, or of captured prompts for a window to pass."""
    state, training = it.state, it.training
    if state is None or state.spec_hash != names.spec_hash(training):
        return None
    if state.result == TrainingReason.TRAINED and not drafts and state.target_digest == served.model.digest:
        return _of_no_use(it, state, served.model.digest)
    if state.result not in (TrainingReason.OVER_BUDGET, TrainingReason.TRAINING_FAILED):
        return None
    retried = state.result == TrainingReason.TRAINING_FAILED and training.prompts.captured is not None
    since = epoch(state.ended) if retried and state.ended else None
    if since is not None and it.now - since >= training.trigger.window_seconds:  # traffic has brought others
        return None
    return ConditionState("False", TrainingReason(state.result), state.message or "It left no message.")


def _of_no_use(it: Case, state: TrainingStatus, digest: str) -> ConditionState:
    """A draft was made for this very model, and none is there that fits: the next would fare no better."""
    name, own = names.draft_name(it.td, state.number), it.td.metadata.name
    made = next((draft for draft in it.observed.drafts if draft.name == name), None)
    if made is not None:
        message = (
            f"TurboDraft {name} was trained for the model {made.target_digest}, and {digest} is served. "
            f"Where another one lies under its path now, delete ConfigMap {own}-model: it is inspected anew."
        )
    else:
        message = (
            f"TurboDraft {name}, which was trained for the model that is served, is gone, cannot be read, or "
            f"has lost its spec.deployment: apply it again, with spec.deployment: {own}."
        )
    message += " To train another one change spec.speculation.training, or switch enabled off and on."
    return ConditionState("False", TrainingReason.TRAINING_FAILED, message)
