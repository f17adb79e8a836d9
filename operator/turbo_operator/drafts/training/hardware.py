"""What a training computes in and with: the bits of its draft depend on both. Pure."""

from __future__ import annotations

from turbo_operator.api import TurboDeployment, quantity
from turbo_operator.budget import DEVICE_POD_CORES
from turbo_operator.plan import Choice
from turbo_operator.planner.performance.memory import on_cpu
from turbo_operator.snapshot import Accelerator


def dtype(serving: Choice) -> str:
    """As what is served, wherever it is trained, so that answers are those that are served."""
    return "float32" if serving.dtype == "float32" else "bfloat16"


def threads(td: TurboDeployment, accelerator: Accelerator) -> int:
    """One for each core that its pod may use."""
    if not on_cpu(accelerator):
        return int(quantity(DEVICE_POD_CORES))
    overlay = td.spec.template.resources if td.spec.template else None
    limits = (overlay.limits if overlay else None) or {}
    cores = quantity(limits["cpu"]) if "cpu" in limits else accelerator.quantity
    return max(1, int(cores))
