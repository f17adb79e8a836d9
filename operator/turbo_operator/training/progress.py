"""How far a training is, in steps that a status can follow, and what its pods' time has cost. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal

from turbo_operator.api import TrainingStatus, epoch, rfc3339
from turbo_operator.observed import TrainPod
from turbo_runtime.training_contract import TrainingProgress

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


def followed(state: TrainingStatus, pods: Sequence[TrainPod], now: float) -> TrainingStatus:
    """The state with how far its pods are and what they have cost.

    It changes with a stage, a tenth of one, or a pod that begins or ends to run: it is rarely written.
    """
    running = [pod for pod in pods if pod.runs and pod.started is not None]
    since = epoch(state.running_since) if state.running_since else None
    if not running:
        if since is None:
            return state.model_copy(update={"progress": None, "left": None})
        ends = [pod.ended for pod in pods if pod.ended is not None and pod.ended >= since]
        return _paid(state, since, max(ends, default=now)).model_copy(
            update={"running_since": None, "progress": None, "left": None}
        )
    progress = running[0].progress
    told = spelled(progress) if progress else state.progress
    if since is None:
        began = min(pod.started for pod in running if pod.started is not None)
        state = state.model_copy(update={"running_since": rfc3339(began)})
    elif told != state.progress:
        state = _paid(state, since, now).model_copy(update={"running_since": rfc3339(now)})
    else:
        return state
    return state.model_copy(update={"progress": told, "left": left(progress) if progress else None})


def spent(state: TrainingStatus, now: float) -> Decimal:
    """US dollars until now, the pod that runs included; 0 where the price is not known."""
    since = epoch(state.running_since) if state.running_since else now
    return Decimal(_paid(state, since, now).spent or "0")


def _paid(state: TrainingStatus, since: float, until: float) -> TrainingStatus:
    if state.cost_per_hour is None:
        return state
    hours = Decimal(max(0.0, until - since)) / 3600
    total = Decimal(state.spent or "0") + hours * Decimal(state.cost_per_hour)
    return state.model_copy(update={"spent": str(total.quantize(_CENTS))})
