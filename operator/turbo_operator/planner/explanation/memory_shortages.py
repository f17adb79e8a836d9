"""Why a candidate does not fit into memory, and what would: shorter requests, or more nodes. Pure."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from turbo_operator.api import EngineName
from turbo_operator.planner.arrays import take
from turbo_operator.planner.candidates import STAGES, estimate_memory
from turbo_operator.planner.evaluation import PlanEvaluation
from turbo_operator.planner.offering import Offering
from turbo_operator.planner.performance import memory


def describe_out_of_memory(evaluation: PlanEvaluation, _: int, offering: Offering) -> str:
    """Say what is needed and what there is, and what would help."""
    use, place = evaluation.memory_use, offering.place
    tokens = min(_max_tokens(evaluation, place), evaluation.requirements.shape.max_position)
    needed, usable = (memory.gib(float(amount[place])) for amount in (use.need, use.usable))
    sentence = f"One replica needs {needed} and {offering.accelerator.name} has {usable} to give"
    if tokens <= 0:
        return (
            f"{sentence}: not even the weights and one short request fit.{_more_nodes(evaluation, offering)}"
        )
    remedy = f"set spec.model.maxModelLen (now {evaluation.requirements.max_model_len})"
    return f"{sentence}; requests of up to {tokens} tokens would fit: {remedy}."


def _max_tokens(evaluation: PlanEvaluation, place: int) -> int:
    """Return the longest request in tokens that a candidate has memory for; 0 if not even a short one."""
    use, candidates = evaluation.memory_use, evaluation.candidates
    if use.loading[place] > use.usable[place]:
        return 0
    available = use.usable[place] - use.weights[place] - use.drafting[place] - use.activations[place]
    drafts = candidates.draft_options[candidates.draft[place]].max_draft_tokens
    block = int(candidates.by_limits(lambda limits: limits.block_size)[place])
    return memory.max_model_len(float(available), float(use.kv_longest[place]), drafts, block)


def _more_nodes(evaluation: PlanEvaluation, offering: Offering) -> str:
    """Say how many nodes hold it where all accelerators of those that the spec pins do not; else empty."""
    candidates, requirements, card = evaluation.candidates, evaluation.requirements, offering.accelerator
    pinned, limit = requirements.parallelism.pipeline, requirements.accelerators.max_per_replica
    is_possible = offering.engine.name == EngineName.VLLM and not memory.on_cpu(card) and candidates.data == 1
    if pinned is None or not is_possible:
        return ""
    place, engine, accelerator = offering.place, candidates.engine, candidates.accelerator
    same = (accelerator == accelerator[place]) & (engine == engine[place])
    tensor = int(candidates.tensor[same].max())
    largest = np.flatnonzero(same & (candidates.tensor == tensor) & ~evaluation.lacking)
    if any(_max_tokens(evaluation, place) > 0 for place in largest.tolist()):
        return ""
    # The same, draft and all, on each number of nodes.
    more = take(candidates, np.repeat(largest, len(STAGES)))
    more = replace(more, nodes=np.tile(np.array(STAGES, float), len(largest)))
    fits = estimate_memory(more, requirements).fits & (more.nodes > pinned)
    fits &= more.per_replica <= (np.inf if limit is None else limit)
    if not fits.any():
        return ""
    nodes, where = int(more.nodes[fits].min()), "one node" if pinned == 1 else f"each of {pinned} nodes"
    fact = f"{tensor} x {card.name} on {where} do not hold them either; {nodes} nodes do"
    if tensor == offering.tensor:
        fact = f"{nodes} nodes hold them"
    return f" {fact}: set spec.parallelism.pipeline (now {pinned}) to {nodes}."
