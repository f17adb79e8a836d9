"""How long one forward pass takes: a sum of bytes, flops and fixed work. Pure.

    t_dec(B, k) = (dense bytes + KV bytes) / (BW e_b) + expert bytes x distinct(B (k+1)) / (BW e_be)
                + dense flops / (F e_f) + expert flops / (F e_fe)
                + (c_L + c_Lm) L + all-reduce bytes / (link e_b)

The terms are added: their maximum, the usual roofline, misses the cost of verification by three times the
error. All functions are elementwise: every number of `Machine` and every argument may be an array, broadcast
against the others, so that all candidates of a plan are one call.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from turbo_operator.planner.coefficients import Coefficients
from turbo_runtime.contract import ModelShape

Numbers = float | NDArray[np.float64]

ACTIVATION_BYTES = 2  # of one element that accelerators exchange


@dataclass(frozen=True, slots=True)
class Machine:
    """The accelerators of one replica as a step sees them. All rates are of one of them, per second."""

    bandwidth: Numbers  # bytes of its memory
    flops: Numbers  # dense, in the type that dense layers are computed in
    expert_flops: Numbers  # the same for routed experts
    link: Numbers  # bytes, one way, between the accelerators of one tensor group; inf for one alone
    tensor: Numbers  # accelerators that share every layer
    coefficients: Coefficients  # of numbers or arrays


@dataclass(frozen=True, slots=True)
class Work:
    """What one pass of a model reads and computes, over all its accelerators."""

    dense_bytes: Numbers  # weights that every pass reads
    expert_bytes: Numbers  # routed experts of all layers
    dense_flops: Numbers  # of one token
    expert_flops: Numbers  # of one token
    kv_bytes: Numbers  # of one cached token on one accelerator
    exchanged_bytes: Numbers  # of one token's activations that one accelerator sends, were there very many
    layers: Numbers
    experts: int
    experts_per_token: int


def work(shape: ModelShape, dense_bytes: Numbers, expert_bytes: Numbers, kv_bytes: Numbers) -> Work:
    """The work of a model whose weights take so many bytes; see `memory` for those."""
    looked_up = shape.embedding_parameters
    dense = shape.parameters - shape.expert_parameters - looked_up
    active = shape.experts_per_token / shape.experts if shape.experts else 0.0
    return Work(
        dense_bytes=dense_bytes,
        expert_bytes=expert_bytes,
        dense_flops=2.0 * dense,
        expert_flops=2.0 * shape.expert_parameters * active,
        kv_bytes=kv_bytes,
        exchanged_bytes=2.0 * 2 * shape.layers * shape.hidden_size * ACTIVATION_BYTES,
        layers=float(shape.layers),
        experts=shape.experts,
        experts_per_token=shape.experts_per_token,
    )


def distinct(work: Work, tokens: Numbers) -> Numbers:
    """The share of the routed experts that `tokens` tokens together need."""
    if not work.experts:
        return 0.0
    return 1.0 - (1.0 - work.experts_per_token / work.experts) ** tokens


def _exchange(machine: Machine, work: Work, tokens: Numbers) -> Numbers:
    """A ring's all-reduce sends 2 (t - 1) / t of what is summed; twice in a layer."""
    share = (machine.tensor - 1.0) / machine.tensor
    return tokens * work.exchanged_bytes * share / (machine.link * machine.coefficients.bandwidth)


def decode_seconds(machine: Machine, work: Work, rows: Numbers, drafts: Numbers, context: Numbers) -> Numbers:
    """One pass over `rows` requests of `context` cached tokens each that verifies `drafts` drafts of each."""
    it, c = machine, machine.coefficients
    tokens = rows * (drafts + 1.0)
    read = (work.dense_bytes / it.tensor + rows * context * work.kv_bytes) / (it.bandwidth * c.bandwidth)
    experts = work.expert_bytes / it.tensor * distinct(work, tokens) / (it.bandwidth * c.expert_bandwidth)
    computed = tokens * work.dense_flops / it.tensor / (it.flops * c.flops)
    expert_computed = tokens * work.expert_flops / it.tensor / (it.expert_flops * c.expert_flops)
    fixed = (c.layer_seconds + (c.expert_layer_seconds if work.experts else 0.0)) * work.layers
    return read + experts + computed + expert_computed + fixed + _exchange(it, work, tokens)


def prefill_seconds(machine: Machine, work: Work, prompt: Numbers) -> Numbers:
    """The passes that read `prompt` tokens of one request."""
    it, c = machine, machine.coefficients
    computed = prompt * work.dense_flops / it.tensor / (it.flops * c.flops)
    computed = computed + prompt * work.expert_flops / it.tensor / (it.expert_flops * c.expert_flops)
    read = (work.dense_bytes + work.expert_bytes * distinct(work, prompt)) / it.tensor / it.bandwidth
    return np.maximum(computed, read) + _exchange(it, work, prompt)


def time_per_output_token(
    decode: Numbers, prefill: Numbers, rows: Numbers, answer: Numbers, accepted: Numbers = 1.0
) -> Numbers:
    """Mean seconds of one output token: the prefills of the other rows interrupt the decode.

    `accepted`: tokens committed per pass, the bonus token included (tau).
    """
    return decode / accepted + (rows - 1.0) * prefill / answer


def time_to_first_token(
    machine: Machine, work: Work, decode: Numbers, prefill: Numbers, rows: Numbers
) -> Numbers:
    """Mean seconds to the first token while `rows` requests are kept running."""
    c = machine.coefficients
    return c.prefill_layer_seconds * work.layers + decode + prefill * (1.0 + c.prefill_wait * (rows - 1.0))


def saturated_tokens_per_second(
    decode: Numbers, prefill: Numbers, rows: Numbers, answer: Numbers, accepted: Numbers = 1.0
) -> Numbers:
    """Output tokens per second of `rows` requests that are replaced as they end."""
    return rows * answer / (answer * decode / accepted + rows * prefill)
