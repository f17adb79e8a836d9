"""Whether the amounts that a template asks for leave the plan as it was counted and priced. Pure."""

from __future__ import annotations

from turbo_operator.api import Resources, quantity
from turbo_operator.planner.explanation.messages import gib
from turbo_operator.planner.performance.memory import on_cpu
from turbo_operator.snapshot import Accelerator


def contradiction(
    resources: Resources | None, accelerator: Accelerator, host_memory_bytes: int
) -> str | None:
    """What to write instead, as a sentence; None where the amounts and the plan agree.

    Cores and their memory are the accelerator itself, with its price and its room for the KV cache. Beside
    a device the container's memory, `host_memory_bytes`, is the least that loads the model.
    """
    if resources is None:
        return None
    for part, amounts in (("requests", resources.requests or {}), ("limits", resources.limits or {})):
        for name, amount in amounts.items():
            field = f"spec.template.resources.{part}.{name}"
            if on_cpu(accelerator) and name in ("cpu", "memory"):
                return (
                    f"{field} would change what {accelerator.name} is counted and priced as: leave it out, "
                    "and choose another TurboAccelerator or change the quantity and memoryGiB of this one."
                )
            if name == "memory" and quantity(amount) < host_memory_bytes:
                return (
                    f"{field} is {amount}, and loading the model beside {accelerator.name} takes "
                    f"{gib(host_memory_bytes)}: write at least that, or leave it out."
                )
    return None
