"""Degrees that a spec pins, against the model and the nodes: what cannot be, in a sentence. Pure."""

from __future__ import annotations

from turbo_operator.planner.candidates import per_node
from turbo_operator.planner.performance.memory import on_cpu
from turbo_operator.planner.request import Requirements
from turbo_operator.snapshot import Accelerator, Supply


def contradiction(request: Requirements) -> str | None:
    """What no accelerator can do; None where nothing."""
    tensor, pipeline, shape = request.tensor or 1, request.pipeline or 1, request.shape
    if shape.heads % tensor:
        fine = [degree for degree in range(1, 65) if shape.heads % degree == 0]
        return (
            f"spec.parallelism.tensor is {tensor} and does not divide the model's {shape.heads} heads: write "
            f"one of {', '.join(map(str, fine))}, or leave it out."
        )
    if pipeline > shape.layers:
        return (
            f"spec.parallelism.pipeline is {pipeline}, and the model has {shape.layers} layers: write "
            "at most that, or leave it out."
        )
    most = request.max_per_replica
    if most is not None and tensor * pipeline > most:
        return (
            f"spec.parallelism asks for {tensor * pipeline} accelerators per replica, and "
            f"spec.accelerators.maxPerReplica is {most}: raise it, or leave parallelism out."
        )
    return None


def unfit(request: Requirements, accelerator: Accelerator, supply: Supply | None) -> str | None:
    """What this accelerator cannot do of what is pinned; None where nothing."""
    if on_cpu(accelerator):
        if request.tensor in (None, 1) and request.pipeline in (None, 1):
            return None
        return (
            f"A replica on {accelerator.name} is one pod's cores: leave spec.parallelism out, or give the "
            "TurboAccelerator a larger quantity."
        )
    room = per_node(accelerator, supply)
    if request.tensor is None or request.tensor <= room:
        return None
    return (
        f"spec.parallelism.tensor is {request.tensor}, and a node of {accelerator.name} has {room}: write at "
        "most that, or set spec.perNode on the TurboAccelerator."
    )
