"""How long one forward pass takes: a sum of bytes, flops and fixed work. Pure.

    t_dec(B, k) = (dense bytes + KV bytes) / (BW e_b) + expert bytes x distinct(B (k+1)) / (BW e_be)
                + (dense flops / F + attention flops / F16) / e_f + expert flops / (F e_fe)
                + (c_L + c_Lm) L + exchanged bytes / (link e_f)
    t_pre       = max(flops' time, weights' time) + (c_L + c_Lm) L + exchanged bytes / (link e_f)

The terms are added: their maximum, the usual roofline, misses the cost of verification by three times the
error. All functions are elementwise: every number of `Machine` and every argument may be an array, broadcast
against the others, so that all candidates of a plan are one call.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from turbo_operator.api.constants import EngineName
from turbo_runtime.contract.documents import ModelShape

Numbers = float | NDArray[np.float64]

ACTIVATION_BYTES = 2  # of one element that accelerators exchange
WHOLE = 4e6  # bytes of a decoding pass's sum that accelerators send to every other at once


@dataclass(frozen=True, slots=True)
class Coefficients:
    """Fitted numbers of the model: fractions of the peak that are reached, and seconds of fixed work.

    One set for all accelerators and models; an engine changes the two that are its own, and an accelerator's
    `efficiency` in the catalog any of them by name. Two digits of a fit to the rows of benchmarks/data/perf,
    1,724 of requests kept running and 558 of saturated throughput: `make bench NAME=planner
    ARGS=--coefficients` prints them, and a test compares. They are of dense models and of models with
    experts, 7 to 1,026 thousand million weights in 16, 8 and 4 bits, on NVIDIA's Ampere to Blackwell, served
    by vLLM, SGLang and TensorRT-LLM. No fraction is above 1. None is of the Turbo runtime: it has the common
    set, and its own start-up points calibrate it.
    """

    bandwidth: float = 0.93  # of memory bandwidth, for dense weights and KV cache
    expert_bandwidth: float = 1.0  # the same for routed experts
    flops: float = 0.61  # of peak flops, for dense layers
    expert_flops: float = 0.27  # the same for routed experts
    layer_seconds: float = 64e-6  # of every layer of a step
    expert_layer_seconds: float = 40e-6  # more of a layer with routed experts
    prefill_layer_seconds: float = 0.98e-3  # of every layer before a first token: queue, scheduling, sampling
    prefill_wait: float = 0.091  # of the others' prefills that a first token waits for


NAMES = tuple(field.name for field in dataclasses.fields(Coefficients))
BY_ENGINE = {
    EngineName.TURBO: Coefficients(),
    EngineName.VLLM: Coefficients(prefill_layer_seconds=0.77e-3, prefill_wait=0.084),
}


@dataclass(frozen=True, slots=True)
class Machine:
    """The accelerators of one replica as a step sees them. All rates are of one of them, per second.

    Attention and dense layers are shared by groups of `tensor` accelerators; `data` such groups, each with
    requests of its own, share the routed experts.
    """

    bandwidth: Numbers  # bytes of its memory
    flops: Numbers  # dense, in the type that dense layers are computed in
    expert_flops: Numbers  # the same for routed experts
    attention_flops: Numbers  # the same for attention: in 16 bits, whatever the weights are
    link: Numbers  # bytes, one way, between the accelerators of one replica; inf for one alone
    tensor: Numbers  # accelerators that share every layer
    coefficients: Coefficients  # of numbers or arrays
    data: Numbers = 1.0  # groups of them
    network: Numbers = math.inf  # bytes, one way, between the nodes of one replica


@dataclass(frozen=True, slots=True)
class ForwardCost:
    """What one pass of a model reads and computes, over all the accelerators of a group."""

    dense_bytes: Numbers  # weights that every pass reads
    expert_bytes: Numbers  # routed experts of all layers
    dense_flops: Numbers  # of one token
    expert_flops: Numbers  # of one token
    attention_flops: Numbers  # per token and attended token, if all layers used full attention
    kv_bytes: Numbers  # of one cached token on one accelerator
    summed_bytes: Numbers  # activations of one token, once in every layer
    layers: Numbers
    active: Numbers  # share of the routed experts that a token goes to; 0: dense
    window: Numbers  # tokens that sliding layers look at
    sliding: Numbers  # share of the layers that slide


class Calibration(NamedTuple):
    """Factors on the step-time model of one accelerator and engine."""

    decode: float  # of a pass that decodes
    prefill: float  # of a pass that reads a prompt


def build_work(
    shape: ModelShape, dense_bytes: Numbers, expert_bytes: Numbers, kv_bytes: Numbers
) -> ForwardCost:
    """Build the work of a model from the bytes of its weights, which `memory` gives."""
    dense = shape.parameters - shape.expert_parameters - shape.embedding_parameters
    active = shape.experts_per_token / shape.experts if shape.experts else 0.0
    return ForwardCost(
        dense_bytes=dense_bytes,
        expert_bytes=expert_bytes,
        dense_flops=2.0 * dense,
        expert_flops=2.0 * shape.expert_parameters * active,
        attention_flops=4.0 * shape.layers * shape.heads * shape.head_dim,
        kv_bytes=kv_bytes,
        summed_bytes=float(shape.layers * shape.hidden_size * ACTIVATION_BYTES),
        layers=float(shape.layers),
        active=active,
        window=float(shape.sliding_window),
        sliding=shape.sliding_layers / shape.layers,
    )


def distinct(work: ForwardCost, tokens: Numbers) -> Numbers:
    """The share of the routed experts that `tokens` tokens together need."""
    return 1.0 - (1.0 - work.active) ** tokens


def _terms(
    machine: Machine, work: ForwardCost, tokens: Numbers, groups: Numbers, seen: Numbers, whole: float
) -> tuple[Numbers, Numbers, Numbers, Numbers]:
    """Products, weights, fixed work and exchanges of `tokens` tokens of each of `groups` groups.

    Each token looks at `seen` others. Activations are summed twice in a layer: within each group, then over
    all of them. Of each sum the first `whole` bytes go to every other accelerator at once, which is quick;
    the rest around a ring, which is less.
    """
    c, together = machine.coefficients, tokens * groups
    looked = seen * (1.0 - work.sliding) + np.minimum(seen, work.window) * work.sliding
    dense = work.dense_flops / machine.flops + work.attention_flops * looked / machine.attention_flops
    experts = work.expert_flops * groups / machine.data / (machine.expert_flops * c.expert_flops)
    computed = tokens / machine.tensor * (dense / c.flops + experts)

    expert_bytes = work.expert_bytes / machine.data * distinct(work, together) / c.expert_bandwidth
    read = (work.dense_bytes / c.bandwidth + expert_bytes) / machine.tensor / machine.bandwidth
    fixed = (c.layer_seconds + np.where(work.active, c.expert_layer_seconds, 0.0)) * work.layers

    def sent(size: Numbers, among: Numbers) -> Numbers:
        others = among - 1.0
        return others * np.minimum(size, whole) + 2.0 * others / among * np.maximum(size - whole, 0.0)

    one = tokens * work.summed_bytes / work.layers
    both = sent(one, machine.tensor) + sent(one * groups, machine.tensor * machine.data)
    return computed, read, fixed, work.layers * both / (machine.link * c.flops)


def decode_seconds(
    machine: Machine, work: ForwardCost, rows: Numbers, drafts: Numbers, context: Numbers
) -> Numbers:
    """One pass over `rows` requests of each group, each of `context` cached tokens with `drafts` drafts."""
    tokens = rows * (drafts + 1.0)
    cache = rows * context * work.kv_bytes / (machine.bandwidth * machine.coefficients.bandwidth)
    computed, read, fixed, exchanged = _terms(machine, work, tokens, machine.data, context, WHOLE)
    return read + cache + computed + fixed + exchanged


def prefill_seconds(machine: Machine, work: ForwardCost, prompt: Numbers, prompts: Numbers = 1.0) -> Numbers:
    """The pass that reads `prompt` tokens of one request, or of each of `prompts` of one group."""
    computed, read, fixed, exchanged = _terms(machine, work, prompt * prompts, 1.0, prompt / 2.0, 0.0)
    return np.maximum(computed, read) + fixed + exchanged
