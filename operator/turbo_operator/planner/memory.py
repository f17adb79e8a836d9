"""What one accelerator must hold to serve a model, and what it can hold. Pure arithmetic, in bytes.

    weights / t + KV cache of one full-length request / t + verification logits  <=  0.95 x memory - reserve

A plan whose accelerator holds that can answer the longest request it promises; the memory that is left
becomes more KV cache, hence more requests at a time. 0.95 leaves room for fragmentation; the reserve is what
a process holds before the first weight.
"""

from __future__ import annotations

from dataclasses import dataclass

from turbo_operator.observed import Accelerator
from turbo_runtime.contract import ModelShape, RuntimeConfig

GIB = 1 << 30
USABLE_SHARE = 0.95
DEVICE_RESERVE = 2 * GIB  # CUDA context, library workspaces and activations of one forward pass
# Two interpreters (measured: 0.74 GiB for the engine's with torch, less for the server's), and activations.
CPU_RESERVE = 3 * GIB // 2
KV_GRAIN = GIB // 64  # the pool is counted in these: its size in GiB is an exact decimal of few digits
BLOCK_TOKENS = 16  # slack of one block: a request's last block is rarely full
LOGIT_BYTES = 4  # logits are verified in float32 whatever the weights are
CPU_RESOURCE = "cpu"

ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

# The runtime's own ceilings decide how many rows one step verifies; they are read from its contract, not
# repeated here.
MAX_RUNNING: int = RuntimeConfig(model="").max_running
MAX_STEP_TOKENS: int = RuntimeConfig(model="").max_step_tokens


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes of a replica's share on one accelerator; `loading`: the peak before any KV is used."""

    weights: int
    kv_request: int  # one request of the longest length, in whole grains
    logits: int
    loading: int

    @property
    def total(self) -> int:
        """The least that serves: everything but the reserve."""
        return max(self.weights + self.kv_request + self.logits, self.loading)


def on_cpu(accelerator: Accelerator) -> bool:
    """Whether the accelerator is cores and container memory rather than a device with memory of its own."""
    return accelerator.resource_name == CPU_RESOURCE


def usable(accelerator: Accelerator) -> int:
    """Bytes of `accelerator` that weights, KV cache and logits may fill; never negative."""
    reserve = CPU_RESERVE if on_cpu(accelerator) else DEVICE_RESERVE
    return max(0, int(USABLE_SHARE * accelerator.memory_bytes) - reserve)


def kv_bytes_per_token(shape: ModelShape, dtype: str) -> int:
    """Keys and values of one token in all layers."""
    return 2 * shape.layers * shape.kv_heads * shape.head_dim * ELEMENT_BYTES[dtype]


def need(
    shape: ModelShape, dtype: str, max_model_len: int, max_draft_tokens: int, tensor: int, cpu: bool
) -> Need:
    """What each of `tensor` accelerators must hold.

    KV heads divide over the accelerators as far as they go and are replicated beyond. Stored weights of
    another type than `dtype` (a quantised GGUF) are converted once while loading, in host memory, which holds
    both for a moment.
    """
    # On cores a head that shares the embedding's weights is laid out a second time, as its products need it.
    second_head = shape.vocab_size * shape.hidden_size if cpu else 0
    weights = -(-(shape.parameters + second_head) * ELEMENT_BYTES[dtype] // tensor)
    per_token = -(-kv_bytes_per_token(shape, dtype) // min(tensor, shape.kv_heads))
    tokens = max_model_len + max_draft_tokens + 1 + BLOCK_TOKENS
    rows = min(MAX_RUNNING * (max_draft_tokens + 1), max(MAX_STEP_TOKENS, max_draft_tokens + 1))
    converts = cpu and shape.dtype not in ELEMENT_BYTES
    return Need(
        weights=weights,
        kv_request=-(-per_token * tokens // KV_GRAIN) * KV_GRAIN,
        logits=rows * shape.vocab_size * LOGIT_BYTES,
        loading=2 * weights if converts else weights,
    )


def kv_pool(accelerator: Accelerator, need: Need) -> int:
    """Bytes of the KV cache: what is left, at most what the running requests could ever use."""
    left = (usable(accelerator) - need.weights - need.logits) // KV_GRAIN * KV_GRAIN
    return min(left, MAX_RUNNING * need.kv_request)


def longest_model_len(accelerator: Accelerator, shape: ModelShape, dtype: str, max_draft_tokens: int) -> int:
    """The longest request in tokens of which one fits on one accelerator; 0 when not even weights do."""
    low, high = 0, shape.max_position
    while low < high:
        middle = (low + high + 1) // 2
        fits = need(shape, dtype, middle, max_draft_tokens, 1, on_cpu(accelerator)).total <= usable(
            accelerator
        )
        low, high = (middle, high) if fits else (low, middle - 1)
    return low
