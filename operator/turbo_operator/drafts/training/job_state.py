"""The Job that trains: where it is, and how it has ended. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from turbo_operator.api import Training, TrainingReason, TrainingStatus, rfc3339
from turbo_operator.api.conditions import ConditionState
from turbo_operator.drafts.training.budget import LEAST_SECONDS, bought_seconds, ended, over_budget
from turbo_operator.drafts.training.step import FinishedDraft, TrainingDecision
from turbo_operator.snapshot import ChildView, TrainPod
from turbo_runtime.contract.endpoints import PERMANENT_ERROR
from turbo_runtime.contract.training import DraftManifest

MAX_MESSAGE = 1500  # characters of what a pod left
STARTING_SECONDS = 300.0  # after which a pod that a node has taken may lack what it mounts
_DEADLINE = "DeadlineExceeded"


def read_job_state(
    training: Training, job: ChildView, state: TrainingStatus, pods: Sequence[TrainPod], now: float
) -> TrainingDecision:
    """What the Job of the training is at, and what is to be done where it is over."""
    if job.complete:
        return _complete(job, state, pods, now)
    if not job.failed:
        left = bought_seconds(training, state, now)
        if left is not None and left <= 0:  # of another bound than its Job was made with
            return _kept(over_budget(training, state, now), job)
        return waits(job, state, pods, now)
    if job.reason == _DEADLINE:
        return _out_of_time(training, job, state, now)
    said = _last_words(pods) or job.message or "it gave no reason"
    message = (
        f"Training {state.number} failed: {_bounded(said)} Mend that, then change spec.speculation.training, "
        f"or switch enabled off and on, to train again; until then kubectl logs job/{job.name} says more."
    )
    return _kept(ended(state, TrainingReason.TRAINING_FAILED, message, now), job)


def waits(job: ChildView, state: TrainingStatus, pods: Sequence[TrainPod], now: float) -> TrainingDecision:
    """The Job is neither done nor over: it stays."""
    return TrainingDecision(_told(state, job, pods, now), state, keep=job.name)


def _complete(
    job: ChildView, state: TrainingStatus, pods: Sequence[TrainPod], now: float
) -> TrainingDecision:
    done = next((pod for pod in pods if pod.exit_code == 0), None)
    if done is None and any(pod.exit_code is None for pod in pods):  # its end is on its way here
        return waits(job, state, pods, now)
    if done is None:
        # what it told went with its pod: another Job finds all done, where it was done, and tells it again
        state = state.model_copy(update={"started": state.started or rfc3339(now)})
        message = f"Training {state.number} is done, and its pod was gone before it told: it is asked again."
        return TrainingDecision(ConditionState("False", TrainingReason.TRAINING, message), state)
    try:
        facts = DraftManifest.from_json(done.message or "")
    except ValueError as error:
        message = f"Pod {done.name} ended without the draft's facts: {error}."
        return _kept(ended(state, TrainingReason.TRAINING_FAILED, message, now), job)
    message = f"Training {state.number} is done: its TurboDraft is being made."
    told = ConditionState("False", TrainingReason.TRAINING, message)
    return TrainingDecision(told, state, keep=job.name, made=FinishedDraft(state.number, state.work, facts))


def _out_of_time(training: Training, job: ChildView, state: TrainingStatus, now: float) -> TrainingDecision:
    left = bought_seconds(training, state, now)
    if left is not None and left < LEAST_SECONDS:
        return _kept(over_budget(training, state, now), job)
    message = f"Training {state.number} goes on: the time of its Job is over, and money is left."
    return TrainingDecision(ConditionState("False", TrainingReason.TRAINING, message), state)


def _told(state: TrainingStatus, job: ChildView, pods: Sequence[TrainPod], now: float) -> ConditionState:
    head = f"Training {state.number}"
    there = [pod for pod in pods if pod.exit_code is None]
    alive = [pod for pod in there if not pod.terminating]
    if any(pod.runs for pod in alive):
        far = state.progress or "it starts"
        yet = f", about {state.left} left of this stage" if state.left else ""
        paid = f"; {Decimal(state.spent):.2f} $ until then" if state.spent and state.progress else ""
        told = f"{head} on {state.accelerator}: {far}{yet}{paid}."
        return ConditionState("False", TrainingReason.TRAINING, told)
    waiting = next((pod for pod in alive if pod.reason), None)
    if waiting is not None:
        said = _bounded(waiting.message or waiting.reason or "")
        unplaced = waiting.reason in ("Unschedulable", "SchedulingGated")
        reason = TrainingReason.WAITING_FOR_ACCELERATOR if unplaced else TrainingReason.TRAINING
        return ConditionState("False", reason, f"{head}: Pod {waiting.name} waits: {said}")
    if alive:
        return ConditionState("False", TrainingReason.TRAINING, f"{head}: {_starting(alive[0], now)}")
    if there:
        message = (
            f"{head}: Pod {there[0].name} is being removed, and another one follows once it has ended; on a "
            "node that is lost, once the Node object is deleted, or the pod by force."
        )
        return ConditionState("False", TrainingReason.TRAINING, message)
    if words := _last_words(pods):
        message = f"{head}: its pod ended ({_bounded(words)}) and another one follows after a pause."
        return ConditionState("False", TrainingReason.TRAINING, message)
    message = f"{head}: Job {job.name} has made no pod yet; kubectl describe job {job.name} says why."
    return ConditionState("False", TrainingReason.WAITING_FOR_ACCELERATOR, message)


def _starting(pod: TrainPod, now: float) -> str:
    """A volume that cannot be mounted is told in an event alone: a pod says no more than that it starts."""
    if pod.placed_since is None or now - pod.placed_since < STARTING_SECONDS:
        return f"Pod {pod.name} starts."
    return (
        f"Pod {pod.name} has been starting since {rfc3339(pod.placed_since)}: a claim or ConfigMap that it "
        f"mounts may be missing; kubectl describe pod {pod.name} says why. Once the spec is right another "
        "Job is made."
    )


def _last_words(pods: Sequence[TrainPod]) -> str | None:
    """What a pod said that ended badly: of an error that trying again cannot help before any other."""
    over = [pod for pod in pods if pod.exit_code not in (None, 0)]
    over.sort(key=lambda pod: (pod.exit_code != PERMANENT_ERROR, -(pod.ended or 0.0)))
    return (over[0].message or over[0].reason or f"exit code {over[0].exit_code}") if over else None


def _bounded(text: str) -> str:
    """On one line, with a full stop."""
    line = " ".join(text.split())
    line = line if len(line) <= MAX_MESSAGE else f"{line[: MAX_MESSAGE - 3]}..."
    return line if not line or line[-1] in ".!?" else f"{line}."


def _kept(step: TrainingDecision, job: ChildView) -> TrainingDecision:
    """The Job stays until the status says how it ended, so that nothing is lost on the way."""
    return TrainingDecision(step.told, step.state, keep=job.name)
