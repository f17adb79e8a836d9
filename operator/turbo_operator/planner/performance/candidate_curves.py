"""How fast each candidate is: its step times as curves over requests decoded together. Pure.

The step-time model is `step_time`'s; what is here looks up the rates of each candidate's accelerator, adds
the hops between pipeline stages, and chooses the number of drafts.

A replica of s stages, each with a share of the layers on a node of its own, keeps g groups of its n requests
under way, one in each stage: g = min(n, s), since fewer requests than stages leave stages idle. A token
passes all stages with its group, so that n requests get one each in

    T(n / g) u + h + g D

T is a pass through all layers: the weights are read once for each group, which is what a pipeline costs. All
stages last as long as the largest: u = s ceil(L / s) / L. h are the hops, s - 1 with the activations and one
back with the token. The last stage also makes the drafts, D, of every group in turn.

Of d data-parallel groups each decodes n / d of the requests, and all step together, since they share routed
experts (vLLM runs empty passes in groups without requests: vllm/v1/engine/core.py). The step-time model knows
such groups; 84 rows of its tables have several. That all wait while one reads a prompt is on the safe side.
All draft the same number whatever the load: of vLLM's own accord (_maybe_disable_dynamic_sd_for_data_parallel
in vllm/config/vllm.py), since groups whose passes differ would wait for one another for ever.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from turbo_operator.api import Method, Placement
from turbo_operator.planner.arrays import Indices, Mask, Numbers, take
from turbo_operator.planner.candidates import Candidates, MemoryUse
from turbo_operator.planner.capabilities import ENGINES, Engine
from turbo_operator.planner.performance import memory, queueing, speculation, step_time
from turbo_operator.planner.performance.speculation import SpeculationOption
from turbo_operator.planner.requirements import DRAFT_CORES, Requirements
from turbo_operator.snapshot import Accelerator
from turbo_runtime.contract.documents import ModelShape

# A device without tensor cores for float32 does a sixteenth of its bfloat16 operations in it; cores are
# stated in what they do.
FLOAT32_SHARE = 1.0 / 16.0
TYPE_OF = {"fp8": "fp8", "int8": "int8", "int4": "bf16", "mxfp4": "fp4", "nvfp4": "fp4"}
# More of each pass of a draft elsewhere than with the model: its tokens come and its guesses go by the host.
TRANSFER_SECONDS = 50e-6
# Of one hop between nodes, however little is sent: a message over TCP within a zone and its two processes.
# With RDMA it is a fifth of that.
HOP_SECONDS = 100e-6
SENT = 2  # a stage hands on the activations and, not yet added, their residual


def compute_types(shape: ModelShape) -> tuple[str, str]:
    """Return the types that dense layers and routed experts are computed in where hardware has them."""
    quantized = TYPE_OF.get(shape.quantization or "", "bf16")
    dense = quantized if shape.quantized_parameters > shape.expert_parameters else "bf16"
    return dense, quantized if shape.quantized_parameters else "bf16"


def build_rates(requirements: Requirements) -> step_time.Machine:
    """Collect the catalog's figures for this model as arrays [engines, accelerators]; NaN is unknown."""
    accelerators, (dense_type, expert_type) = requirements.rows, compute_types(requirements.shape)

    def collect(value: Callable[[Accelerator, Engine], float | None]) -> Numbers:
        """A figure that is left out is unknown."""
        return np.array([[value(row, engine) or np.nan for row in accelerators] for engine in ENGINES])

    def flops(row: Accelerator, compute_type: str, quantized: bool) -> float:
        rate = row.flops.get("bf16", np.nan)
        if quantized:
            rate = row.flops.get(compute_type, rate)
        is_slow = requirements.element_bytes(row) == 4 and not memory.on_cpu(row)
        return rate * FLOAT32_SHARE if is_slow else rate

    kinds = [(step_time.BY_ENGINE[engine.name], row.efficiency) for engine in ENGINES for row in accelerators]
    fitted = [[own.get(name, getattr(general, name)) for name in step_time.NAMES] for general, own in kinds]
    columns = np.array(fitted).reshape(len(ENGINES), len(accelerators), len(step_time.NAMES))
    return step_time.Machine(
        bandwidth=collect(lambda row, _: row.memory_bandwidth),
        flops=collect(lambda row, engine: flops(row, dense_type, engine.quantized)),
        expert_flops=collect(lambda row, engine: flops(row, expert_type, engine.quantized)),
        attention_flops=collect(lambda row, _: flops(row, "bf16", False)),
        link=collect(lambda row, _: row.interconnect_bandwidth),
        network=collect(lambda row, _: row.network_bandwidth),
        tensor=1.0,
        coefficients=step_time.Coefficients(*np.moveaxis(columns, 2, 0)),
    )


def select_machines(candidates: Candidates, rates: step_time.Machine) -> step_time.Machine:
    """Select what each candidate's replica runs on; columns [c, 1] broadcast against rows."""
    machine = take(rates, (candidates.engine, candidates.accelerator, None))
    tensor = candidates.tensor[:, None]
    data = candidates.data
    link = np.where(tensor * data == 1, np.inf, machine.link)
    return replace(machine, tensor=tensor, data=float(data), link=link)


def has_known_speed(candidates: Candidates, rates: step_time.Machine) -> Mask:
    """[c] whether the rates of each candidate's accelerator are all known."""
    machine = select_machines(candidates, rates)
    network = np.where(candidates.nodes == 1, np.inf, np.ravel(machine.network))
    figures = np.ravel(machine.bandwidth + machine.attention_flops + machine.link)
    return np.asarray(~np.isnan(figures + network))


def build_engines(
    candidates: Candidates, memory_use: MemoryUse, rates: step_time.Machine, requirements: Requirements
) -> tuple[queueing.Engines, Indices]:
    """Build the curves of candidates that fit and whose speed is known, and their drafts [c, GRID]."""
    shape, nodes = requirements.shape, candidates.nodes
    calibrations, draft_read = requirements.inputs.calibrations, np.zeros(len(candidates))
    rows = queueing.rows(memory_use.slots)
    context = requirements.demand.mean_context
    machine, work = describe_replicas(candidates, memory_use.element, rates, shape, context)
    keys = [[(str(engine.name), row.name) for row in candidates.accelerators] for engine in ENGINES]
    unscaled = step_time.Calibration(1.0, 1.0)
    factors = np.array([[calibrations.get(key, unscaled) for key in row] for row in keys])
    decode_factor, prefill_factor = factors[candidates.engine, candidates.accelerator].T
    groups = np.minimum(rows, nodes[:, None])
    together = np.maximum(rows / groups / candidates.data, 1.0)
    uneven = nodes * memory.largest_stage(shape.layers, nodes)
    hops = _hops(candidates, np.ravel(machine.network), shape)
    step_tokens = candidates.by_limits(lambda limits: limits.max_num_batched_tokens)

    def find_fastest(option: SpeculationOption, places: Indices) -> tuple[Numbers, Indices]:
        own, what = take(machine, places), take(work, places)
        few, turns, factor = together[places], groups[places], (decode_factor * uneven)[places][:, None]
        budget, fixed, per_token = (part[places][:, None] for part in (step_tokens, *hops))

        def seconds(k: float) -> Numbers:
            passed = step_time.decode_seconds(own, what, few, k, context)
            taken = passed * factor + fixed + per_token * few * (k + 1.0)
            return np.where(few * (k + 1.0) <= budget, taken, np.inf)

        plain, model = seconds(0.0) if option.has_prior else few, few
        if option.method == Method.DRAFT_MODEL:
            model, draft_read[places] = _draft_model_seconds(
                option, take(candidates, places), memory_use.element[places], rates, few, requirements
            )

        def drafting(k: int) -> Numbers:
            """The last stage makes the drafts of all groups in turn."""
            return turns * speculation.draft_seconds(option.method, k, shape, plain, model)

        return speculation.find_fastest(option, seconds, drafting, is_fixed=candidates.data > 1)

    decode, drafts, committed = np.empty_like(rows), np.zeros(rows.shape, np.int64), np.ones_like(rows)
    for number, option in enumerate(candidates.draft_options):
        places = np.flatnonzero(candidates.draft == number)
        if len(places) == 0:
            continue
        decode[places], drafts[places] = find_fastest(option, places)
        tau = np.array([option.committed(k) for k in range(option.max_draft_tokens + 1)])
        committed[places] = tau[drafts[places]]
    prompt = requirements.demand.prompt.mean
    read = np.ravel(step_time.prefill_seconds(machine, work, prompt)) * prefill_factor + draft_read
    fixed = np.ravel(machine.coefficients.prefill_layer_seconds) * shape.layers
    engines = queueing.Engines(
        rows=rows,
        decode=decode,
        prefill=read * uneven / prompt / nodes,
        # What decoding and verification leave of a step, where they leave the minimum.
        chunk=(np.maximum(step_tokens[:, None] - together * (drafts + 1.0), 1.0) / committed).min(axis=1),
        # All stages read the prompt one after the other; only one of them is busy with it.
        first=fixed + read * uneven * (1.0 - 1.0 / nodes) + hops[0] + hops[1] * prompt,
    )
    return engines, drafts


def describe_replicas(
    candidates: Candidates, element: Numbers, rates: step_time.Machine, shape: ModelShape, context: float
) -> tuple[step_time.Machine, step_time.ForwardCost]:
    """Describe what runs the passes of each candidate, and what they read and compute; columns [c, 1]."""
    quantized = candidates.by_engine(lambda engine: engine.quantized, bool)
    forgets = candidates.by_engine(lambda engine: engine.forgets, bool)
    weights = memory.weights(shape, element, quantized)
    cache = memory.kv_bytes(shape, element, candidates.tensor, context, forgets)
    columns = (np.asarray(part)[:, None] for part in (weights.dense, weights.expert, cache))
    return select_machines(candidates, rates), step_time.build_work(shape, *columns)


def _hops(candidates: Candidates, network: Numbers, shape: ModelShape) -> tuple[Numbers, Numbers]:
    """Seconds in which a token passes between all stages: of each pass, and more for each token in it."""
    nodes = candidates.nodes  # whose accelerators send a share each
    sent = (nodes - 1.0) * SENT * shape.hidden_size * step_time.ACTIVATION_BYTES / candidates.tensor
    return np.where(nodes > 1.0, nodes * HOP_SECONDS, 0.0), sent / np.where(nodes > 1.0, network, np.inf)


def _draft_model_seconds(
    option: SpeculationOption,
    candidates: Candidates,
    element: Numbers,
    rates: step_time.Machine,
    together: Numbers,
    requirements: Requirements,
) -> tuple[Numbers, Numbers]:
    """One pass of the draft model over `together` [c, n] requests, and one over a prompt [c], which the
    steps that read it wait for: where the model is, on one accelerator more, or on the host's cores.
    """
    draft, context = requirements.inputs.draft, requirements.demand.mean_context
    assert draft is not None  # no such option without one
    is_on_cores = candidates.by_accelerator(memory.on_cpu, bool)[:, None]
    is_beside = is_on_cores | (option.placement == Placement.COLOCATED)
    machine = select_machines(candidates, rates)
    tensor = np.where(is_beside, candidates.tensor[:, None], 1.0)
    machine = replace(machine, tensor=tensor, link=np.where(tensor == 1.0, np.inf, machine.link))
    host, unknown = requirements.draft_host, np.zeros_like(together)
    if option.placement == Placement.CPU and not is_on_cores.all():
        if host is None:
            return unknown + np.inf, unknown[:, 0]
        share = DRAFT_CORES / float(host.quantity)
        bandwidth = np.where(is_on_cores, machine.bandwidth, (host.memory_bandwidth or 0.0) * share)
        flops = np.where(is_on_cores, machine.attention_flops, host.flops["bf16"] * share)
        machine = replace(
            machine, bandwidth=bandwidth, flops=flops, expert_flops=flops, attention_flops=flops
        )
    weights = memory.weights(draft, element, candidates.by_engine(lambda engine: engine.quantized, bool))
    cache = memory.kv_bytes(draft, element, np.ravel(tensor), context)
    columns = (np.asarray(part)[:, None] for part in (weights.dense, weights.expert, cache))
    work = step_time.build_work(draft, *columns)
    transfer = np.where(is_beside, 0.0, TRANSFER_SECONDS)
    passed = np.asarray(step_time.decode_seconds(machine, work, together, 0.0, context)) + transfer
    return passed, np.ravel(step_time.prefill_seconds(machine, work, requirements.demand.prompt.mean))
