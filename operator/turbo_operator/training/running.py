"""The Job that trains: where it is, and how it has ended. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from turbo_operator.api import (
    Training,
    TrainingReason,
    TrainingStatus,
    TurboDeployment,
)
from turbo_operator.observed import ChildView, Observed, TrainPod
from turbo_operator.training import names
from turbo_operator.training.progress import followed
from turbo_operator.training.spending import LEAST_SECONDS, bought_seconds, ended, over_budget
from turbo_operator.training.step import Made, Step, Told
from turbo_runtime.contract import PERMANENT_ERROR
from turbo_runtime.training_contract import DraftFacts

MAX_MESSAGE = 1500  # characters of what a pod left
_DEADLINE = "DeadlineExceeded"


def look(
    td: TurboDeployment, training: Training, job: ChildView, observed: Observed, now: float
) -> Step | None:
    """What the Job is at; None where it is of no use any more: it goes."""
    number = names.largest(f"{td.metadata.name}-train-", (job.name,))
    pods = [pod for pod in observed.trainings if pod.job == job.name]
    if td.status.training is not None and td.status.training.number > number:
        return None  # one that is over: the next is written down, and its Job is yet to be made
    state = _state(td, training, number, observed, pods)
    if state.result is not None or any(d.name == names.draft_name(td, number) for d in observed.drafts):
        return None
    state = followed(state, pods, now)
    if job.complete:
        return _complete(job, state, pods, now)
    if not job.failed:
        return Step(_told(state, job, pods), state, keep=job.name)
    if job.reason == _DEADLINE:
        return _out_of_time(training, job, state, now)
    left = _last_words(pods) or job.message or "it gave no reason"
    message = (
        f"Training {number} failed: {_bounded(left)} Mend that, then change spec.speculation.training, or "
        f"switch enabled off and on, to train again; the Job was {job.name}."
    )
    return _kept(ended(state, TrainingReason.TRAINING_FAILED, message, now), job)


def _state(
    td: TurboDeployment, training: Training, number: int, observed: Observed, pods: Sequence[TrainPod]
) -> TrainingStatus:
    """As the status has it; anew where it was not written after the Job was made."""
    old = td.status.training
    if old is not None and old.number == number:
        return old
    digest = observed.model.digest if observed.model else None
    return TrainingStatus(
        number=number,
        work=names.work_hash(td, training, digest or ""),
        spec_hash=names.spec_hash(training),
        accelerator=next((pod.accelerator for pod in pods if pod.accelerator), None),
    )


def _complete(job: ChildView, state: TrainingStatus, pods: Sequence[TrainPod], now: float) -> Step:
    done = next((pod for pod in pods if pod.exit_code == 0), None)
    if done is None and any(pod.exit_code is None for pod in pods):  # its end is on its way here
        return Step(_told(state, job, pods), state, keep=job.name)
    if done is None:
        # what it told went with its pod: another Job finds all done, and tells it again
        message = f"Training {state.number} is done, and its pod was gone before it told: it is asked again."
        return Step(Told("False", TrainingReason.TRAINING, message), state)
    try:
        facts = DraftFacts.from_json(done.message or "")
    except ValueError as error:
        message = f"Pod {done.name} ended without the draft's facts: {error}."
        return _kept(ended(state, TrainingReason.TRAINING_FAILED, message, now), job)
    message = f"Training {state.number} is done: its TurboDraft is being made."
    told = Told("False", TrainingReason.TRAINING, message)
    return Step(told, state, keep=job.name, made=Made(state.number, facts))


def _out_of_time(training: Training, job: ChildView, state: TrainingStatus, now: float) -> Step:
    left = bought_seconds(training, state, now)
    if left is not None and left < LEAST_SECONDS:
        return _kept(over_budget(training, state, now), job)
    message = f"Training {state.number} has waited within its time, and goes on with the money that is left."
    return Step(Told("False", TrainingReason.TRAINING, message), state)


def _told(state: TrainingStatus, job: ChildView, pods: Sequence[TrainPod]) -> Told:
    head = f"Training {state.number}"
    alive = [pod for pod in pods if pod.exit_code is None and not pod.terminating]
    if any(pod.runs for pod in alive):
        far = state.progress or "it starts"
        yet = f", about {state.left} left of this stage" if state.left else ""
        paid = f"; {Decimal(state.spent):.2f} $ until then" if state.spent and state.progress else ""
        told = f"{head} on {state.accelerator}: {far}{yet}{paid}."
        return Told("False", TrainingReason.TRAINING, told)
    waiting = next((pod for pod in alive if pod.reason), None)
    if waiting is not None:
        said = _bounded(waiting.message or waiting.reason or "")
        unplaced = waiting.reason in ("Unschedulable", "SchedulingGated")
        reason = TrainingReason.WAITING_FOR_ACCELERATOR if unplaced else TrainingReason.TRAINING
        return Told("False", reason, f"{head}: Pod {waiting.name} waits: {said}")
    if alive:
        return Told("False", TrainingReason.TRAINING, f"{head}: Pod {alive[0].name} starts.")
    if words := _last_words(pods):
        message = f"{head}: its pod ended ({_bounded(words)}) and another one follows after a pause."
        return Told("False", TrainingReason.TRAINING, message)
    message = f"{head}: Job {job.name} has made no pod yet; kubectl describe job {job.name} says why."
    return Told("False", TrainingReason.WAITING_FOR_ACCELERATOR, message)


def _last_words(pods: Sequence[TrainPod]) -> str | None:
    """What a pod said that ended badly: of an error that trying again cannot help before any other."""
    ended = [pod for pod in pods if pod.exit_code not in (None, 0)]
    ended.sort(key=lambda pod: (pod.exit_code != PERMANENT_ERROR, -(pod.ended or 0.0)))
    return (ended[0].message or ended[0].reason or f"exit code {ended[0].exit_code}") if ended else None


def _bounded(text: str) -> str:
    """On one line, with a full stop."""
    line = " ".join(text.split())
    line = line if len(line) <= MAX_MESSAGE else f"{line[: MAX_MESSAGE - 3]}..."
    return line if not line or line[-1] in ".!?" else f"{line}."


def _kept(step: Step, job: ChildView) -> Step:
    """The Job stays until the status says how it ended, so that nothing is lost on the way."""
    return Step(step.told, step.state, keep=job.name)
