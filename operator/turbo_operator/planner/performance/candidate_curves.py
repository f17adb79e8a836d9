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
from typing import Any

import numpy as np

from turbo_operator.api import Method, Placement
from turbo_operator.planner.arrays import Indices, Mask, Numbers, take
from turbo_operator.planner.candidates import Candidates, MemoryUse
from turbo_operator.planner.capabilities import ENGINES
from turbo_operator.planner.performance import curves, memory, speculation, step_time
from turbo_operator.planner.performance.calibration import Calibration
from turbo_operator.planner.performance.step_time import BY_ENGINE, NAMES, Coefficients, ForwardCost, Machine
from turbo_operator.planner.requirements import Requirements
from turbo_operator.snapshot import Accelerator
from turbo_runtime.contract.model import ModelShape

# A device without tensor cores for float32 does a sixteenth of its bfloat16 operations in it; cores are
# stated in what they do.
FLOAT32_SHARE = 1.0 / 16.0
TYPE_OF = {"fp8": "fp8", "int8": "int8", "int4": "bf16", "mxfp4": "fp4", "nvfp4": "fp4"}
HOST_CORES = 8.0  # that a draft on the host's cores may use
# Of one hop between nodes, however little is sent: a message over TCP within a zone and its two processes.
# With RDMA it is a fifth of that.
HOP_SECONDS = 100e-6
SENT = 2  # a stage hands on the activations and, not yet added, their residual
Calibrations = Mapping[tuple[str, str], Calibration]  # by engine and accelerator


@dataclass(frozen=True, slots=True)
class Rates:
    """What is known of each accelerator, as arrays over the catalog's rows; NaN is unknown."""

    bandwidth: Numbers
    flops: Numbers  # [engines, rows] in the type that dense layers are computed in
    expert_flops: Numbers  # [engines, rows]
    attention_flops: Numbers  # [rows]
    link: Numbers
    network: Numbers
    coefficients: dict[str, Numbers]  # [engines, rows] by name


def compute_types(shape: ModelShape) -> tuple[str, str]:
    """Return the types that dense layers and routed experts are computed in where hardware has them."""
    quantized = TYPE_OF.get(shape.quantization or "", "bf16")
    dense = quantized if shape.quantized_parameters > shape.expert_parameters else "bf16"
    return dense, quantized if shape.quantized_parameters else "bf16"


def build_rates(accelerators: tuple[Accelerator, ...], requirements: Requirements) -> Rates:
    """Collect the catalog's figures for this model."""
    dense_type, expert_type = compute_types(requirements.shape)

    def flops(compute_type: str, quantized: bool) -> list[float]:
        rates = []
        for row in accelerators:
            rate = row.flops.get("bf16", np.nan)
            if quantized:
                rate = row.flops.get(compute_type, rate)
            slow = requirements.element_bytes(row) == 4 and not memory.on_cpu(row)
            rates.append(rate * FLOAT32_SHARE if slow else rate)
        return rates

    by_engine = [[BY_ENGINE[engine.name].over(row.efficiency) for row in accelerators] for engine in ENGINES]
    return Rates(
        bandwidth=np.array([row.memory_bandwidth or np.nan for row in accelerators]),
        flops=np.array([flops(dense_type, engine.quantized) for engine in ENGINES]),
        expert_flops=np.array([flops(expert_type, engine.quantized) for engine in ENGINES]),
        attention_flops=np.array(flops("bf16", False)),
        link=np.array([row.link_bandwidth or np.nan for row in accelerators]),
        network=np.array([row.network_bandwidth or np.nan for row in accelerators]),
        coefficients={
            name: np.array([[getattr(own, name) for own in row] for row in by_engine]) for name in NAMES
        },
    )


def has_known_speed(candidates: Candidates, rates: Rates) -> Mask:
    """Whether the rates of each candidate's accelerator are all known."""
    stated = ~np.isnan(rates.bandwidth + rates.flops[0])[candidates.accelerator]
    linked = (candidates.tensor == 1) | ~np.isnan(rates.link)[candidates.accelerator]
    joined = (candidates.nodes == 1) | ~np.isnan(rates.network)[candidates.accelerator]
    return np.asarray(stated & linked & joined)


def build_engines(
    candidates: Candidates,
    memory_use: MemoryUse,
    rates: Rates,
    requirements: Requirements,
    draft: ModelShape | None,
    calibrations: Calibrations,
) -> tuple[curves.Engines, Indices]:
    """Build the curves of candidates that fit and whose speed is known, and their drafts [c, GRID]."""
    shape, nodes = requirements.shape, candidates.nodes
    rows = curves.rows(memory_use.slots)
    machine = _machine(candidates, rates)
    context = requirements.demand.held
    work = _work(candidates, memory_use, shape, context)
    decode_factor, prefill_factor = _factors(candidates, calibrations)
    groups = np.minimum(rows, nodes[:, None])
    together = rows / groups
    uneven = nodes * memory.largest_stage(shape.layers, nodes)
    hops = _hops(candidates, rates, shape)
    step_tokens = candidates.by_engine(lambda engine: engine.max_num_batched_tokens)

    def step(places: Indices) -> Callable[[float], Numbers]:
        own, what = take(machine, places), take(work, places)
        few, factor = together[places], (decode_factor * uneven)[places][:, None]
        budget = step_tokens[places][:, None]
        fixed, per_token = (part[places][:, None] for part in hops)

        def seconds(k: float) -> Numbers:
            passed = step_time.decode_seconds(own, what, few, k, context)
            taken = passed * factor + fixed + per_token * few * (k + 1.0)
            return np.where(few * (k + 1.0) <= budget, taken, np.inf)

        return seconds

    decode = np.empty_like(rows)
    drafts = np.zeros(rows.shape, np.int64)
    committed = np.ones_like(rows)
    for number, option in enumerate(candidates.drafts):
        places = np.flatnonzero(candidates.draft == number)
        if len(places) == 0:
            continue
        passes = step(places)
        plain = passes(0.0) if option.gains else together[places]
        model = together[places]
        if option.method == Method.DRAFT_MODEL:
            assert draft is not None  # no such option without one
            model = _draft_model_seconds(option, take(candidates, places), rates, model, context, draft)
        drafting = _drafting(option.method, groups[places], shape, plain, model)
        decode[places], drafts[places] = speculation.find_fastest(option, passes, drafting)
        tau = np.array([speculation.committed(option.method, k) for k in range(option.max_draft_tokens + 1)])
        committed[places] = tau[drafts[places]]
    prompt = requirements.demand.prompt.mean
    read = np.ravel(step_time.prefill_seconds(machine, work, prompt)) * prefill_factor
    fixed = np.ravel(machine.coefficients.prefill_layer_seconds) * shape.layers
    engines = curves.Engines(
        rows=rows,
        decode=decode,
        prefill=read * uneven / prompt / nodes,
        # What decoding and verification leave of a step, where they leave the minimum.
        chunk=(np.maximum(step_tokens[:, None] - together * (drafts + 1.0), 1.0) / committed).min(axis=1),
        # All stages read the prompt one after the other; only one of them is busy with it.
        first=fixed + read * uneven * (1.0 - 1.0 / nodes) + hops[0] + hops[1] * prompt,
    )
    return engines, drafts


def _drafting(
    method: str, groups: Numbers, shape: ModelShape, plain: Numbers, model: Numbers
) -> Callable[[int], Numbers]:
    """Seconds to make k drafts of each request; the last stage makes those of all groups in turn."""
    return lambda k: groups * speculation.draft_seconds(method, k, shape, plain, model)


def _machine(candidates: Candidates, rates: Rates) -> Machine:
    """Columns [c, 1]: they broadcast against rows."""
    row = candidates.accelerator
    both = (candidates.engine, row)
    coefficients: dict[str, Any] = {name: rates.coefficients[name][both][:, None] for name in NAMES}
    return Machine(
        bandwidth=rates.bandwidth[row][:, None],
        flops=rates.flops[both][:, None],
        expert_flops=rates.expert_flops[both][:, None],
        attention_flops=rates.attention_flops[row][:, None],
        link=np.where(candidates.tensor == 1, np.inf, rates.link[row])[:, None],
        tensor=candidates.tensor[:, None],
        coefficients=Coefficients(**coefficients),
    )


def _work(candidates: Candidates, memory_use: MemoryUse, shape: ModelShape, context: float) -> ForwardCost:
    element, tensor = memory_use.element, candidates.tensor
    quantized = candidates.by_engine(lambda engine: engine.quantized, bool)
    forgets = candidates.by_engine(lambda engine: engine.forgets, bool)
    stored = memory.weights(shape, element, quantized=True)
    converted = memory.weights(shape, element, quantized=False)
    with_window = memory.kv_bytes(shape, element, tensor, context, slides=True)
    whole = memory.kv_bytes(shape, element, tensor, context, slides=False)
    return step_time.build_work(
        shape,
        np.where(quantized, stored.dense, converted.dense)[:, None],
        np.where(quantized, stored.expert, converted.expert)[:, None],
        np.where(forgets, with_window, whole)[:, None],
    )


def _factors(candidates: Candidates, calibrations: Calibrations) -> tuple[Numbers, Numbers]:
    decode, prefill = np.ones(len(candidates)), np.ones(len(candidates))
    for (engine, accelerator), factors in calibrations.items():
        mine = _are(candidates, engine, accelerator)
        decode[mine], prefill[mine] = factors.decode, factors.prefill
    return decode, prefill


def is_calibrated(candidates: Candidates, calibrations: Calibrations) -> Mask:
    """Whether a measurement covers each candidate."""
    covered = np.zeros(len(candidates), bool)
    for engine, accelerator in calibrations:
        covered |= _are(candidates, engine, accelerator)
    return covered


def _are(candidates: Candidates, engine_name: str, accelerator_name: str) -> Mask:
    is_engine = candidates.by_engine(lambda engine: engine.name == engine_name, bool)
    return np.asarray(is_engine & candidates.by_accelerator(lambda row: row.name == accelerator_name, bool))


def _hops(candidates: Candidates, rates: Rates, shape: ModelShape) -> tuple[Numbers, Numbers]:
    """Seconds in which a token passes between all stages: of each pass, and more for each token in it.

    A stage's accelerators send a share each.
    """
    nodes = candidates.nodes
    sent = (nodes - 1.0) * SENT * shape.hidden_size * step_time.ACTIVATION_BYTES / candidates.tensor
    network = np.where(nodes > 1.0, rates.network[candidates.accelerator], np.inf)
    return np.where(nodes > 1.0, nodes * HOP_SECONDS, 0.0), sent / network


def _draft_model_seconds(
    option: speculation.SpeculationOption,
    candidates: Candidates,
    rates: Rates,
    together: Numbers,
    context: float,
    draft: ModelShape,
) -> Numbers:
    """One pass of the draft model: where the model is, on one accelerator more, or on the host's cores."""
    is_colocated = option.placement == Placement.COLOCATED
    machine = _machine(candidates, rates)
    if not is_colocated:
        machine = replace(machine, tensor=1.0, link=np.inf)
    if option.placement == Placement.CPU:
        stated = ~np.isnan(rates.bandwidth + rates.flops[0])
        rows = [row for row, own in enumerate(candidates.accelerators) if memory.on_cpu(own) and stated[row]]
        if not rows:
            return np.full_like(together, np.inf)
        share = HOST_CORES / float(candidates.accelerators[rows[0]].quantity)
        flops = rates.flops[0][rows[0]] * share
        machine = replace(
            machine,
            bandwidth=rates.bandwidth[rows[0]] * share,
            flops=flops,
            expert_flops=flops,
            attention_flops=flops,
        )
    element = 2.0
    tensor = candidates.tensor if is_colocated else np.ones(len(candidates))
    weights = memory.weights(draft, element)
    cache = np.asarray(memory.kv_bytes(draft, element, tensor, context))[:, None]
    work = step_time.build_work(draft, weights.dense, weights.expert, cache)
    return np.asarray(step_time.decode_seconds(machine, work, together, 0.0, context))
