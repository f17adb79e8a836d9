"""What one accelerator must hold to serve a model, and what it can hold. Pure arithmetic, in bytes.

    weights / t + draft + adapters + KV cache of one full-length request / t + activations of the largest pass
        <=  0.95 x memory - reserve

t accelerators share every layer; where stages divide the layers, the largest must fit. A plan whose
accelerators hold that can answer the longest request it promises; the memory that is left becomes more KV
cache, hence more requests at a time. 0.95 leaves room for fragmentation; the reserve is what a process holds
before the first weight. Every engine sets aside what a pass of the most tokens that it takes needs before it
gives the rest to the cache.

Functions of `tensor`, `stages` and element sizes are elementwise: each may be a number or an array, broadcast
against the others, so that all candidates of a plan are one call.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from turbo_operator.snapshot import Accelerator
from turbo_runtime.contract.documents import ModelShape

Numbers = float | NDArray[np.float64]
Mask = NDArray[np.bool_]

GIB = 1 << 30
USABLE_FRACTION = 0.95
DEVICE_RESERVE = 2 * GIB  # CUDA context, captured graphs, workspaces of libraries and of attention, samplers
# Two interpreters (measured: 0.74 GiB for the engine's with torch, less for the server's).
CPU_RESERVE = 3 * GIB // 2
KV_GRAIN = GIB // 64  # the pool is counted in these: its size in GiB is an exact decimal of few digits
BLOCK_TOKENS = 16  # of a block, whose last one is rarely full, unless an engine says otherwise
LOGIT_BYTES = 4  # logits are verified in float32 whatever the weights are

ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Of one quantized weight, its share of the scales included: one per block of 128 x 128 or per channel of
# 8-bit types, 20 bits per 128 of int4 (AWQ, GPTQ), 8 bits per 32 of mxfp4 and per 16 of nvfp4.
QUANTIZED_BYTES = {"fp8": 1.0, "int8": 1.0, "int4": 0.52, "mxfp4": 0.53125, "nvfp4": 0.5625}


def gib(amount: float) -> str:
    """Format bytes in GiB with one digit after the point; a small amount keeps two."""
    return f"{amount / GIB:.1f} GiB" if amount >= GIB else f"{amount / GIB:.2f} GiB"


def on_cpu(accelerator: Accelerator) -> bool:
    """Whether the accelerator is cores and container memory rather than a device with memory of its own."""
    return accelerator.resource_name == "cpu"


def reserve(accelerator: Accelerator) -> int:
    """Bytes that a process holds before the first weight."""
    return CPU_RESERVE if on_cpu(accelerator) else DEVICE_RESERVE


def usable(accelerator: Accelerator) -> int:
    """Bytes of `accelerator` that weights, KV cache and activations may fill; never negative."""
    return max(0, int(USABLE_FRACTION * accelerator.memory_bytes) - reserve(accelerator))


@dataclass(frozen=True, slots=True)
class Weights:
    """Bytes of a model's weights over all its accelerators."""

    dense: Numbers  # all but the next two
    expert: Numbers  # routed experts
    embedding: Numbers  # a table that is looked up: held, not read in a pass

    @property
    def total(self) -> Numbers:
        """All of them."""
        return self.dense + self.expert + self.embedding


def weights(shape: ModelShape, element: Numbers, quantized: Mask | bool = True) -> Weights:
    """The weights as served: `element` bytes for each that is not quantized, all where not `quantized`."""
    per_quantized = QUANTIZED_BYTES.get(shape.quantization or "", 0.0)
    count = np.where(quantized, shape.quantized_parameters if per_quantized else 0, 0)
    # Routed experts come first, as in every published format.
    of_experts = np.minimum(count, shape.expert_parameters)
    of_dense = count - of_experts
    dense = shape.parameters - shape.expert_parameters - shape.embedding_parameters
    return Weights(
        dense=(dense - of_dense) * element + of_dense * per_quantized,
        expert=(shape.expert_parameters - of_experts) * element + of_experts * per_quantized,
        embedding=shape.embedding_parameters * element,
    )


def largest_stage(layers: int, stages: Numbers) -> Numbers:
    """Share of a model's layers in the largest of its stages: 31 of 61 in two."""
    return np.ceil(layers / stages) / layers


def stage_bytes(shape: ModelShape, served: Weights, element: Numbers, stages: Numbers) -> Numbers:
    """Bytes of the weights in the largest of `stages` stages: its layers and, where there are several, the
    embedding or the head. Where those are one table, the first stage and the last hold a copy each.
    """
    head = float(shape.vocab_size * shape.hidden_size) * element
    between = served.total - served.embedding - head
    return np.where(np.equal(stages, 1.0), served.total, between * largest_stage(shape.layers, stages) + head)


def cached_elements(shape: ModelShape, tensor: Numbers) -> Numbers:
    """Elements of one layer's cache for one token on one of `tensor` accelerators."""
    # KV heads divide as far as they go and are replicated beyond; a latent (MLA) is whole on each.
    if shape.kv_latent:
        return float(shape.kv_latent) + 0.0 * tensor
    return 2.0 * shape.head_dim * np.ceil(shape.kv_heads / tensor)


def largest_rank(shape: ModelShape, tensor: Numbers) -> Numbers:
    """Share of the weights on the rank that has most, at most, where KV heads need not divide evenly."""
    return np.where(shape.kv_heads > tensor, np.ceil(shape.kv_heads / tensor) / shape.kv_heads, 1.0 / tensor)


def kv_bytes(
    shape: ModelShape, element: Numbers, tensor: Numbers, tokens: Numbers, slides: Mask | bool = False
) -> Numbers:
    """Bytes of one cached token on one accelerator, in the mean over a request of `tokens` tokens."""
    # Where the engine forgets what a sliding window has passed.
    window = np.where(slides, shape.sliding_window or np.inf, np.inf)
    fraction = np.minimum(1.0, window / np.maximum(tokens, 1.0))
    layers = shape.layers - shape.sliding_layers * (1.0 - fraction)  # that hold a token's cache, in the mean
    return cached_elements(shape, tensor) * layers * element


def adapter_bytes(
    shape: ModelShape, element: Numbers, tensor: Numbers, stages: Numbers, rank: int
) -> Numbers:
    """Bytes of the slot of one LoRA adapter on one accelerator: two matrices of `rank` for every projection
    of every layer, whatever the adapter changes, and for embedding and head. vLLM makes them at its start. It
    divides the outputs of q, k, v, gate and up, and the inputs of o and down (vllm/lora/layers: base_linear,
    row_parallel_linear, vocab_parallel_embedding, logits_processor).
    """
    hidden, projected = float(shape.hidden_size), float(shape.heads + shape.kv_heads) * shape.head_dim
    layer = 7.0 * hidden + (2.0 * projected + 3.0 * mlp_width(shape)) / tensor
    tables = 2.0 * (shape.vocab_size + hidden)
    return (layer * shape.layers * largest_stage(shape.layers, stages) + tables) * rank * element


def whole_grains(amount: Numbers) -> Numbers:
    """The least multiple of the pool's grain that is not below."""
    return np.ceil(amount / KV_GRAIN) * KV_GRAIN


def request_tokens(max_model_len: int, max_draft_tokens: Numbers, block: Numbers = BLOCK_TOKENS) -> Numbers:
    """Tokens of cache that the longest request may come to, with its drafts and the slack of a block."""
    return max_model_len + max_draft_tokens + 1.0 + block


def mlp_width(shape: ModelShape) -> float:
    """Inner elements of one token in the widest MLP. Where they are not known, at most as many as a layer's
    active weights allow: as though three matrices of the MLP were all of them.
    """
    if shape.mlp_width:
        return float(shape.mlp_width)
    idle = 1.0 - shape.experts_per_token / shape.experts if shape.experts else 0.0
    tables = shape.embedding_parameters + shape.vocab_size * shape.hidden_size
    active = shape.parameters - tables - shape.expert_parameters * idle
    return max(0.0, active) / shape.layers / (3.0 * shape.hidden_size)


def activation_bytes(
    shape: ModelShape,
    element: Numbers,
    tensor: Numbers,
    max_num_seqs: Numbers,
    max_num_batched_tokens: Numbers,
    drafts: Numbers,
) -> Numbers:
    """What a pass of the most tokens holds at its peak on one of `tensor` accelerators.

    Each has whole what goes from layer to layer, once as it is and once normalized. Beside that there are
    an MLP's two branches and their product, which the accelerators share; or, after the last layer, the
    logits of the tokens that are verified, with `drafts` drafts of every running request.
    """
    tokens = np.maximum(max_num_batched_tokens, drafts + 1.0)
    between = 2.0 * shape.hidden_size * tokens * element
    inside = 3.0 * mlp_width(shape) * tokens * element / tensor
    logits = LOGIT_BYTES * shape.vocab_size * np.minimum(max_num_seqs * (drafts + 1.0), tokens)
    return np.asarray(between + np.maximum(inside, logits))


def max_model_len(
    available: float, per_token: float, max_draft_tokens: int, block: int = BLOCK_TOKENS
) -> int:
    """Return the longest request in tokens of which one fits into `available` bytes; 0 when none does."""
    if available < 0:
        return 0
    tokens = int(available // KV_GRAIN * KV_GRAIN // per_token)
    return max(0, tokens - int(request_tokens(0, max_draft_tokens, block)))
