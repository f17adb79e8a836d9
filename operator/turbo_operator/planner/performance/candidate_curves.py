"""How fast each candidate is: its step times as curves over requests decoded together. Pure.

The step-time model is `steptime`'s; what is here looks up the rates of each candidate's accelerator, adds
the hops between pipeline stages, and chooses the number of drafts.

A replica of s stages, each with a share of the layers on a node of its own, keeps g groups of its n requests
under way, one in each stage: g = min(n, s), since fewer requests than stages leave stages idle. A token
passes all stages with its group, so that n requests get one each in

    T(n / g) u + h + g D

T is a pass through all layers: the weights are read once for each group, which is what a pipeline costs. All
stages last as long as the largest: u = s ceil(L / s) / L. h are the hops, s - 1 with the activations and one
back with the token. The last stage also makes the drafts, D, of every group in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from turbo_operator.api import Method, Placement
from turbo_operator.planner.candidates import Candidates, Indices, Room, chosen_from
from turbo_operator.planner.engines import ENGINES
from turbo_operator.planner.performance import capacity, memory, speculation, step_time
from turbo_operator.planner.performance.coefficients import BY_ENGINE, NAMES, Coefficients
from turbo_operator.planner.performance.step_time import ForwardCost, Machine
from turbo_operator.planner.request import Requirements
from turbo_operator.snapshot import Accelerator
from turbo_runtime.contract.model import ModelShape

Numbers = NDArray[np.float64]

# A device without tensor cores for float32 does a sixteenth of its bfloat16 operations in it; cores are
# stated in what they do.
FLOAT32_SHARE = 1.0 / 16.0
TYPE_OF = {"fp8": "fp8", "int8": "int8", "int4": "bf16", "mxfp4": "fp4", "nvfp4": "fp4"}
HOST_CORES = 8.0  # that a draft on the host's cores may use
# Of one hop between nodes, however little is sent: a message over TCP within a zone and its two processes.
# With RDMA it is a fifth of that.
HOP_SECONDS = 100e-6
SENT = 2  # a stage hands on the activations and, not yet added, their residual


class Factors(Protocol):
    """What measured step times are to the model's."""

    @property
    def decode(self) -> float:
        """Of a step that decodes."""

    @property
    def prefill(self) -> float:
        """Of reading a prompt."""


# By engine and accelerator.
Calibrations = Mapping[tuple[str, str], Factors]


@dataclass(frozen=True, slots=True)
class Rates:
    """What is known of each accelerator, as arrays over the catalogue's rows; NaN is unknown."""

    bandwidth: Numbers
    flops: Numbers  # [engines, rows] in the type that dense layers are computed in
    expert_flops: Numbers  # [engines, rows]
    attention_flops: Numbers  # [rows]
    link: Numbers
    network: Numbers
    coefficients: dict[str, Numbers]  # [engines, rows] by name


def kinds(shape: ModelShape) -> tuple[str, str]:
    """The types that dense layers and routed experts are computed in where there is hardware for them."""
    kind = TYPE_OF.get(shape.quantization or "", "bf16")
    dense = kind if shape.quantized_parameters > shape.expert_parameters else "bf16"
    return dense, kind if shape.quantized_parameters else "bf16"


def rates(accelerators: tuple[Accelerator, ...], request: Requirements, element: Numbers) -> Rates:
    """The catalogue's figures for this model; `element` is the bytes of one number on each row."""
    dense_kind, expert_kind = kinds(request.shape)

    def flops(of: str, quantized: bool) -> list[float]:
        found = []
        for each, size in zip(accelerators, element, strict=True):
            rate = each.flops.get("bf16", np.nan)
            if quantized:
                rate = each.flops.get(of, rate)
            slow = size == 4 and not memory.on_cpu(each)
            found.append(rate * FLOAT32_SHARE if slow else rate)
        return found

    own = [[BY_ENGINE[engine.name].over(each.efficiency) for each in accelerators] for engine in ENGINES]
    return Rates(
        bandwidth=np.array([each.memory_bandwidth or np.nan for each in accelerators]),
        flops=np.array([flops(dense_kind, engine.quantized) for engine in ENGINES]),
        expert_flops=np.array([flops(expert_kind, engine.quantized) for engine in ENGINES]),
        attention_flops=np.array(flops("bf16", False)),
        link=np.array([each.link_bandwidth or np.nan for each in accelerators]),
        network=np.array([each.network_bandwidth or np.nan for each in accelerators]),
        coefficients={
            name: np.array([[getattr(each, name) for each in row] for row in own]) for name in NAMES
        },
    )


def known(it: Candidates, of: Rates) -> NDArray[np.bool_]:
    """Whether the speed of each candidate can be told."""
    stated = ~np.isnan(of.bandwidth + of.flops[0])[it.accelerator]
    linked = (it.tensor == 1) | ~np.isnan(of.link)[it.accelerator]
    joined = (it.nodes == 1) | ~np.isnan(of.network)[it.accelerator]
    found: NDArray[np.bool_] = stated & linked & joined
    return found


def engines(
    it: Candidates,
    room: Room,
    of: Rates,
    request: Requirements,
    draft: ModelShape | None,
    calibrations: Calibrations,
) -> tuple[capacity.Engines, Indices]:
    """The curves of candidates that fit and whose speed is known, and their drafts [c, GRID]."""
    rows = capacity.rows(room.slots)
    machine = _machine(it, of)
    context = request.demand.held
    work = _work(it, room, request, context)
    decode_factor, prefill_factor = _factors(it, calibrations)
    groups = np.minimum(rows, it.nodes[:, None])
    together = rows / groups
    uneven = it.nodes * memory.largest_stage(request.shape.layers, it.nodes)
    hops = _hops(it, of, request.shape)
    step_tokens = np.array([float(engine.max_step_tokens) for engine in ENGINES])[it.engine]

    def step(places: Indices) -> Callable[[float], Numbers]:
        own, what = _of_machine(machine, places), _of_work(work, places)
        few, factor = together[places], (decode_factor * uneven)[places][:, None]
        budget = step_tokens[places][:, None]
        fixed, each = (part[places][:, None] for part in hops)

        def seconds(k: float) -> Numbers:
            passed = step_time.decode_seconds(own, what, few, k, context)
            taken = passed * factor + fixed + each * few * (k + 1.0)
            return np.where(few * (k + 1.0) <= budget, taken, np.inf)

        return seconds

    decode = np.empty_like(rows)
    drafts = np.zeros(rows.shape, np.int64)
    committed = np.ones_like(rows)
    for number, option in enumerate(it.drafts):
        places = np.flatnonzero(it.draft == number)
        if len(places) == 0:
            continue
        passes = step(places)
        drafting = _drafting(option, it, of, places, (together, groups), request, draft, passes)
        decode[places], drafts[places] = speculation.fastest(option, passes, drafting)
        tau = np.array([speculation.committed(option.method, k) for k in range(option.max_draft_tokens + 1)])
        committed[places] = tau[drafts[places]]
    prompt = request.demand.prompt.mean
    read = np.ravel(step_time.prefill_seconds(machine, work, prompt)) * prefill_factor
    fixed = np.ravel(machine.coefficients.prefill_layer_seconds) * request.shape.layers
    made = capacity.Engines(
        rows=rows,
        decode=decode,
        prefill=read * uneven / prompt / it.nodes,
        # What decoding and verification leave of a step, where they leave least.
        chunk=(np.maximum(step_tokens[:, None] - together * (drafts + 1.0), 1.0) / committed).min(axis=1),
        # All stages read the prompt one after the other; only one of them is busy with it.
        first=fixed + read * uneven * (1.0 - 1.0 / it.nodes) + hops[0] + hops[1] * prompt,
    )
    return made, drafts


def _machine(it: Candidates, of: Rates) -> Machine:
    """Columns [c, 1]: they broadcast against rows."""
    where = (it.engine, it.accelerator)
    link = np.where(it.tensor == 1, np.inf, of.link[it.accelerator])
    return Machine(
        bandwidth=of.bandwidth[it.accelerator][:, None],
        flops=of.flops[where][:, None],
        expert_flops=of.expert_flops[where][:, None],
        attention_flops=of.attention_flops[it.accelerator][:, None],
        link=link[:, None],
        tensor=it.tensor[:, None],
        coefficients=_coefficients({name: of.coefficients[name][where][:, None] for name in NAMES}),
    )


def _work(it: Candidates, room: Room, request: Requirements, context: float) -> ForwardCost:
    shape = request.shape
    stored = np.array([engine.quantized for engine in ENGINES])[it.engine]
    forgets = np.array([engine.forgets for engine in ENGINES])[it.engine]
    as_stored = memory.weights(shape, room.element, quantized=True)
    converted = memory.weights(shape, room.element, quantized=False)
    cache = np.where(
        forgets,
        memory.kv_bytes(shape, room.element, it.tensor, context, slides=True),
        memory.kv_bytes(shape, room.element, it.tensor, context, slides=False),
    )
    return step_time.work(
        shape,
        np.where(stored, as_stored.dense, converted.dense)[:, None],
        np.where(stored, as_stored.expert, converted.expert)[:, None],
        cache[:, None],
    )


def _coefficients(columns: Mapping[str, Any]) -> Coefficients:
    """Coefficients whose numbers are arrays, one element per candidate."""
    return Coefficients(**columns)


def _of_machine(machine: Machine, places: Indices) -> Machine:
    def own(value: object) -> Numbers:
        return np.asarray(value)[places]

    return Machine(
        own(machine.bandwidth),
        own(machine.flops),
        own(machine.expert_flops),
        own(machine.attention_flops),
        own(machine.link),
        own(machine.tensor),
        _coefficients({name: own(getattr(machine.coefficients, name)) for name in NAMES}),
    )


def _of_work(work: ForwardCost, places: Indices) -> ForwardCost:
    return replace(
        work,
        dense_bytes=np.asarray(work.dense_bytes)[places],
        expert_bytes=np.asarray(work.expert_bytes)[places],
        kv_bytes=np.asarray(work.kv_bytes)[places],
    )


def _factors(it: Candidates, calibrations: Calibrations) -> tuple[Numbers, Numbers]:
    decode, prefill = np.ones(len(it)), np.ones(len(it))
    for measured, factors in calibrations.items():
        mine = _are(it, *measured)
        decode[mine], prefill[mine] = factors.decode, factors.prefill
    return decode, prefill


def is_calibrated(it: Candidates, calibrations: Calibrations) -> NDArray[np.bool_]:
    """The candidates that a measurement speaks of."""
    found = np.zeros(len(it), bool)
    for measured in calibrations:
        found |= _are(it, *measured)
    return found


def _are(it: Candidates, engine_name: str, accelerator_name: str) -> NDArray[np.bool_]:
    engine = np.array([each.name == engine_name for each in ENGINES])[it.engine]
    accelerator = np.array([each.name == accelerator_name for each in it.accelerators], bool)
    found: NDArray[np.bool_] = engine & accelerator[it.accelerator]
    return found


def _hops(it: Candidates, of: Rates, shape: ModelShape) -> tuple[Numbers, Numbers]:
    """Seconds in which a token passes between all stages: of each pass, and more for each token in it.

    A stage's accelerators send a share each.
    """
    several = it.nodes > 1.0
    sent = (it.nodes - 1.0) * SENT * shape.hidden_size * step_time.ACTIVATION_BYTES / it.tensor
    network = np.where(several, of.network[it.accelerator], np.inf)
    return np.where(several, it.nodes * HOP_SECONDS, 0.0), sent / network


def _drafting(
    option: speculation.SpeculationOption,
    it: Candidates,
    of: Rates,
    places: Indices,
    grouped: tuple[Numbers, Numbers],
    request: Requirements,
    draft: ModelShape | None,
    passes: Callable[[float], Numbers],
) -> Callable[[int], Numbers]:
    """Seconds to make k drafts of each request; `grouped` [c, GRID] are those of a group, and the groups."""
    together, groups = (each[places] for each in grouped)
    plain = passes(0.0) if option.gains else together
    model = together
    if option.method == Method.DRAFT_MODEL:
        assert draft is not None
        model = _draft_model(option, chosen_from(it, places), of, together, request, draft)

    def seconds(k: int) -> Numbers:
        return groups * speculation.draft_seconds(option.method, k, request.shape, plain, model)

    return seconds


def _draft_model(
    option: speculation.SpeculationOption,
    it: Candidates,
    of: Rates,
    together: Numbers,
    request: Requirements,
    draft: ModelShape,
) -> Numbers:
    """One pass of the draft model: where the model is, on one accelerator more, or on the host's cores."""
    machine = _machine(it, of)
    if option.placement != Placement.COLOCATED:
        machine = replace(machine, tensor=1.0, link=np.inf)
    cores = [row for row, each in enumerate(it.accelerators) if memory.on_cpu(each)]
    if option.placement == Placement.CPU:
        known_cores = [row for row in cores if not np.isnan(of.bandwidth[row] + of.flops[0][row])]
        if not known_cores:
            return np.full_like(together, np.inf)
        row = known_cores[0]
        share = HOST_CORES / float(it.accelerators[row].quantity)
        machine = replace(
            machine,
            bandwidth=of.bandwidth[row] * share,
            flops=of.flops[0][row] * share,
            expert_flops=of.flops[0][row] * share,
            attention_flops=of.flops[0][row] * share,
        )
    element = 2.0
    tensor = it.tensor if option.placement == Placement.COLOCATED else np.ones(len(it))
    weights = memory.weights(draft, element)
    work = step_time.work(
        draft,
        weights.dense,
        weights.expert,
        np.asarray(memory.kv_bytes(draft, element, tensor, request.demand.held))[:, None],
    )
    return np.asarray(step_time.decode_seconds(machine, work, together, 0.0, request.demand.held))
