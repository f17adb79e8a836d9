"""What pods have told of step times, by engine and accelerator, kept in the status. Pure.

The planner reads it there and nowhere else: so it is known after a restart, before any pod has said its load,
and to whoever asks for the same plan from outside.
"""

from __future__ import annotations

import math

from turbo_operator.api import Calibrated, TurboDeployment, epoch, rfc3339
from turbo_operator.planner.inputs import plan_in_place, running
from turbo_operator.planner.performance.calibration import DRIFT, Calibration, Filter, calibrate
from turbo_operator.planner.performance.online_calibration import Online
from turbo_operator.planner.replica import replica
from turbo_operator.snapshot import Snapshot

STEP = 0.05  # of a factor: what a new pod's start tells beside the others changes no plan for less
MOST_KEPT = 16  # engines and accelerators
# Of a factor: what lies beyond is a slip in the catalogue, or the word of another program.
LEAST, MOST = 0.01, 100.0
NEUTRAL = "1.000"
# A plan that has left an accelerator hears no more of it. What was heard under load counts until it may have
# wandered as far as was thought possible before anything was heard: for three days.
BELIEVED_SECONDS = Filter().variance / DRIFT


def update_calibrations(
    td: TurboDeployment, observed: Snapshot, online: Online | None, now: float
) -> tuple[tuple[Calibrated, ...], Online | None]:
    """The factors now, those of what runs first, and what is known of it from the loads so far.

    `online` is the answer before; None after a start, and while no plan runs. `now` is in seconds since the
    epoch.
    """
    kept = tuple(_faded(each) if _is_over(each, now) else each for each in td.status.calibrations)
    plan = plan_in_place(td, observed)
    runs = running(plan)
    row = observed.accelerators.get(runs.accelerator) if runs is not None else None
    if runs is None or row is None or observed.model is None:
        return kept, None
    one = replica(td.spec, observed.model.shape, row, runs)
    if one is None:
        return kept, None
    of = (str(runs.engine), runs.accelerator)
    mine = next((each for each in kept if (each.engine, each.accelerator) == of), None)
    pods = [pod for pod in observed.pods if plan is not None and pod.plan_hash == plan.hash]
    points = [point for pod in pods if pod.load is not None for point in pod.load.load.step_times or ()]
    start = _start(mine, calibrate(points, *one))
    faded = mine is not None and mine not in td.status.calibrations
    before = online if online is not None and online.of == of and not faded else _restored(mine, of)
    after = before.heard(pods, *one, start)
    if start is None and after.told == 0.0:
        return kept, after
    start = start or Calibration(1.0, 1.0)
    told = Calibrated(
        engine=runs.engine,
        accelerator=runs.accelerator,
        decode=_written(start.decode),
        prefill=_written(start.prefill),
        online=_written(after.factor),
        until=_until(mine, after) if after.told else None,
    )
    return (told, *(each for each in kept if each is not mine))[:MOST_KEPT], after


def _is_over(kept: Calibrated, now: float) -> bool:
    return kept.online != NEUTRAL and (kept.until is None or epoch(kept.until) <= now)


def _faded(kept: Calibrated) -> Calibrated:
    """With what was measured at a start alone, which is the machine's and not its load's."""
    return kept.model_copy(update={"online": NEUTRAL, "until": None})


def _until(kept: Calibrated | None, online: Online) -> str:
    """Written anew once half of the time has passed, so that a status under load is rarely written."""
    until = online.filter.at + BELIEVED_SECONDS
    if kept is not None and kept.until is not None and until - epoch(kept.until) <= BELIEVED_SECONDS / 2:
        return kept.until
    return rfc3339(until)


def _written(factor: float) -> str:
    return f"{min(max(factor, LEAST), MOST):.3f}"


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


def _restored(kept: Calibrated | None, of: tuple[str, str]) -> Online:
    told = math.log(max(float(kept.online), LEAST)) if kept is not None else 0.0
    return Online(filter=Filter(logarithm=told), told=told, of=of)
