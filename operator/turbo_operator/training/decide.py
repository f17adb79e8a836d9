"""The decision: whether a training is due, what the one that runs is at, and how it has ended. Pure.

    no draft for the model, or a gain below the bound for the window  ->  due  ->  Job  ->  TurboDraft

A training is one number, one folder and one TurboDraft, however many Jobs and pods it takes. One that ended
badly waits until the spec changes, so that nothing is paid twice for the same failure.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from turbo_operator.api import (
    DraftMethod,
    PlanReason,
    Training,
    TrainingReason,
    TrainingStatus,
    TurboDeployment,
    epoch,
    rfc3339,
)
from turbo_operator.observed import DraftView, Observed
from turbo_operator.planned import Choice, Plan
from turbo_operator.planner import OFF, money
from turbo_operator.training import names, running
from turbo_operator.training.progress import followed
from turbo_operator.training.question import planned_on
from turbo_operator.training.spending import LEAST_SECONDS, bought_seconds, over_budget
from turbo_operator.training.step import Begin, Step, Told


def decide(
    td: TurboDeployment, observed: Observed, plan: Plan | None, answer: Plan | None, now: float
) -> Step:
    """One look. `answer` is the planner's to the question that the step before it `asks`, None at first."""
    training, old = td.spec.speculation.training, td.status.training
    if training is None or not training.enabled or td.spec.suspend:
        state = None if old is None else followed(old, (), now)
        if training is None:
            return Step(state=state)
        if state is not None and state.result == TrainingReason.TRAINING_FAILED:
            state = state.model_copy(update={"spec_hash": ""})  # switched on again, it is tried again
        off = "spec.suspend is true" if td.spec.suspend else "spec.speculation.training.enabled is false"
        message = f"{off}: nothing is trained, and drafts stay."
        return Step(Told("False", TrainingReason.TRAINING_DISABLED, message), state)
    jobs = [child for child in observed.children if child.kind == "Job"]
    job = max(
        (child for child in jobs if names.is_training_job(td, child.name)),
        key=lambda child: names.largest(f"{td.metadata.name}-train-", (child.name,)),
        default=None,
    )
    if job is not None:
        step = running.look(td, training, job, observed, now)
        if step is not None:
            return step
    return _idle(_Case(td, training, observed, plan, answer, now, _settled(td, observed, old, now)))


@dataclass(frozen=True, slots=True)
class _Case:
    td: TurboDeployment
    training: Training
    observed: Observed
    plan: Plan | None
    answer: Plan | None
    now: float
    state: TrainingStatus | None


def _settled(
    td: TurboDeployment, observed: Observed, old: TrainingStatus | None, now: float
) -> TrainingStatus | None:
    """What the status keeps of a training of which no Job is there: it is done where its draft is."""
    if old is None or old.result is not None:
        return old
    state = followed(old, (), now)
    if any(draft.name == names.draft_name(td, old.number) for draft in observed.drafts):
        return state.model_copy(update={"result": TrainingReason.TRAINED, "ended": rfc3339(now)})
    return state


def _idle(it: _Case) -> Step:
    """No Job is there: what it waits for, or the next one."""
    observed, state, training = it.observed, it.state, it.training
    serving = it.plan.choice if it.plan is not None else None
    if observed.model is None or serving is None or serving.method == OFF:
        message = "A draft is trained once the model is known and a plan that drafts is feasible."
        return Step(Told("Unknown", TrainingReason.WAITING_FOR_PLAN, message), state)
    fitting = [
        draft
        for draft in observed.drafts
        if draft.target_digest == observed.model.digest and draft.method == DraftMethod.TURBO_HEADS
    ]
    since = _below_since(it, fitting)
    if state is None and since is not None:  # somebody else's candidate, whose gain is to be remembered
        state = TrainingStatus(number=0, work="", spec_hash="", result=TrainingReason.TRAINED)
    if state is not None:
        state = state.model_copy(update={"below_since": None if since is None else rfc3339(since)})
    it = replace(it, state=state)
    unfinished = state is not None and state.result is None
    measured = observed.gain is not None  # where nobody asks, nothing is paid for
    again = measured and since is not None and it.now - since >= training.trigger.window_seconds
    if fitting and not again and not unfinished:
        return Step(_trained(it, fitting[-1], since), state)
    if (blocked := _blocked(it)) is not None:
        return Step(blocked, state)
    if training.prompts.captured is not None and not fitting and not unfinished:
        captured = sum(pod.load.load.captured or 0 for pod in observed.pods if pod.load)
        wanted = training.trigger.min_prompts
        if captured < wanted:
            message = (
                f"{captured} prompts were captured by the pods that run, and "
                f"spec.speculation.training.trigger.minPrompts asks for {wanted}: wait, or ask for less."
            )
            return Step(Told("False", TrainingReason.WAITING_FOR_PROMPTS, message), state)
    return _due(it, observed.model.digest, serving)


def _due(it: _Case, model_digest: str, serving: Choice) -> Step:
    """The next Job, on what the planner chooses, as far as the money goes."""
    td, training, old = it.td, it.training, it.state
    work = names.work_hash(td, training, model_digest or "")
    resumes = (
        old is not None
        and old.result in (None, TrainingReason.OVER_BUDGET)
        and old.work == work
        and (old.accelerator is None or old.accelerator in it.observed.accelerators)
    )
    if old is None or not resumes:
        taken = names.largest(f"{td.metadata.name}-draft-", (draft.name for draft in it.observed.drafts))
        number = 1 + max(taken, old.number if old else 0)
        below = old.below_since if old else None
        new = TrainingStatus(number=number, work=work, spec_hash="", below_since=below)
    else:
        new = old.model_copy(update={"result": None, "message": None, "ended": None})
    new = new.model_copy(update={"spec_hash": names.spec_hash(training)})
    # one that goes on does so where it was begun: another machine's threads and arithmetic make another draft
    pinned = (new.accelerator if resumes else training.accelerator) or training.accelerator or ""
    if it.answer is None:
        message = "A training is due, and the planner looks for its accelerator."
        return Step(Told("Unknown", TrainingReason.WAITING_FOR_ACCELERATOR, message), old, asks=pinned)
    found = chosen(training, it.answer)
    if isinstance(found, Told):
        return Step(found, old)
    choice = planned_on(found, it.observed)
    price = choice.predicted.cost_per_hour
    name = choice.accelerator.name
    new = new.model_copy(
        update={
            "accelerator": name,
            "cost_per_hour": None if price is None else str(price),
            "spent": None if price is None else (new.spent or "0"),
        }
    )
    deadline = bought_seconds(training, new, it.now)
    if deadline is not None and deadline < LEAST_SECONDS:
        return over_budget(training, new, it.now)
    began = "goes on" if resumes else "begins"
    message = f"Training {new.number} {began} on {name}{'' if price is None else f' for {money(price)} $/h'}."
    begin = Begin(new.number, choice, serving, deadline)
    return Step(Told("False", TrainingReason.TRAINING, message), new, begin=begin)


def _below_since(it: _Case, fitting: list[DraftView]) -> float | None:
    """Since when the gain is below the bound, in seconds since the epoch; a new draft has its own time."""
    bound, gain = it.training.trigger.gain_below, it.observed.gain
    if bound is None or not fitting or (gain is not None and gain >= bound):
        return None
    since = epoch(it.state.below_since) if it.state and it.state.below_since else None
    if since is not None and since < fitting[-1].created:
        since = None
    return it.now if since is None and gain is not None else since


def _trained(it: _Case, draft: DraftView, since: float | None) -> Told:
    message = f"TurboDraft {draft.name} was trained for the model that is served."
    if since is not None:
        due = rfc3339(since + it.training.trigger.window_seconds)
        message += (
            f" The measured gain is below {it.training.trigger.gain_below} since {rfc3339(since)}: "
            f"if it stays there, another one is trained from {due} on."
        )
    return Told("True", TrainingReason.TRAINED, message)


def _blocked(it: _Case) -> Told | None:
    """What ended badly and waits for a change of the spec, or of captured prompts for a window to pass."""
    state, training = it.state, it.training
    if state is None or state.result not in (TrainingReason.OVER_BUDGET, TrainingReason.TRAINING_FAILED):
        return None
    if state.spec_hash != names.spec_hash(training):
        return None
    retried = state.result == TrainingReason.TRAINING_FAILED and training.prompts.captured is not None
    since = epoch(state.ended) if retried and state.ended else None
    if since is not None and it.now - since >= training.trigger.window_seconds:  # traffic has brought others
        return None
    return Told("False", TrainingReason(state.result), state.message or "It left no message.")


def chosen(training: Training, answer: Plan) -> Choice | Told:
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
        return Told("False", TrainingReason.PRICE_UNKNOWN, message)
    reason = {
        PlanReason.NO_CAPACITY: TrainingReason.WAITING_FOR_ACCELERATOR,
        PlanReason.PRICE_UNKNOWN: TrainingReason.PRICE_UNKNOWN,
    }.get(PlanReason(answer.reason), TrainingReason.NO_ACCELERATOR)
    return Told("False", reason, f"No accelerator can be had for a training. {answer.detail}")
