"""How far a training is, in steps that a status can follow, what it has cost, and what is left to spend.
Pure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal

from turbo_operator.api import Training, TrainingReason, TrainingStatus, epoch, rfc3339
from turbo_operator.drafts.training.step import TrainingDecision, unmet_condition
from turbo_operator.snapshot import TrainPod
from turbo_runtime.contract.training import TrainingProgress

COUNTED_SECONDS = 600.0  # between two counts of what is paid, at most, while somebody looks
MIN_SECONDS = 60  # that a Job must have: what is left of the money buys no less
_CENTS = Decimal("0.000001")  # of a dollar: a short training on cores costs less than a cent


def spelled(progress: TrainingProgress) -> str:
    """Write the stage and the tenths of it that are done, like `answers 40 %`."""
    share = progress.done / progress.total if progress.total > 0 else 0.0
    return f"{progress.stage[:40]} {10 * int(10 * min(1.0, max(0.0, share)) + 1e-9)} %"


def left(progress: TrainingProgress) -> str | None:
    """Write the time that the stage takes yet, rounded up: minutes, or hours from two of them on."""
    seconds = progress.left_seconds
    if seconds is None or not 0 <= seconds < 1e9:
        return None
    minutes = max(1, math.ceil(seconds / 60))
    return f"{minutes}m" if minutes < 120 else f"{math.ceil(minutes / 60)}h"


def followed(
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
    if times and state.started is None:
        state = state.model_copy(update={"started": rfc3339(min(times)), "passed_over": ()})
    running = ((pod.started, pod.progress) for pod in pods if pod.runs and pod.started is not None)
    start, progress = next(running, (None, None))
    since = epoch(state.running_since) if state.running_since else None
    if since is not None and (start is None or start > since):
        unseen = min(now, since + COUNTED_SECONDS) if job_ended is None else max(since, job_ended)
        ends = [pod.ended for pod in pods if pod.ended is not None and pod.ended >= since]
        state, since = counted(state, max(ends, default=unseen)), None
    if start is None:
        return state.model_copy(update={"progress": None, "left": None})
    stage = spelled(progress) if progress else state.progress
    if since is None:
        state = state.model_copy(update={"running_since": rfc3339(start)})
    elif stage != state.progress or now - since >= COUNTED_SECONDS:
        state = counted(state, now).model_copy(update={"running_since": rfc3339(now)})
    else:
        return state
    return state.model_copy(update={"progress": stage, "left": left(progress) if progress else None})


def spent(state: TrainingStatus, now: float) -> Decimal:
    """Return US dollars until now, the pod that runs included; 0 where the price is not known."""
    return Decimal(counted(state, now).spent or "0")


def counted(state: TrainingStatus, until: float) -> TrainingStatus:
    """Add all that was paid until then to a state, with no pod that runs on."""
    if state.running_since is None:
        return state
    update: dict[str, str | None] = {"running_since": None}
    if state.cost_per_hour is not None:
        hours = Decimal(max(0.0, until - epoch(state.running_since))) / 3600
        total = Decimal(state.spent or "0") + hours * Decimal(state.cost_per_hour)
        update["spent"] = str(total.quantize(_CENTS))
    return state.model_copy(update=update)


def bought_seconds(training: Training, state: TrainingStatus, now: float) -> int | None:
    """Return what the money that is left buys; None where nothing bounds it."""
    if training.max_cost is None or state.cost_per_hour is None or not Decimal(state.cost_per_hour):
        return None
    remaining = max(Decimal(0), training.max_cost - spent(state, now))
    return min(int(remaining / Decimal(state.cost_per_hour) * 3600), 2**31 - 1)


def over_budget(training: Training, state: TrainingStatus, now: float) -> TrainingDecision:
    """End a training whose money is spent."""
    message = (
        f"Training {state.number} on {state.accelerator} has cost {spent(state, now):.2f} $ of maxCost "
        f"{training.max_cost}, and what is left buys no minute more: raise "
        "spec.speculation.training.maxCost, and it goes on where it is."
    )
    return ended(state, TrainingReason.OVER_BUDGET, message, now)


def ended(state: TrainingStatus, reason: TrainingReason, message: str, now: float) -> TrainingDecision:
    """End a training badly."""
    update = {"result": reason, "message": message, "ended": rfc3339(now), "progress": None, "left": None}
    return TrainingDecision(unmet_condition(reason, message), counted(state, now).model_copy(update=update))
