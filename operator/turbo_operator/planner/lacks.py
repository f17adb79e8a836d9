"""What of each candidate cannot be rendered or run, by the engines' capabilities. Pure."""

from __future__ import annotations

from functools import cache

import numpy as np

from turbo_operator.api import EngineName, Method, Placement
from turbo_operator.planner.arrays import Numbers
from turbo_operator.planner.candidates import Candidates
from turbo_operator.planner.capabilities import (
    ENGINES,
    describe_adapter_lack,
    describe_division_lack,
    describe_draft_lack,
    describe_engine_lack,
    describe_heads_lack,
    describe_lack,
    describe_model_lack,
    describe_placement_lack,
)
from turbo_operator.planner.performance import memory
from turbo_operator.planner.requirements import Requirements


def list_lacks(candidates: Candidates, requirements: Requirements) -> list[str | None]:
    """[c] describe what each candidate lacks, as the end of a sentence; None of one that lacks nothing."""
    inputs, shape = requirements.inputs, requirements.shape
    spec, options, groups = inputs.spec, candidates.draft_options, candidates.data
    model_lack = describe_model_lack(shape)
    draft_lack = None if inputs.draft is None else describe_model_lack(inputs.draft)
    is_gguf = spec.model.uri.rstrip("/").endswith(".gguf")
    has_host = requirements.draft_host is not None

    @cache
    def describe(
        number: int, is_on_cpu: int, draft: int, tensor: int, nodes: int, has_room: int
    ) -> str | None:
        engine, option, on_cpu = ENGINES[number].name, options[draft], bool(is_on_cpu)
        lack = describe_adapter_lack(spec, shape, engine, tensor, inputs.adapter_modules)
        if engine == EngineName.TURBO:
            lack = (
                model_lack or lack or describe_division_lack(shape, tensor, nodes * groups, is_gguf=is_gguf)
            )
            if spec.awaits_eagle3:  # which joins as pods run
                lack = lack or describe_lack(engine, Method.EAGLE3, Placement.COLOCATED, tensor)
            if option.method == Method.DRAFT_MODEL and draft_lack is not None:
                lack = lack or f"as a draft model, {draft_lack}"
        else:
            lack = lack or describe_heads_lack(shape, inputs.draft, option.method, tensor)
        return (
            lack
            or describe_lack(engine, option.method, option.placement, tensor)
            or describe_placement_lack(
                option.placement, is_on_cpu=on_cpu, has_room=bool(has_room), has_host=has_host
            )
            or (inputs.group_lack if nodes > 1 else None)
            or describe_draft_lack(option.method, spec.speculation, is_there=inputs.trained is not None)
            or describe_engine_lack(spec, engine, option.method, is_on_cpu=on_cpu)
        )

    on_cpu = candidates.by_accelerator(memory.on_cpu, bool)
    per_node = candidates.by_accelerator(requirements.accelerators_per_node)
    has_room = candidates.tensor * groups < per_node
    columns = (candidates.engine, on_cpu, candidates.draft, candidates.tensor, candidates.nodes, has_room)
    return [describe(*row) for row in np.stack(columns, axis=1).astype(int).tolist()]


def list_conflicts(
    candidates: Candidates, requirements: Requirements, host_bytes: Numbers
) -> tuple[str | None, ...]:
    """[c] describe what of the pod template contradicts each candidate, with a draft of `host_bytes` on the
    host's cores; None of what agrees. Workers of vLLM may do with less than is counted for them.
    """
    if requirements.resources is None:
        return (None,) * len(candidates)

    @cache
    def describe(place: int, ranks: int, draft_bytes: int) -> str | None:
        return requirements.find_resource_conflict(candidates.accelerators[place], ranks, draft_bytes)

    is_turbo = candidates.by_engine(lambda engine: engine.name == EngineName.TURBO, bool)
    ranks = np.where(is_turbo, candidates.tensor, 1.0)
    columns = (candidates.accelerator, ranks, host_bytes)
    return tuple(describe(*row) for row in np.stack(columns, axis=1).astype(int).tolist())
