"""Every way to serve, engine x accelerator x tensor degree x nodes x drafts, as arrays; its memory. Pure.

How an accelerator is paid for changes no speed and no memory: capacity types come in with the costs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from turbo_operator.api import EngineName, Method, Placement
from turbo_operator.planner.arrays import Indices, Mask, Numbers, take
from turbo_operator.planner.capabilities import ENGINES, Engine, divides, engine_of
from turbo_operator.planner.performance import memory, speculation
from turbo_operator.planner.performance.speculation import SpeculationOption
from turbo_operator.planner.requirements import Requirements
from turbo_operator.snapshot import Accelerator
from turbo_runtime.contract.config import BatchLimits

STAGES = (2, 3, 4, 6, 8)  # nodes of one replica that are tried where one does not hold the model


@dataclass(frozen=True)
class Candidates:
    """c candidates; each array has c elements."""

    accelerators: tuple[Accelerator, ...]
    draft_options: tuple[SpeculationOption, ...]
    engine: Indices  # of ENGINES
    accelerator: Indices  # of `accelerators`
    tensor: Numbers  # accelerators that share every layer
    nodes: Numbers  # stages of layers, each on a node of its own
    draft: Indices  # of `draft_options`
    data: int = 1  # groups of `tensor` accelerators that share the routed experts; pinned, 1 for all others

    def __len__(self) -> int:
        return len(self.engine)

    @cached_property
    def per_replica(self) -> Numbers:
        """Accelerators of one replica, a draft's own included."""
        own = self.by_draft(lambda draft: draft.placement == Placement.SEPARATE)
        return np.asarray(self.tensor * self.nodes * self.data + own)

    def by_engine(self, value: Callable[[Engine], float], dtype: type = float) -> NDArray[Any]:
        """Look up a value of each candidate's engine."""
        return np.array([value(engine) for engine in ENGINES], dtype)[self.engine]

    def by_limits(self, value: Callable[[BatchLimits], float]) -> Numbers:
        """Look up a limit of a step of each candidate's engine on its hardware."""
        cpus, gpus = (self.by_engine(lambda e: value(e.on_cpus)), self.by_engine(lambda e: value(e.on_gpus)))
        return np.where(self.by_accelerator(memory.on_cpu, bool), cpus, gpus)

    def by_accelerator(self, value: Callable[[Accelerator], float], dtype: type = float) -> NDArray[Any]:
        """Look up a value of each candidate's accelerator."""
        return np.array([value(row) for row in self.accelerators], dtype)[self.accelerator]

    def by_draft(self, value: Callable[[SpeculationOption], float], dtype: type = float) -> NDArray[Any]:
        """Look up a value of the way each candidate speculates."""
        return np.array([value(draft) for draft in self.draft_options], dtype)[self.draft]


def enumerate_candidates(requirements: Requirements) -> Candidates:
    """List all that the spec leaves open, whether or not it fits."""
    spec, draft = requirements.inputs.spec, requirements.inputs.draft
    options = [
        (number, option)
        for number, engine in enumerate(ENGINES)
        if engine.name in spec.engines
        for option in speculation.list_options(
            spec.speculation, engine, requirements.shape, draft, requirements.inputs.trained
        )
    ]
    layouts = [_layouts(requirements, row) for row in requirements.rows]

    def is_placed(placement: Placement | None, row: Accelerator, tensor: int) -> bool:
        """Whether a draft may be there; what the spec asks for is told from where it cannot."""
        if placement in (None, Placement.COLOCATED, spec.speculation.placement):
            return True
        is_short = placement == Placement.SEPARATE and not requirements.has_room(row, tensor)
        return not (memory.on_cpu(row) or is_short)

    def is_divided(engine: EngineName, tensor: int, nodes: int) -> bool:
        """Whether an engine may divide the model so; of what is pinned it is told why not."""
        if engine == EngineName.VLLM:
            return requirements.parallelism.tensor is not None or divides(requirements.shape, tensor)
        return nodes == 1 or requirements.parallelism.pipeline is not None

    rows = [
        (number, place, tensor, nodes, way)
        for way, (number, _) in enumerate(options)
        for place, layout in enumerate(layouts)
        for tensor, nodes in layout
        if is_divided(ENGINES[number].name, tensor, nodes)
        if is_placed(options[way][1].placement, requirements.rows[place], tensor)
    ]
    engine_of, accelerator_of, tensors, stages, draft_of = np.array(rows, np.int64).reshape(-1, 5).T
    degrees, drafts = (tensors.astype(float), stages.astype(float)), tuple(option for _, option in options)
    columns = (engine_of, accelerator_of, *degrees, draft_of)
    candidates = Candidates(requirements.rows, drafts, *columns, requirements.parallelism.data or 1)
    limit = requirements.accelerators.max_per_replica
    return candidates if limit is None else take(candidates, np.flatnonzero(candidates.per_replica <= limit))


def _layouts(requirements: Requirements, accelerator: Accelerator) -> list[tuple[int, int]]:
    """Pairs of tensor degree and nodes that could be; a pinned degree is the only one."""
    pinned, heads = requirements.parallelism, requirements.shape.heads
    tensor, pipeline = pinned.tensor, pinned.pipeline
    data = pinned.data or 1
    if memory.on_cpu(accelerator):
        return [(1, 1)] if {tensor, pipeline, data} <= {None, 1} else []
    per_node = requirements.accelerators_per_node(accelerator)
    degrees = [
        degree
        for degree in ((1, 2, 4, 8, 16, 32, 64) if tensor is None else (tensor,))
        if degree * data <= per_node and heads % degree == 0
    ]
    if pipeline is not None:
        return [(degree, pipeline) for degree in degrees]
    layouts = [(degree, 1) for degree in degrees]
    whole = [degree for degree in degrees if divides(requirements.shape, degree)]  # vLLM alone has stages
    if data == 1 and whole and (stages := min_stages(requirements, accelerator, whole[-1])) > 1:
        layouts.append((whole[-1], stages))
    return layouts


def min_stages(requirements: Requirements, accelerator: Accelerator, tensor: int) -> int:
    """Find the smallest number of nodes that holds the weights and one request; 0 if none does."""
    shape, length, nodes = requirements.shape, requirements.max_model_len, np.array((1, *STAGES))
    element = requirements.element_bytes(accelerator)
    limits = engine_of(EngineName.VLLM).on_gpus
    total = memory.stage_bytes(shape, memory.weights(shape, element), element, nodes) / tensor
    cache = memory.kv_bytes(shape, element, tensor, length, slides=True) * length
    activations = memory.activation_bytes(
        shape, element, tensor, limits.max_num_seqs, limits.max_num_batched_tokens, 0.0
    )
    adapters = requirements.adapter_bytes(element, tensor, nodes)
    need = total + adapters + cache * memory.largest_stage(shape.layers, nodes) + activations
    return next(iter(nodes[need <= memory.usable(accelerator)].tolist()), 0)


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """What each accelerator of each candidate's replica holds, in bytes. [c]"""

    usable: Numbers
    element: Numbers  # bytes of one number that is computed with
    weights: Numbers
    drafting: Numbers  # weights of the draft and of adapters that are held in addition to the model's
    kv_request: Numbers  # one request of the maximum length, in whole grains
    kv_longest: Numbers  # one token in the mean over a request of the maximum length
    activations: Numbers  # of the largest pass
    loading: Numbers  # the peak before any KV is used
    slots: Numbers  # requests of the planned lengths that are held together
    pool: Numbers  # of the KV cache
    host: Numbers  # of a draft on the host's cores, in addition to what lies on the accelerators

    @property
    def fits(self) -> Mask:
        """Whether the longest request can be served, by the draft too."""
        return np.asarray((self.need <= self.usable) & (self.pool >= self.kv_request))

    @property
    def need(self) -> Numbers:
        """The minimum that serves: everything but the reserve."""
        serving = self.weights + self.drafting + self.kv_request + self.activations
        return np.asarray(np.maximum(serving, self.loading))

    @property
    def total(self) -> Numbers:
        """What is taken, the whole pool included; without the reserve."""
        serving = self.weights + self.drafting + self.pool + self.activations
        return np.asarray(np.maximum(serving, self.loading))


def estimate_memory(candidates: Candidates, requirements: Requirements) -> MemoryUse:
    """Estimate the memory of every candidate."""
    shape, length = requirements.shape, requirements.max_model_len
    tensor, nodes, data = candidates.tensor, candidates.nodes, candidates.data
    cpu = candidates.by_accelerator(memory.on_cpu, bool)
    element = candidates.by_accelerator(requirements.element_bytes)
    reserve = np.where(cpu, candidates.by_engine(lambda engine: engine.cores_reserve), 0.0)
    usable = np.maximum(candidates.by_accelerator(memory.usable) - reserve, 0.0)
    running = candidates.by_limits(lambda limits: limits.max_num_seqs)
    step_tokens = candidates.by_limits(lambda limits: limits.max_num_batched_tokens)
    block = candidates.by_limits(lambda limits: limits.block_size)
    forgets = candidates.by_engine(lambda engine: engine.forgets, bool)
    quantized = candidates.by_engine(lambda engine: engine.quantized, bool)
    tokens = candidates.by_draft(lambda option: option.max_draft_tokens)

    served = memory.weights(shape, element, quantized)
    # Every data-parallel group holds the dense weights, and all of them together the routed experts, whole
    # ones or slices (vllm/config/parallel.py, data_parallel_size).
    served = replace(served, expert=served.expert / data)
    total = memory.stage_bytes(shape, served, element, nodes)
    # On cores a head that shares the embedding's weights is laid out twice, as its products need it.
    second_head = np.where(cpu, shape.vocab_size * shape.hidden_size * element, 0.0)
    # Ranks of Turbo may have a KV head more than others, with what belongs to it.
    is_turbo = candidates.by_engine(lambda engine: engine.name == EngineName.TURBO, bool)
    share = np.where(is_turbo, memory.largest_rank(shape, tensor), 1.0 / tensor)
    weights = np.ceil((total + second_head) * share)

    def cached(mean_over: float) -> Numbers:
        token = memory.kv_bytes(shape, element, tensor, mean_over, forgets)
        return np.asarray(token * memory.largest_stage(shape.layers, nodes))

    draft = _draft_memory(candidates, requirements, element)
    drafting, draft_cache = draft.weights, draft.cache
    if requirements.inputs.spec.adapters:  # on cores both the adapters and their slots are there
        drafting = drafting + np.ceil(requirements.adapter_bytes(element, tensor, nodes)) * np.where(
            cpu, 2.0, 1.0
        )
    if requirements.inputs.spec.speculation.has_trained:
        # Of a model that ranks share, heads that draft read whole tables of the vocabulary, on the first.
        tables = np.where(
            is_turbo & (tensor > 1.0), 2.0 * shape.vocab_size * shape.hidden_size * element, 0.0
        )
        drafting = drafting + tables
    joining = np.zeros(len(candidates))  # bytes of one token in the caches of drafts that are taken up later
    if requirements.inputs.spec.awaits_eagle3:
        layers = 1 + len(requirements.inputs.spec.speculation.named_drafts or ())
        weight = layers * speculation.head_parameters(Method.EAGLE3, shape, 0) * element
        drafting = drafting + np.where(is_turbo, weight, 0.0)
        joining = np.where(is_turbo, layers * memory.cached_elements(shape, tensor) * element, 0.0)
        draft_cache = draft_cache + joining
    planned = min(requirements.demand.prompt.mean + requirements.demand.output.mean, float(length))
    kv_longest = np.ceil(cached(float(length)) + draft_cache)
    kv_request = np.asarray(memory.whole_grains(kv_longest * memory.request_tokens(length, tokens, block)))
    kv_token = cached(planned) + draft_cache
    # Of routed experts each accelerator is given the tokens of all groups (allgather_reducescatter, vLLM's
    # default of --all2all-backend).
    activations = np.asarray(
        memory.activation_bytes(shape, element, tensor * data, running, step_tokens * data, tokens)
    )
    remaining = usable - weights - drafting - activations
    if requirements.inputs.spec.awaits_eagle3:
        # Its cache comes in addition to the pool where pods run before it, and is of the pool in later ones.
        remaining = np.where(is_turbo, remaining / (1.0 + joining / kv_longest), remaining)
    room = np.minimum(remaining, draft.max_tokens * kv_longest)
    pool = np.minimum(np.floor(room / memory.KV_GRAIN) * memory.KV_GRAIN, running * kv_request)
    one = kv_token * memory.request_tokens(0, tokens + planned, block)
    slots = np.clip(np.floor(pool / one), 1.0, running)
    slots = slots * data  # each with a cache and a batch of its own
    converts = cpu & (shape.dtype not in memory.ELEMENT_BYTES)
    loading = np.where(converts, 2.0 * weights, weights)
    # A draft model has room for every token that the pool has, wherever it is.
    host = draft.host_weights + np.where(draft.host_cache > 0.0, pool / kv_longest, 0.0) * draft.host_cache
    return MemoryUse(
        usable,
        element,
        weights,
        drafting,
        kv_request,
        kv_longest,
        activations,
        loading,
        slots,
        pool,
        np.ceil(np.maximum(host, 0.0) / memory.KV_GRAIN) * memory.KV_GRAIN,
    )


@dataclass(frozen=True, slots=True)
class _DraftMemory:
    """What drafts hold, in bytes. [c]"""

    weights: Numbers  # on each of the model's accelerators
    cache: Numbers  # of one token, there
    max_tokens: Numbers  # for which one on an accelerator of its own has a cache; inf elsewhere
    host_weights: Numbers  # on the host's cores, twice while they are loaded
    host_cache: Numbers  # of one token, there


def _draft_memory(candidates: Candidates, requirements: Requirements, element: Numbers) -> _DraftMemory:
    """Estimate what the drafts of all candidates hold."""
    shape, draft, length = requirements.shape, requirements.inputs.draft, requirements.max_model_len
    weights, cache, host_weights, host_cache = np.zeros((4, len(candidates)))
    max_tokens = np.full(len(candidates), np.inf)
    cpu = candidates.by_accelerator(memory.on_cpu, bool)
    step_tokens = candidates.by_limits(lambda limits: limits.max_num_batched_tokens)
    running = candidates.by_limits(lambda limits: limits.max_num_seqs)
    quantized = candidates.by_engine(lambda engine: engine.quantized, bool)
    for number, option in enumerate(candidates.draft_options):
        mine = candidates.draft == number
        if option.placement is None or not mine.any():
            continue
        tensor, own = candidates.tensor[mine], element[mine]
        if option.method != Method.DRAFT_MODEL:
            extra = speculation.head_parameters(option.method, shape, option.max_draft_tokens)
            weights[mine] = np.ceil(extra * own / tensor)
            layers = {str(Method.EAGLE3): 1, str(Method.MTP): shape.mtp_layers}.get(option.method, 0)
            cache[mine] = memory.cached_elements(shape, tensor) * own * layers
            continue
        assert draft is not None  # no such option without one
        total = memory.weights(draft, own, quantized[mine]).total
        one = memory.kv_bytes(draft, own, 1.0, float(length))
        second_head = np.where(cpu[mine], draft.vocab_size * draft.hidden_size * own, 0.0)
        is_beside = cpu[mine] | (option.placement == Placement.COLOCATED)
        weights[mine] = np.where(is_beside, np.ceil((total + second_head) / tensor), 0.0)
        cache[mine] = np.where(is_beside, memory.kv_bytes(draft, own, tensor, float(length)), 0.0)
        if option.placement == Placement.CPU:
            host_weights[mine] = np.where(is_beside, 0.0, 2.0 * total)
            host_cache[mine] = np.where(is_beside, 0.0, one)
        elif option.placement == Placement.SEPARATE:
            # One that fits on its own accelerator takes nothing here, else all there is.
            usable = candidates.by_accelerator(memory.usable)[mine]
            tokens, rows = step_tokens[mine], running[mine]
            left = usable - total - memory.activation_bytes(draft, own, 1.0, rows, tokens, 0.0)
            needed = one * memory.request_tokens(length, float(option.max_draft_tokens))
            weights[mine] = np.where(is_beside | (left >= needed), weights[mine], usable)
            max_tokens[mine] = np.where(is_beside | (left < needed), np.inf, left / one)
    return _DraftMemory(weights, cache, max_tokens, host_weights, host_cache)
