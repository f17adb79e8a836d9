"""One look at a training: how far its Job is, what its pods' time has cost, how it has ended. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

from turbo_operator.api import Training, TrainingReason, TrainingStatus, epoch, rfc3339
from turbo_operator.api.condition_state import ConditionState, bounded, false
from turbo_operator.plan import Choice
from turbo_operator.snapshot import ChildView, TrainPod
from turbo_runtime.contract.documents import DraftManifest, JobProgress
from turbo_runtime.contract.endpoints import PERMANENT_ERROR

COUNTED_SECONDS = 600.0  # between two counts of what is paid, at most, while somebody looks
MIN_SECONDS = 60  # that a Job must have: what is left of the money buys no less
_CENTS = Decimal("0.000001")  # of a dollar: a short training on cores costs less than a cent
MAX_MESSAGE = 1500  # characters of what a pod left
STARTING_SECONDS = 300.0  # after which a pod that a node has taken may lack what it mounts
_DEADLINE = "DeadlineExceeded"


@dataclass(frozen=True, slots=True)
class AcceleratorQuery:
    """A question to the planner for an accelerator."""

    pinned: str  # the only accelerator that will do, whether it has room or not; empty: the best of all
    dtype: str  # that it computes in
    passed_over: tuple[str, ...] = ()  # accelerators of which no more is to be had than nodes have free


@dataclass(frozen=True, slots=True)
class JobRequest:
    """A Job that shall be; one of its name that was rendered otherwise, of which no pod ran, makes room."""

    number: int
    work: str  # hash of what decides the draft, and part of its folder's name
    choice: Choice  # what it runs on; the memory is that of a training
    serving: Choice  # what the model is served as
    deadline_seconds: int | None  # that the money left buys; None: no bound


@dataclass(frozen=True, slots=True)
class TrainingDecision:
    """The condition, what the status keeps, and what is to be done; empty without spec.training."""

    condition: ConditionState | None = None
    state: TrainingStatus | None = None
    query: AcceleratorQuery | None = None
    job_request: JobRequest | None = None
    kept_job: str | None = None  # the Job that stays; every other one that trains goes
    finished: DraftManifest | None = None  # of which a TurboDraft is to be applied

    def refused(self, message: str) -> TrainingDecision:
        """Tell that the Job or the TurboDraft was not taken, as `message` says: serving goes on."""
        return replace(self, condition=false(TrainingReason.APPLY_REJECTED, message))


NO_TRAINING = TrainingDecision()


def format_progress(progress: JobProgress) -> str:
    """Write the stage and the tenths of it that are done, like `answers 40 %`."""
    share = progress.done / progress.total if progress.total > 0 else 0.0
    return f"{progress.stage[:40]} {10 * int(10 * min(1.0, max(0.0, share)) + 1e-9)} %"


def format_remaining(progress: JobProgress) -> str | None:
    """Write the time that the stage takes yet, rounded up: minutes, or hours from two of them on."""
    seconds = progress.left_seconds
    if seconds is None or not 0 <= seconds < 1e9:
        return None
    minutes = max(1, math.ceil(seconds / 60))
    return f"{minutes}m" if minutes < 120 else f"{math.ceil(minutes / 60)}h"


def update_state(
    state: TrainingStatus, pods: Sequence[TrainPod], now: float, job_ended: float | None = None
) -> TrainingStatus:
    """Update a state by how far its pods are and what they have cost; leave one that is over as it is.

    It changes with a stage, a tenth of one, ten minutes, or a pod that begins or ends to run: it is rarely
    written. A pod that was gone before it was seen to end has run until its Job ended, and where that has not
    until now, but no longer than it would go uncounted while somebody looks.
    """
    if state.result is not None:
        return state
    times = [pod.started for pod in pods if pod.started is not None]
    if times and state.start_time is None:
        state = state.model_copy(update={"start_time": rfc3339(min(times)), "excluded_accelerators": ()})
    running = ((pod.started, pod.progress) for pod in pods if pod.runs and pod.started is not None)
    start, progress = next(running, (None, None))
    since = epoch(state.last_cost_time) if state.last_cost_time else None
    if since is not None and (start is None or start > since):
        unseen = min(now, since + COUNTED_SECONDS) if job_ended is None else max(since, job_ended)
        ends = [pod.ended for pod in pods if pod.ended is not None and pod.ended >= since]
        state, since = add_cost(state, max(ends, default=unseen)), None
    if start is None:
        return state.model_copy(update={"progress": None, "estimated_remaining": None})
    stage = format_progress(progress) if progress else state.progress
    if since is None:
        state = state.model_copy(update={"last_cost_time": rfc3339(start)})
    elif stage != state.progress or now - since >= COUNTED_SECONDS:
        state = add_cost(state, now).model_copy(update={"last_cost_time": rfc3339(now)})
    else:
        return state
    remaining = format_remaining(progress) if progress else None
    return state.model_copy(update={"progress": stage, "estimated_remaining": remaining})


def cost_until(state: TrainingStatus, now: float) -> Decimal:
    """Return US dollars until now, the pod that runs included; 0 where the price is not known."""
    return Decimal(add_cost(state, now).cost or "0")


def add_cost(state: TrainingStatus, until: float) -> TrainingStatus:
    """Add all that was paid until then to a state, with no pod that runs on."""
    if state.last_cost_time is None:
        return state
    update: dict[str, str | None] = {"last_cost_time": None}
    if state.cost_per_hour is not None:
        hours = Decimal(max(0.0, until - epoch(state.last_cost_time))) / 3600
        total = Decimal(state.cost or "0") + hours * Decimal(state.cost_per_hour)
        update["cost"] = str(total.quantize(_CENTS))
    return state.model_copy(update=update)


def bought_seconds(training: Training, state: TrainingStatus, now: float) -> int | None:
    """Return what the money that is left buys; None where nothing bounds it."""
    if training.max_cost is None or state.cost_per_hour is None or not Decimal(state.cost_per_hour):
        return None
    remaining = max(Decimal(0), training.max_cost - cost_until(state, now))
    return min(int(remaining / Decimal(state.cost_per_hour) * 3600), 2**31 - 1)


def over_budget(training: Training, state: TrainingStatus, now: float) -> TrainingDecision:
    """End a training whose money is spent."""
    message = (
        f"Training {state.number} on {state.accelerator_name} has cost {cost_until(state, now):.2f} $ of "
        f"maxCost {training.max_cost}, and what is left buys no minute more: raise "
        "spec.speculation.training.maxCost, and it goes on where it is."
    )
    return end_training(state, TrainingReason.BUDGET_EXCEEDED, message, now)


def end_training(state: TrainingStatus, reason: TrainingReason, message: str, now: float) -> TrainingDecision:
    """End a training badly."""
    update = {
        "result": reason,
        "message": message,
        "completion_time": rfc3339(now),
        "progress": None,
        "estimated_remaining": None,
    }
    return TrainingDecision(false(reason, message), add_cost(state, now).model_copy(update=update))


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
        return TrainingDecision(false(TrainingReason.TRAINING, message), state)
    reason = _last_words(pods) or job.message or "it gave no reason"
    message = (
        f"Training {state.number} failed: {bounded(reason, MAX_MESSAGE)} Mend that, then change "
        "spec.speculation.training, or switch suspend on and off, to train again; until then kubectl logs "
        f"job/{job.name} says more."
    )
    return replace(end_training(state, TrainingReason.TRAINING_FAILED, message, now), kept_job=job.name)


def wait(job: ChildView, state: TrainingStatus, pods: Sequence[TrainPod], now: float) -> TrainingDecision:
    """Say where a Job is that is neither done nor over: it stays."""
    present = [pod for pod in pods if pod.exit_code is None]
    alive = [pod for pod in present if not pod.terminating]
    scheduled_since = alive[0].scheduled_since if alive else None
    reason = TrainingReason.TRAINING
    if any(pod.runs for pod in alive):
        text = f" on {state.accelerator_name}: {state.progress or 'it starts'}"
        if state.estimated_remaining:
            text += f", about {state.estimated_remaining} left of this stage"
        if state.cost and state.progress:
            text += f"; {Decimal(state.cost):.2f} $ until then"
        text += "."
    elif waiting := next((pod for pod in alive if pod.reason), None):
        if waiting.reason in ("Unschedulable", "SchedulingGated"):
            reason = TrainingReason.WAITING_FOR_ACCELERATOR
        text = f": Pod {waiting.name} waits: {bounded(waiting.message or waiting.reason or '', MAX_MESSAGE)}"
    elif scheduled_since is not None and now - scheduled_since >= STARTING_SECONDS:
        # A volume that cannot be mounted is told in an event alone: a pod only says that it starts.
        text = (
            f": Pod {alive[0].name} has been starting since {rfc3339(scheduled_since)}: a claim or ConfigMap "
            f"that it mounts may be missing; kubectl describe pod {alive[0].name} says why. Once the spec is "
            "right another Job is made."
        )
    elif alive:
        text = f": Pod {alive[0].name} starts."
    elif present:
        text = (
            f": Pod {present[0].name} is being removed, and another one follows once it has ended; on a "
            "node that is lost, once the Node object is deleted, or the pod by force."
        )
    elif words := _last_words(pods):
        text = f": its pod ended ({bounded(words, MAX_MESSAGE)}) and another one follows after a pause."
    else:
        reason = TrainingReason.WAITING_FOR_ACCELERATOR
        text = f": Job {job.name} has made no pod yet; kubectl describe job {job.name} says why."
    return TrainingDecision(false(reason, f"Training {state.number}{text}"), state, kept_job=job.name)


def _complete(
    job: ChildView, state: TrainingStatus, pods: Sequence[TrainPod], now: float
) -> TrainingDecision:
    done = next((pod for pod in pods if pod.exit_code == 0), None)
    if done is None and any(pod.exit_code is None for pod in pods):  # its end is on its way here
        return wait(job, state, pods, now)
    if done is None:
        # what it told went with its pod: another Job finds all done, where it was done, and tells it again
        state = state.model_copy(update={"start_time": state.start_time or rfc3339(now)})
        message = f"Training {state.number} is done, and its pod was gone before it told: it is asked again."
        return TrainingDecision(false(TrainingReason.TRAINING, message), state)
    try:
        facts = DraftManifest.from_json(done.message or "")
    except ValueError as error:
        message = f"Pod {done.name} ended without the draft's facts: {error}."
        return replace(end_training(state, TrainingReason.TRAINING_FAILED, message, now), kept_job=job.name)
    message = f"Training {state.number} is done: its TurboDraft is being made."
    condition = false(TrainingReason.TRAINING, message)
    return TrainingDecision(condition, state, kept_job=job.name, finished=facts)


def _last_words(pods: Sequence[TrainPod]) -> str | None:
    """Return what a pod said that ended badly: first of all of an error that trying again cannot help."""
    failed = [pod for pod in pods if pod.exit_code not in (None, 0)]
    failed.sort(key=lambda pod: (pod.exit_code != PERMANENT_ERROR, -(pod.ended or 0.0)))
    return (failed[0].message or failed[0].reason or f"exit code {failed[0].exit_code}") if failed else None
