"""What pods report of step times, by engine and accelerator, kept in the status. Pure.

The planner reads it there and nowhere else: so it is known after a restart, before any pod has reported its
load, and to whoever computes the same plan from outside.
"""

from __future__ import annotations

import math

from turbo_operator.api import Calibrated, TurboDeployment, TurboDeploymentSpec, epoch, rfc3339
from turbo_operator.plan import Running
from turbo_operator.planner.capabilities import ENGINES
from turbo_operator.planner.inputs import find_plan_in_place, identify_running
from turbo_operator.planner.performance import memory, step_time
from turbo_operator.planner.performance.calibration import DRIFT, Calibration, Filter, Online, calibrate
from turbo_operator.planner.performance.candidate_curves import build_rates
from turbo_operator.planner.performance.step_time import NAMES, Coefficients, ForwardCost, Machine
from turbo_operator.planner.requirements import build_requirements
from turbo_operator.snapshot import Accelerator, Snapshot
from turbo_runtime.contract.model import ModelShape

STEP = 0.05  # of a factor: a change at a new pod's start that is smaller changes no plan
MAX_KEPT = 16  # engines and accelerators
# Of a factor: what lies beyond is a slip in the catalog, or the word of another program.
MIN_FACTOR, MAX_FACTOR = 0.01, 100.0
NEUTRAL = "1.000"
# A plan that has left an accelerator measures it no more. What was measured under load counts until it may
# have wandered as far as was thought possible before any measurement: for three days.
BELIEVED_SECONDS = Filter().variance / DRIFT


def update_calibrations(
    td: TurboDeployment, observed: Snapshot, online: Online | None, now: float
) -> tuple[tuple[Calibrated, ...], Online | None]:
    """Return the factors now, those of what runs first, and what its loads tell so far.

    `online` is the result before; None after a start, and while no plan runs. `now` is in seconds since the
    epoch.
    """
    kept = tuple(_fade(row) if _is_over(row, now) else row for row in td.status.calibrations)
    plan = find_plan_in_place(td, observed)
    running = identify_running(plan)
    accelerator = observed.accelerators.get(running.accelerator) if running is not None else None
    if plan is None or running is None or accelerator is None or observed.model is None:
        return kept, None
    replica = describe_replica(td.spec, observed.model.shape, accelerator, running)
    if replica is None:
        return kept, None
    key = (str(running.engine), running.accelerator)
    mine = next((row for row in kept if (row.engine, row.accelerator) == key), None)
    pods = [pod for pod in observed.pods if pod.plan_hash == plan.hash]
    points = [point for pod in pods if pod.load is not None for point in pod.load.load.step_times or ()]
    start = _start(mine, calibrate(points, *replica))
    is_faded = mine is not None and mine not in td.status.calibrations
    if online is None or online.of != key or is_faded:
        logarithm = math.log(max(float(mine.online), MIN_FACTOR)) if mine is not None else 0.0
        online = Online(filter=Filter(logarithm=logarithm), told=logarithm, of=key)
    online = online.update(pods, *replica, start)
    if start is None and online.told == 0.0:
        return kept, online
    start = start or Calibration(1.0, 1.0)
    calibrated = Calibrated(
        engine=running.engine,
        accelerator=running.accelerator,
        decode=_format(start.decode),
        prefill=_format(start.prefill),
        online=_format(online.factor),
        until=_until(mine, online) if online.told else None,
    )
    return (calibrated, *(row for row in kept if row is not mine))[:MAX_KEPT], online


def describe_replica(
    spec: TurboDeploymentSpec, shape: ModelShape, accelerator: Accelerator, running: Running
) -> tuple[Machine, ForwardCost] | None:
    """Describe one replica in plain numbers; None where the speed of the accelerator is not stated.

    Nor is there one over several nodes: its passes overlap, and no measured step is one of theirs.
    """
    if accelerator.memory_bandwidth is None or "bf16" not in accelerator.flops or running.nodes > 1:
        return None
    if running.tensor > 1 and accelerator.link_bandwidth is None:
        return None
    requirements = build_requirements(spec, shape, (accelerator.name,))
    rates = build_rates((accelerator,), requirements)
    element, tensor = float(requirements.element_bytes(accelerator)), float(running.tensor)
    number = next(place for place, engine in enumerate(ENGINES) if engine.name == running.engine)
    machine = Machine(
        bandwidth=float(rates.bandwidth[0]),
        flops=float(rates.flops[number, 0]),
        expert_flops=float(rates.expert_flops[number, 0]),
        attention_flops=float(rates.attention_flops[0]),
        link=float(rates.link[0]) if running.tensor > 1 else math.inf,
        tensor=tensor,
        coefficients=Coefficients(**{name: float(rates.coefficients[name][number, 0]) for name in NAMES}),
    )
    engine = ENGINES[number]
    weights = memory.weights(shape, element, engine.quantized)
    cache = memory.kv_bytes(shape, element, tensor, requirements.demand.held, engine.forgets)
    return machine, step_time.build_work(shape, weights.dense, weights.expert, cache)


def _is_over(row: Calibrated, now: float) -> bool:
    return row.online != NEUTRAL and (row.until is None or epoch(row.until) <= now)


def _fade(row: Calibrated) -> Calibrated:
    """Keep only what was measured at a start, which is the machine's and not its load's."""
    return row.model_copy(update={"online": NEUTRAL, "until": None})


def _until(row: Calibrated | None, online: Online) -> str:
    """Write the end anew once half of the time has passed, so that a status under load is rarely written."""
    until = online.filter.at + BELIEVED_SECONDS
    if row is not None and row.until is not None and until - epoch(row.until) <= BELIEVED_SECONDS / 2:
        return row.until
    return rfc3339(until)


def _format(factor: float) -> str:
    return f"{min(max(factor, MIN_FACTOR), MAX_FACTOR):.3f}"


def _start(row: Calibrated | None, measured: Calibration | None) -> Calibration | None:
    """Return what the start-up points tell; what is kept where they tell nothing, or hardly anything new."""
    if row is None:
        return measured
    known = Calibration(float(row.decode), float(row.prefill))
    if measured is None:
        return known
    changes = ((measured.decode, known.decode), (measured.prefill, known.prefill))
    return known if all(abs(new - old) <= STEP * old for new, old in changes) else measured
