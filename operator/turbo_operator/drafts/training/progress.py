"""How far a training is, in steps that a status can follow, and what its pods' time has cost. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal

from turbo_operator.api import TrainingStatus, epoch, rfc3339
from turbo_operator.snapshot import TrainPod
from turbo_runtime.contract.training import TrainingProgress

COUNTED_SECONDS = 600.0  # between two counts of what is paid, at most, while somebody looks
_CENTS = Decimal("0.000001")  # of a dollar: a short training on cores costs less than a cent


def spelled(progress: TrainingProgress) -> str:
    """The stage and the tenths of it that are done, like `answers 40 %`."""
    share = progress.done / progress.total if progress.total > 0 else 0.0
    return f"{progress.stage[:40]} {10 * int(10 * min(1.0, max(0.0, share)) + 1e-9)} %"


def left(progress: TrainingProgress) -> str | None:
    """The time that the stage takes yet, rounded up: minutes, or hours from two of them on."""
    seconds = progress.left_seconds
    if seconds is None or not 0 <= seconds < 1e9:
        return None
    minutes = max(1, math.ceil(seconds / 60))
    return f"{minutes}m" if minutes < 120 else f"{math.ceil(minutes / 60)}h"


def followed(
    state: TrainingStatus, pods: Sequence[TrainPod], now: float, job_ended: float | None = None
) -> TrainingStatus:
    """The state with how far its pods are and what they have cost; of one that is over as it is.

    It changes with a stage, a tenth of one, ten minutes, or a pod that begins or ends to run: it is rarely
    written. A pod that was gone before it was seen to end has run until its Job ended, and where that has not
    until now, but no longer than it would go uncounted while somebody looks.
    """
    if state.result is not None:
        return state
    begun = [pod.started for pod in pods if pod.started is not None]
    if begun and state.started is None:
        state = state.model_copy(update={"started": rfc3339(min(begun)), "passed_over": ()})
    runs = ((pod.started, pod.progress) for pod in pods if pod.runs and pod.started is not None)
    began, progress = next(runs, (None, None))
    since = epoch(state.running_since) if state.running_since else None
    if since is not None and (began is None or began > since):
        unseen = min(now, since + COUNTED_SECONDS) if job_ended is None else max(since, job_ended)
        ends = [pod.ended for pod in pods if pod.ended is not None and pod.ended >= since]
        state, since = counted(state, max(ends, default=unseen)), None
    if began is None:
        return state.model_copy(update={"progress": None, "left": None})
    told = spelled(progress) if progress else state.progress
    if since is None:
        state = state.model_copy(update={"running_since": rfc3339(began)})
    elif told != state.progress or now - since >= COUNTED_SECONDS:
        state = counted(state, now).model_copy(update={"running_since": rfc3339(now)})
    else:
        return state
    return state.model_copy(update={"progress": told, "left": left(progress) if progress else None})


def spent(state: TrainingStatus, now: float) -> Decimal:
    """US dollars until now, the pod that runs included; 0 where the price is not known."""
    return Decimal(counted(state, now).spent or "0")


def counted(state: TrainingStatus, until: float) -> TrainingStatus:
    """The state with all that was paid until then, and no pod that runs on."""
    if state.running_since is None:
        return state
    update: dict[str, str | None] = {"running_since": None}
    if state.cost_per_hour is not None:
        hours = Decimal(max(0.0, until - epoch(state.running_since))) / 3600
        total = Decimal(state.spent or "0") + hours * Decimal(state.cost_per_hour)
        update["spent"] = str(total.quantize(_CENTS))
    return state.model_copy(update=update)
