"""Every way to serve, engine x accelerator x tensor degree x nodes x drafts, as arrays; its memory. Pure.

How an accelerator is paid for changes no speed and no memory: capacity types come in with the costs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from turbo_operator.api import EngineName, EngineType, Method, Placement, TurboDeploymentSpec
from turbo_operator.planner.engines import ENGINES, Engine
from turbo_operator.planner.performance import memory, speculation
from turbo_operator.planner.performance.speculation import SpeculationOption
from turbo_operator.planner.request import Requirements, computed_in
from turbo_operator.snapshot import Accelerator, Supply
from turbo_runtime.contract.model import ModelShape

Numbers = NDArray[np.float64]
Indices = NDArray[np.int64]

STAGES = (2, 3, 4, 6, 8)  # nodes of one replica that are tried where one does not hold the model


@dataclass(frozen=True, slots=True)
class Candidates:
    """c candidates; each array has c elements."""

    accelerators: tuple[Accelerator, ...]
    drafts: tuple[SpeculationOption, ...]
    engine: Indices  # of ENGINES
    accelerator: Indices  # of `accelerators`
    tensor: Numbers  # accelerators that share every layer
    nodes: Numbers  # stages of layers, each on a node of its own
    draft: Indices  # of `drafts`

    def __len__(self) -> int:
        return len(self.engine)

    @property
    def per_replica(self) -> Numbers:
        """Accelerators of one replica, a draft's own included."""
        own = np.array([draft.placement == Placement.SEPARATE for draft in self.drafts], float)
        found: Numbers = self.tensor * self.nodes + own[self.draft]
        return found

    def engine_of(self, index: int) -> Engine:
        """The engine of one candidate."""
        return ENGINES[int(self.engine[index])]

    def accelerator_of(self, index: int) -> Accelerator:
        """The accelerator of one candidate."""
        return self.accelerators[int(self.accelerator[index])]

    def draft_of(self, index: int) -> SpeculationOption:
        """How one candidate speculates."""
        return self.drafts[int(self.draft[index])]


def candidates(
    spec: TurboDeploymentSpec,
    request: Requirements,
    accelerators: Sequence[Accelerator],
    supply: Mapping[str, Supply] | None,
    draft: ModelShape | None,
) -> Candidates:
    """All that the spec leaves open, whether or not it fits."""
    drafts: list[SpeculationOption] = []
    rows: list[tuple[int, int, int, int, int]] = []
    engines = [
        (number, engine)
        for number, engine in enumerate(ENGINES)
        if spec.engine.type in (EngineType.AUTO, engine.name)
    ]
    layouts = [_layouts(request, each, (supply or {}).get(each.name)) for each in accelerators]
    for number, engine in engines:
        options = speculation.options(spec.speculation, engine, request.shape, draft)
        start = len(drafts)
        drafts += options
        rows += [
            (number, place, tensor, nodes, start + option)
            for place, each in enumerate(layouts)
            for tensor, nodes in each
            if nodes == 1 or request.pipeline or engine.name == EngineName.VLLM
            for option in range(len(options))
        ]
    table = np.array(rows, np.int64).reshape(-1, 5)
    found = Candidates(
        tuple(accelerators),
        tuple(drafts),
        table[:, 0],
        table[:, 1],
        table[:, 2].astype(float),
        table[:, 3].astype(float),
        table[:, 4],
    )
    if request.max_per_replica is None:
        return found
    return chosen_from(found, np.flatnonzero(found.per_replica <= request.max_per_replica))


def chosen_from(all_of: Candidates, places: Indices) -> Candidates:
    """Some of the candidates."""
    return Candidates(
        all_of.accelerators,
        all_of.drafts,
        all_of.engine[places],
        all_of.accelerator[places],
        all_of.tensor[places],
        all_of.nodes[places],
        all_of.draft[places],
    )


def per_node(accelerator: Accelerator, supply: Supply | None) -> int:
    """Accelerators of one node: as stated, or as the largest node that there is has; one where none is well,
    so that what cannot be had now is weighed and told.
    """
    if accelerator.per_node is not None:
        return accelerator.per_node
    return max((1, *(node.allocatable for node in supply.nodes))) if supply else 1


def _layouts(request: Requirements, accelerator: Accelerator, supply: Supply | None) -> list[tuple[int, int]]:
    """Pairs of tensor degree and nodes that could be; what is pinned is what there is."""
    if memory.on_cpu(accelerator):
        alone = request.tensor in (None, 1) and request.pipeline in (None, 1)
        return [(1, 1)] if alone else []
    room = per_node(accelerator, supply)
    heads = request.shape.heads
    degrees = [power for power in (1, 2, 4, 8, 16, 32, 64) if power <= room and heads % power == 0]
    if request.tensor is not None:
        degrees = [request.tensor] if request.tensor <= room and heads % request.tensor == 0 else []
    if not degrees:
        return []
    if request.pipeline is not None:
        return [(degree, request.pipeline) for degree in degrees]
    found = [(degree, 1) for degree in degrees]
    stages = _stages(request, accelerator, degrees[-1])
    return found if stages is None else [*found, (degrees[-1], stages)]


def _stages(request: Requirements, accelerator: Accelerator, tensor: int) -> int | None:
    """The fewest nodes that hold the weights and one request, where one node does not; None where none do."""
    room = memory.usable(accelerator)
    for nodes in (1, *STAGES):
        if _weights_and_cache(request, tensor, nodes) <= room:
            return None if nodes == 1 else nodes
    return None


def _weights_and_cache(request: Requirements, tensor: int, nodes: int) -> float:
    shape, length = request.shape, request.max_model_len
    element = memory.ELEMENT_BYTES[computed_in(request.dtype, shape, False)]
    held = memory.stage_bytes(shape, memory.weights(shape, element), element, nodes) / tensor
    cache = memory.kv_bytes(shape, element, tensor, length, slides=True) * length
    cache *= memory.largest_stage(shape.layers, nodes)
    engine = next(engine for engine in ENGINES if engine.name == EngineName.VLLM)
    activations = memory.activation_bytes(
        shape, element, tensor, engine.max_running, engine.max_step_tokens, 0.0
    )
    return float(held + cache + activations)


@dataclass(frozen=True, slots=True)
class Room:
    """What each accelerator of each candidate's replica holds, in bytes. [c]"""

    usable: Numbers
    element: Numbers  # bytes of one number that is computed with
    weights: Numbers
    drafting: Numbers  # weights of the draft that are held beside the model's
    kv_request: Numbers  # one request of the longest length, in whole grains
    kv_longest: Numbers  # one token in the mean over a request of the longest length
    kv_token: Numbers  # one token in the mean over a request of the planned lengths
    activations: Numbers  # of the largest pass
    loading: Numbers  # the peak before any KV is used
    slots: Numbers  # requests of the planned lengths that are held together
    pool: Numbers  # of the KV cache

    @property
    def fits(self) -> NDArray[np.bool_]:
        """Whether the longest request can be answered."""
        return self.need <= self.usable

    @property
    def need(self) -> Numbers:
        """The least that serves: everything but the reserve."""
        serving = self.weights + self.drafting + self.kv_request + self.activations
        held: Numbers = np.maximum(serving, self.loading)
        return held

    @property
    def held(self) -> Numbers:
        """What is taken, the whole pool included; without the reserve."""
        serving = self.weights + self.drafting + self.pool + self.activations
        taken: Numbers = np.maximum(serving, self.loading)
        return taken


def room(it: Candidates, request: Requirements, draft: ModelShape | None) -> Room:
    """The memory of every candidate."""
    shape, length = request.shape, request.max_model_len
    rows = it.accelerators
    cpu_row = np.array([memory.on_cpu(each) for each in rows], bool)
    element_row = np.array(
        [memory.ELEMENT_BYTES[computed_in(request.dtype, shape, memory.on_cpu(each))] for each in rows], float
    )
    usable = np.array([memory.usable(each) for each in rows], float)[it.accelerator]
    cpu, element = cpu_row[it.accelerator], element_row[it.accelerator]
    running = np.array([float(engine.max_running) for engine in ENGINES])[it.engine]
    step_tokens = np.array([float(engine.max_step_tokens) for engine in ENGINES])[it.engine]
    forgets = np.array([engine.forgets for engine in ENGINES])[it.engine]
    stored = np.array([engine.quantized for engine in ENGINES])[it.engine]
    tokens = np.array([float(each.max_draft_tokens) for each in it.drafts])[it.draft]

    total = np.where(
        stored,
        memory.stage_bytes(shape, memory.weights(shape, element, quantized=True), element, it.nodes),
        memory.stage_bytes(shape, memory.weights(shape, element, quantized=False), element, it.nodes),
    )
    weights = np.ceil((total + np.where(cpu, memory.second_head(shape) * element, 0.0)) / it.tensor)

    def cached(mean_over: float) -> Numbers:
        with_window = memory.kv_bytes(shape, element, it.tensor, mean_over, slides=True)
        whole = memory.kv_bytes(shape, element, it.tensor, mean_over, slides=False)
        found: Numbers = np.where(forgets, with_window, whole) * memory.largest_stage(shape.layers, it.nodes)
        return found

    drafting, draft_cache = _drafting(it, request, element, draft)
    planned = min(request.demand.prompt.mean + request.demand.answer.mean, float(length))
    kv_longest = np.ceil(cached(float(length)) + draft_cache)
    kv_request = memory.whole_grains(kv_longest * memory.request_tokens(length, tokens))
    kv_token = cached(planned) + draft_cache
    activations = memory.activation_bytes(shape, element, it.tensor, running, step_tokens, tokens)
    left = usable - weights - drafting - activations
    pool = np.minimum(np.floor(left / memory.KV_GRAIN) * memory.KV_GRAIN, running * kv_request)
    slots = np.clip(np.floor(pool / (kv_token * memory.request_tokens(0, tokens + planned))), 1.0, running)
    converts = cpu & (shape.dtype not in memory.ELEMENT_BYTES)
    return Room(
        usable=usable,
        element=element,
        weights=weights,
        drafting=drafting,
        kv_request=np.asarray(kv_request),
        kv_longest=kv_longest,
        kv_token=kv_token,
        activations=np.asarray(activations),
        loading=np.where(converts, 2.0 * weights, weights),
        slots=slots,
        pool=pool,
    )


def _drafting(
    it: Candidates, request: Requirements, element: Numbers, draft: ModelShape | None
) -> tuple[Numbers, Numbers]:
    """Bytes of the draft's weights and of its cache of one token, on each of the model's accelerators.

    One on an accelerator of its own must fit there; then it takes nothing here, else all there is.
    """
    shape = request.shape
    weights, cache = np.zeros(len(it)), np.zeros(len(it))
    for number, option in enumerate(it.drafts):
        mine = it.draft == number
        if option.placement is None or option.placement == Placement.CPU or not mine.any():
            continue
        tensor, own = it.tensor[mine], element[mine]
        if option.method != Method.DRAFT_MODEL:
            extra = speculation.head_parameters(option.method, shape, option.max_draft_tokens)
            weights[mine] = np.ceil(extra * own / tensor)
            layers = {Method.EAGLE3: 1, Method.MTP: shape.mtp_layers}.get(Method(option.method), 0)
            cache[mine] = memory.cached_elements(shape, tensor) * own * layers
            continue
        assert draft is not None  # no such option without one
        total = memory.weights(draft, own).total
        if option.placement == Placement.COLOCATED:
            weights[mine] = np.ceil(total / tensor)
            cache[mine] = memory.kv_bytes(draft, own, tensor, float(request.max_model_len))
        else:
            one = memory.kv_bytes(draft, own, 1.0, float(request.max_model_len)) * request.max_model_len
            usable = np.array([memory.usable(each) for each in it.accelerators], float)[it.accelerator[mine]]
            weights[mine] = np.where(total + one <= usable, 0.0, usable)
    return weights, cache
