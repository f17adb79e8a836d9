"""The question to the planner for a training's accelerator: one replica of the model, and what it takes
beside.

Nothing of the deployment's load, targets and budget holds for a training: the cheapest that fits and has room
will do.
"""

from __future__ import annotations

import math
from dataclasses import replace

from turbo_operator.api import (
    Accelerators,
    DType,
    EngineType,
    Mode,
    Scaling,
    ScalingPolicy,
    Speculation,
    TurboDeployment,
)
from turbo_operator.drafts.training.step import AcceleratorQuery
from turbo_operator.plan import Choice
from turbo_operator.planner.inputs import PlannerInputs
from turbo_operator.planner.performance.memory import GIB, on_cpu
from turbo_operator.snapshot import Snapshot
from turbo_runtime.contract.model import ModelShape

# Of `turbo distill` by its defaults: hidden states, and the logits of a step of 256 places over 8,192 tokens,
# of the draft and of the model, with what their gradients take, for each of 4 tokens that are drafted.
_STATES = GIB
_LOGITS = 256 * 8192 * 4 * 3 * 4
_DEPTH = 4
_LEARNT_BYTES = 16  # of one weight that is learnt: in float32, its gradient and two moments
HOST_BYTES = 2 * GIB  # beside a device: what is read of prompts, answers and states on their way


def training_bytes(shape: ModelShape) -> int:
    """Return what a training holds in addition to the model that it serves itself."""
    return _STATES + _LOGITS + _LEARNT_BYTES * _DEPTH * 2 * shape.hidden_size**2


def question(
    td: TurboDeployment, observed: Snapshot, shape: ModelShape, query: AcceleratorQuery
) -> PlannerInputs:
    """Ask for one replica: the planner knows of no trainings."""
    spec = td.spec
    allowed = spec.accelerators or Accelerators()
    names = (query.pinned,) if query.pinned else allowed.allowed
    dtype = DType.FLOAT32 if query.dtype == "float32" else DType.BFLOAT16
    wanted = spec.model_copy(
        update={
            "model": spec.model.model_copy(update={"dtype": dtype}),
            "engine": spec.engine.model_copy(update={"type": EngineType.TURBO}),
            "speculation": Speculation(mode=Mode.DISABLED),
            "accelerators": allowed.model_copy(
                update={"allowed": names, "max_per_replica": None, "max_total": None}
            ),
            "parallelism": None,
            "workload": None,
            "targets": None,
            "cost": None,
            "replicas": 1,
            "scaling": Scaling(policy=ScalingPolicy.EXTERNAL),
        }
    )
    used = training_bytes(shape)
    catalog = {
        name: replace(row, memory_bytes=max(0, row.memory_bytes - used))
        for name, row in observed.accelerators.items()
    }
    free = observed.free
    if free is not None:
        free = {
            name: replace(supply, exhausted_until=math.inf) if name in query.passed_over else supply
            for name, supply in free.items()
        }
    return PlannerInputs(wanted, shape, catalog, None if query.pinned else free, None, {}, None)


def planned_on(choice: Choice, observed: Snapshot) -> Choice:
    """Return the planner's choice on the accelerator as it is, with a training's memory in addition."""
    accelerator = observed.accelerators[choice.accelerator.name]
    memory = accelerator.memory_bytes if on_cpu(accelerator) else choice.host_memory_bytes + HOST_BYTES
    return replace(choice, accelerator=accelerator, host_memory_bytes=memory)
