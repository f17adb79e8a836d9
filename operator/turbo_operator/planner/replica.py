"""One replica of what runs, in plain numbers: what measured times are compared with. Pure."""

from __future__ import annotations

import math

import numpy as np

from turbo_operator.api import TurboDeploymentSpec
from turbo_operator.plan import Running
from turbo_operator.planner.engines import ENGINES
from turbo_operator.planner.performance import candidate_curves, memory, step_time
from turbo_operator.planner.performance.coefficients import NAMES, Coefficients
from turbo_operator.planner.performance.step_time import ForwardCost, Machine
from turbo_operator.planner.request import computed_in, element_bytes, request
from turbo_operator.snapshot import Accelerator
from turbo_runtime.contract.model import ModelShape


def replica(
    spec: TurboDeploymentSpec, shape: ModelShape, accelerator: Accelerator, running: Running
) -> tuple[Machine, ForwardCost] | None:
    """Its accelerators and what a pass does; None where the speed of the accelerator is not stated.

    Nor is there one over several nodes: its passes overlap, and no measured step is one of theirs.
    """
    if accelerator.memory_bandwidth is None or "bf16" not in accelerator.flops or running.nodes > 1:
        return None
    if running.tensor > 1 and accelerator.link_bandwidth is None:
        return None
    asked = request(spec, shape, (accelerator.name,))
    dtype = computed_in(asked.dtype, shape, memory.on_cpu(accelerator))
    element = float(element_bytes(dtype))
    number = next(place for place, each in enumerate(ENGINES) if each.name == running.engine)
    engine, own = ENGINES[number], candidate_curves.rates((accelerator,), asked, np.array([element]))
    machine = Machine(
        bandwidth=float(own.bandwidth[0]),
        flops=float(own.flops[number, 0]),
        expert_flops=float(own.expert_flops[number, 0]),
        attention_flops=float(own.attention_flops[0]),
        link=float(own.link[0]) if running.tensor > 1 else math.inf,
        tensor=float(running.tensor),
        coefficients=Coefficients(**{name: float(own.coefficients[name][number, 0]) for name in NAMES}),
    )
    held = memory.weights(shape, element, engine.quantized)
    cache = memory.kv_bytes(shape, element, float(running.tensor), asked.demand.held, engine.forgets)
    return machine, step_time.work(shape, held.dense, held.expert, cache)
