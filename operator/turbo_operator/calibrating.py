"""What the pods of the plan in force have told of step times, kept in the status. Pure.

The planner reads it there and nowhere else: so it is known after a restart, before any pod has said its load,
and to whoever asks for the same plan from outside.
"""

from __future__ import annotations

import math

from turbo_operator.api import Calibrated, TurboDeployment
from turbo_operator.observed import Observed
from turbo_operator.planner.calibration import Calibration, Filter, calibrate
from turbo_operator.planner.online import Online
from turbo_operator.planner.replica import replica
from turbo_operator.planning import calibration, running

STEP = 0.05  # of a factor: what a new pod's start tells beside the others changes no plan for less


def heard(
    td: TurboDeployment, observed: Observed, online: Online | None
) -> tuple[Calibrated | None, Online | None]:
    """The factors now, and what is known from the loads so far; None of both while no plan runs.

    `online` is the answer before; None after a start.
    """
    now = running(td.status.plan, observed)
    row = observed.accelerators.get(now.accelerator) if now is not None else None
    if now is None or row is None or observed.model is None:
        return None, None
    kept = td.status.calibration if calibration(td.status.calibration, now) else None
    one = replica(td.spec, observed.model.shape, row, now)
    if one is None:
        return None, None
    in_force = td.status.plan.hash if td.status.plan else None
    pods = [pod for pod in observed.pods if pod.plan_hash == in_force]
    points = [point for pod in pods if pod.load is not None for point in pod.load.load.step_times or ()]
    start = _start(kept, calibrate(points, *one))
    other = td.status.calibration is not None and kept is None  # accelerator or engine than was told of
    before = online if online is not None and not other else _restored(kept)
    after = before.heard(pods, *one, start)
    if start is None and after.told == 0.0:
        return None, after
    start = start or Calibration(1.0, 1.0)
    told = Calibrated(
        engine=now.engine,
        accelerator=now.accelerator,
        decode=f"{start.decode:.3f}",
        prefill=f"{start.prefill:.3f}",
        online=f"{after.factor:.3f}",
    )
    return told, after


def _start(kept: Calibrated | None, measured: Calibration | None) -> Calibration | None:
    """What the start-up points tell; what is kept where none is known, or hardly another."""
    if kept is None:
        return measured
    known = Calibration(float(kept.decode), float(kept.prefill))
    if measured is None or all(
        abs(new - old) <= STEP * old
        for new, old in ((measured.decode, known.decode), (measured.prefill, known.prefill))
    ):
        return known
    return measured


def _restored(kept: Calibrated | None) -> Online:
    told = math.log(float(kept.online)) if kept is not None else 0.0
    return Online(filter=Filter(logarithm=told), told=told)
