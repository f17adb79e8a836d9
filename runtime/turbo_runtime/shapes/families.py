"""What tells decoder-only architectures apart when their weights are counted: one row each, of differences.

Llama's layer has two RMSNorms, attention without biases and a gated MLP of three matrices; its head is a
matrix of its own.
Source: the models' public implementations in transformers; the tests count both and compare.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# Whether a layer has a bias: always, never, or what this word of the configuration says.
Bias = bool | str


@dataclass(frozen=True, slots=True)
class Family:
    """How the layers of an architecture differ from Llama's. Words are those of a `config.json`."""

    qkv_bias: Bias = "attention_bias"
    out_bias: Bias = "attention_bias"
    mlp_bias: Bias = "mlp_bias"
    head_bias: Bias = False  # of the output head
    qk_norm: Literal["head", "all"] | None = None  # of queries and keys: over each head, or over all at once
    qk_norm_word: str | None = None  # only where this word is true
    norms: int = 2  # of the hidden size in a layer
    norm_vectors: int = 1  # of a norm: its weight, 2 with a bias, 0 where it learns nothing
    gated: bool = True  # the MLP has a third matrix
    tied: bool = False  # where the configuration does not say: the head is the embedding
    sinks: bool = False  # one number for each head
    router_bias: bool = False  # one number for each expert, a correction of its score included
    expert_bias: bool = False
    shared_expert_gate: bool = False  # a row of the hidden size
    shared_experts: int = 0  # where the configuration has no word for them
    full_every: int = 0  # without layer_types: each n-th layer has no window, the others have; 0: all have
    window: int = 0  # where the configuration does not say: tokens that sliding layers look back
    window_if_asked: bool = False  # only where use_sliding_window is true, else unless it is false


_DEEPSEEK_V3 = Family(mlp_bias=False, router_bias=True)
_QWEN2 = Family(qkv_bias=True, out_bias=False, window_if_asked=True)
_QWEN3 = Family(qk_norm="head", window_if_asked=True)
_LLAMA4 = Family(shared_experts=1, full_every=4)
_OLMO2 = Family(qk_norm="all", full_every=4)
_PHIMOE = Family(head_bias="lm_head_bias", norm_vectors=2)
_NO_BIAS = Family(False, False, False)

FAMILIES: dict[str, Family] = {
    "ArceeForCausalLM": Family(gated=False),
    "Cohere2ForCausalLM": Family(norms=1, tied=True, full_every=4),
    "CohereForCausalLM": Family(norms=1, tied=True, qk_norm="all", qk_norm_word="use_qk_norm"),
    "DeepseekV2ForCausalLM": Family(),
    "DeepseekV32ForCausalLM": _DEEPSEEK_V3,
    "DeepseekV3ForCausalLM": _DEEPSEEK_V3,
    "Dots1ForCausalLM": Family(qk_norm="head", router_bias=True),
    "Ernie4_5ForCausalLM": Family("use_bias", "use_bias", "use_bias", tied=True),
    "Exaone4ForCausalLM": Family(False, False, False, qk_norm="head", full_every=4),
    "GPTNeoXForCausalLM": Family(True, True, True, norm_vectors=2, gated=False),
    "Gemma2ForCausalLM": Family(norms=4, tied=True, full_every=2),
    "Gemma3ForCausalLM": Family(norms=4, qk_norm="head", tied=True, full_every=6),
    "GemmaForCausalLM": Family(tied=True),
    "Glm4ForCausalLM": Family(out_bias=False, mlp_bias=False, norms=4),
    "Glm4MoeForCausalLM": Family(
        out_bias=False, qk_norm="head", qk_norm_word="use_qk_norm", router_bias=True
    ),
    "Glm4MoeLiteForCausalLM": _DEEPSEEK_V3,
    "GlmForCausalLM": Family(out_bias=False, mlp_bias=False),
    "GlmMoeDsaForCausalLM": _DEEPSEEK_V3,
    "GptOssForCausalLM": Family(mlp_bias=False, sinks=True, router_bias=True, expert_bias=True, full_every=2),
    "GraniteForCausalLM": Family(),
    "GraniteMoeForCausalLM": Family(),
    "HeliumForCausalLM": Family(out_bias=False),
    "HunYuanDenseV1ForCausalLM": Family(mlp_bias=False, qk_norm="head"),
    "KimiK25ForConditionalGeneration": _DEEPSEEK_V3,  # its vision tower is under a thousandth
    "Llama4ForCausalLM": _LLAMA4,
    "Llama4ForConditionalGeneration": _LLAMA4,  # its vision tower is under a hundredth
    "LlamaForCausalLM": Family(),
    "MiMoForCausalLM": _QWEN2,
    "MiniMaxM2ForCausalLM": Family(False, False, False, qk_norm="all", router_bias=True),
    "Ministral3ForCausalLM": _NO_BIAS,
    "MinistralForCausalLM": _NO_BIAS,
    "MistralForCausalLM": Family(False, False, False, window=4096),
    "MixtralForCausalLM": _NO_BIAS,
    "NemotronForCausalLM": Family(norm_vectors=2, gated=False),
    "Olmo2ForCausalLM": _OLMO2,
    "Olmo3ForCausalLM": _OLMO2,
    "OlmoForCausalLM": Family(norm_vectors=0),
    "OlmoeForCausalLM": Family(qk_norm="all"),
    "Phi3ForCausalLM": _NO_BIAS,
    "PhiForCausalLM": Family(True, True, True, True, norms=1, norm_vectors=2, gated=False),
    "PhiMoEForCausalLM": _PHIMOE,
    "PhimoeForCausalLM": _PHIMOE,
    "Qwen2ForCausalLM": _QWEN2,
    "Qwen2MoeForCausalLM": Family(True, False, False, shared_expert_gate=True, window_if_asked=True),
    "Qwen3ForCausalLM": _QWEN3,
    "Qwen3MoeForCausalLM": _QWEN3,
    "SeedOssForCausalLM": Family(out_bias="attention_out_bias"),
    "SmolLM3ForCausalLM": Family(tied=True, window_if_asked=True),
    "StableLmForCausalLM": Family("use_qkv_bias", False, False, norm_vectors=2),
    "Starcoder2ForCausalLM": Family(
        "use_bias", "use_bias", "use_bias", norm_vectors=2, gated=False, tied=True
    ),
}
