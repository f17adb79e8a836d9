"""The Job that trains: where it is, and how it has ended. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal

from turbo_operator.api import Training, TrainingReason, TrainingStatus, rfc3339
from turbo_operator.drafts.training.progress import MIN_SECONDS, bought_seconds, ended, over_budget
from turbo_operator.drafts.training.step import FinishedDraft, TrainingDecision, unmet_condition
from turbo_operator.snapshot import ChildView, TrainPod
from turbo_runtime.contract.endpoints import PERMANENT_ERROR
from turbo_runtime.contract.training import DraftManifest

MAX_MESSAGE = 1500  # characters of what a pod left
STARTING_SECONDS = 300.0  # after which a pod that a node has taken may lack what it mounts
_DEADLINE = "DeadlineExceeded"


def read_job_state(
    training: Training, job: ChildView, state: TrainingStatus, pods: Sequence[TrainPod], now: float
) -> TrainingDecision:
    """Read what the Job of the training is at, and decide what is to be done where it is over.

    A Job that has failed stays until the status says how, so that nothing is lost on the way.
    """
    if job.complete:
        return _complete(job, state, pods, now)
    bought = bought_seconds(training, state, now)
    if not job.failed:
        if bought is not None and bought <= 0:  # of another bound than its Job was made with
            return replace(over_budget(training, state, now), kept_job=job.name)
        return wait(job, state, pods, now)
    if job.reason == _DEADLINE:
        if bought is not None and bought < MIN_SECONDS:
            return replace(over_budget(training, state, now), kept_job=job.name)
        message = f"Training {state.number} goes on: the time of its Job is over, and money is left."
        return TrainingDecision(unmet_condition(TrainingReason.TRAINING, message), state)
    reason = _last_words(pods) or job.message or "it gave no reason"
    message = (
        f"Training {state.number} failed: {_bounded(reason)} Mend that, then change "
        "spec.speculation.training, or switch enabled off and on, to train again; until then kubectl logs "
        f"job/{job.name} says more."
    )
    return replace(ended(state, TrainingReason.TRAINING_FAILED, message, now), kept_job=job.name)


def wait(job: ChildView, state: TrainingStatus, pods: Sequence[TrainPod], now: float) -> TrainingDecision:
    """Wait for a Job that is neither done nor over: it stays."""
    reason, message = _describe(state, job, pods, now)
    condition = unmet_condition(reason, f"Training {state.number}{message}")
    return TrainingDecision(condition, state, kept_job=job.name)


def _complete(
    job: ChildView, state: TrainingStatus, pods: Sequence[TrainPod], now: float
) -> TrainingDecision:
    done = next((pod for pod in pods if pod.exit_code == 0), None)
    if done is None and any(pod.exit_code is None for pod in pods):  # its end is on its way here
        return wait(job, state, pods, now)
    if done is None:
        # what it told went with its pod: another Job finds all done, where it was done, and tells it again
        state = state.model_copy(update={"started": state.started or rfc3339(now)})
        message = f"Training {state.number} is done, and its pod was gone before it told: it is asked again."
        return TrainingDecision(unmet_condition(TrainingReason.TRAINING, message), state)
    try:
        facts = DraftManifest.from_json(done.message or "")
    except ValueError as error:
        message = f"Pod {done.name} ended without the draft's facts: {error}."
        return replace(ended(state, TrainingReason.TRAINING_FAILED, message, now), kept_job=job.name)
    condition = unmet_condition(
        TrainingReason.TRAINING, f"Training {state.number} is done: its TurboDraft is being made."
    )
    draft = FinishedDraft(state.number, state.work, facts)
    return TrainingDecision(condition, state, kept_job=job.name, finished=draft)


def _describe(
    state: TrainingStatus, job: ChildView, pods: Sequence[TrainPod], now: float
) -> tuple[TrainingReason, str]:
    """Say where the Job is: the reason of the condition, and what follows the training's number."""
    present = [pod for pod in pods if pod.exit_code is None]
    alive = [pod for pod in present if not pod.terminating]
    if any(pod.runs for pod in alive):
        message = f" on {state.accelerator}: {state.progress or 'it starts'}"
        if state.left:
            message += f", about {state.left} left of this stage"
        if state.spent and state.progress:
            message += f"; {Decimal(state.spent):.2f} $ until then"
        return TrainingReason.TRAINING, f"{message}."
    waiting = next((pod for pod in alive if pod.reason), None)
    if waiting is not None:
        is_unplaced = waiting.reason in ("Unschedulable", "SchedulingGated")
        reason = TrainingReason.WAITING_FOR_ACCELERATOR if is_unplaced else TrainingReason.TRAINING
        return reason, f": Pod {waiting.name} waits: {_bounded(waiting.message or waiting.reason or '')}"
    if alive:
        pod = alive[0]
        if pod.placed_since is None or now - pod.placed_since < STARTING_SECONDS:
            return TrainingReason.TRAINING, f": Pod {pod.name} starts."
        # A volume that cannot be mounted is told in an event alone: a pod only says that it starts.
        return TrainingReason.TRAINING, (
            f": Pod {pod.name} has been starting since {rfc3339(pod.placed_since)}: a claim or ConfigMap "
            f"that it mounts may be missing; kubectl describe pod {pod.name} says why. Once the spec is "
            "right another Job is made."
        )
    if present:
        return TrainingReason.TRAINING, (
            f": Pod {present[0].name} is being removed, and another one follows once it has ended; on a "
            "node that is lost, once the Node object is deleted, or the pod by force."
        )
    if words := _last_words(pods):
        return TrainingReason.TRAINING, (
            f": its pod ended ({_bounded(words)}) and another one follows after a pause."
        )
    return TrainingReason.WAITING_FOR_ACCELERATOR, (
        f": Job {job.name} has made no pod yet; kubectl describe job {job.name} says why."
    )


def _last_words(pods: Sequence[TrainPod]) -> str | None:
    """Return what a pod said that ended badly: first of all of an error that trying again cannot help."""
    failed = [pod for pod in pods if pod.exit_code not in (None, 0)]
    failed.sort(key=lambda pod: (pod.exit_code != PERMANENT_ERROR, -(pod.ended or 0.0)))
    return (failed[0].message or failed[0].reason or f"exit code {failed[0].exit_code}") if failed else None


def _bounded(text: str) -> str:
    """Cut a text, and put it on one line, with a full stop."""
    line = " ".join(text.split())
    line = line if len(line) <= MAX_MESSAGE else f"{line[: MAX_MESSAGE - 3]}..."
    return line if not line or line[-1] in ".!?" else f"{line}."
