"""What a spec pins against the model, the nodes or the plan, as sentences that say what to write. Pure."""

from __future__ import annotations

from turbo_operator.api import quantity
from turbo_operator.planner.candidates import accelerators_per_node
from turbo_operator.planner.explanation.messages import gib
from turbo_operator.planner.performance.memory import on_cpu
from turbo_operator.planner.requirements import Requirements
from turbo_operator.snapshot import Accelerator, Supply


def find_parallelism_conflict(requirements: Requirements) -> str | None:
    """Describe the pinned degrees that no accelerator allows; None if one may."""
    tensor, pipeline, shape = requirements.tensor or 1, requirements.pipeline or 1, requirements.shape
    if shape.heads % tensor:
        divisors = [str(degree) for degree in range(1, 65) if shape.heads % degree == 0]
        return (
            f"spec.parallelism.tensor is {tensor} and does not divide the model's {shape.heads} heads: write "
            f"one of {', '.join(divisors)}, or leave it out."
        )
    if pipeline > shape.layers:
        return (
            f"spec.parallelism.pipeline is {pipeline}, and the model has {shape.layers} layers: write "
            "at most that, or leave it out."
        )
    limit = requirements.max_per_replica
    if limit is not None and tensor * pipeline > limit:
        return (
            f"spec.parallelism asks for {tensor * pipeline} accelerators per replica, and "
            f"spec.accelerators.maxPerReplica is {limit}: raise it, or leave parallelism out."
        )
    return None


def find_accelerator_conflict(
    requirements: Requirements, accelerator: Accelerator, supply: Supply | None
) -> str | None:
    """Describe the pinned degrees that this accelerator does not allow; None if it does."""
    tensor = requirements.tensor
    if on_cpu(accelerator):
        if tensor in (None, 1) and requirements.pipeline in (None, 1):
            return None
        return (
            f"A replica on {accelerator.name} is one pod's cores: leave spec.parallelism out, or give the "
            "TurboAccelerator a larger quantity."
        )
    per_node = accelerators_per_node(accelerator, supply)
    if tensor is None or tensor <= per_node:
        return None
    return (
        f"spec.parallelism.tensor is {tensor}, and a node of {accelerator.name} has {per_node}: write at "
        "most that, or set spec.perNode on the TurboAccelerator."
    )


def find_resource_conflict(requirements: Requirements, accelerator: Accelerator) -> str | None:
    """Describe the template's amounts that contradict the plan; None if they agree.

    Cores and their memory are the accelerator itself, with its price and its share of KV cache. On a device
    the container needs the memory that loads the model.
    """
    resources, host_memory = requirements.resources, requirements.host_memory_bytes(accelerator)
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
            if name == "memory" and quantity(amount) < host_memory:
                return (
                    f"{field} is {amount}, and loading the model beside {accelerator.name} takes "
                    f"{gib(host_memory)}: write at least that, or leave it out."
                )
    return None
