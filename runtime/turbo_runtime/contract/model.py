"""What a model is: its shape, its files, and the time of its steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from turbo_runtime.contract.codec import JsonDocument


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What the planner needs to know of a decoder-only model; counts are of elements, not bytes."""

    POSITIVE: ClassVar = True  # of all that has no default: it is divided by

    architecture: str  # e.g. LlamaForCausalLM
    parameters: int  # all weights, a tied embedding counted once
    layers: int
    hidden_size: int
    heads: int
    kv_heads: int  # of latent attention as many as heads, though none is cached
    head_dim: int  # of a query and a key
    vocab_size: int
    max_position: int  # longest context in tokens
    dtype: str  # of the stored weights: float32, bfloat16, Q4_1, ...; where some are quantised, of the others
    quantization: str | None = None  # of `quantized_parameters`: fp8, int8, int4, mxfp4 or nvfp4
    quantized_parameters: int = 0  # of `parameters`
    embedding_parameters: int = 0  # of `parameters`: a table that is looked up and multiplied by nothing
    experts: int = 0  # routed experts of a layer; 0: dense
    experts_per_token: int = 0
    expert_parameters: int = 0  # of `parameters`: the routed experts of all layers
    kv_latent: int = 0  # latent attention (MLA): elements cached per token and layer instead of K and V
    sliding_window: int = 0  # tokens that `sliding_layers` look back; 0: no layer slides
    sliding_layers: int = 0
    mtp_layers: int = 0  # layers that predict the tokens after the next; not in `parameters`
    mlp_width: int = 0  # of the widest MLP, inner elements of one token, its experts together; 0: not known

    @property
    def active_parameters(self) -> int:
        """Weights that a token passes: of experts only its own."""
        idle = self.experts - self.experts_per_token
        return self.parameters - (self.expert_parameters * idle // self.experts if self.experts else 0)

    @property
    def max_served(self) -> int:
        """Tokens of the longest request that `turbo serve` takes: its cache keeps no window, so a sliding one
        counts as the end.
        """
        return min(self.max_position, self.sliding_window) if self.sliding_layers else self.max_position


@dataclass(frozen=True, slots=True)
class ModelInfo(JsonDocument):
    """What `turbo inspect MODEL` prints and writes as its pod's termination message: the shape, and which
    bytes it was read from.
    """

    shape: ModelShape
    digest: str  # sha256:... of the configuration and the weight files' names, sizes and headers
    revision: str | None  # resolved commit of a hub id; None for a path
    weight_bytes: int  # size of the stored weights


@dataclass(frozen=True, slots=True)
class StepTime:
    """One measured point: a forward pass over `rows` requests of `context` cached tokens each, each with
    `tokens` new ones. The median of several, after warm-up.
    """

    rows: int
    tokens: int
    context: int
    seconds: float
