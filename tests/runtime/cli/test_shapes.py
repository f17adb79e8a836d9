"""Weights counted from a configuration are those of the model that transformers builds from it."""

from __future__ import annotations

import json
import warnings
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from turbo_runtime.shapes import from_config
from turbo_runtime.shapes.families import FAMILIES

# No two products of these are equal, so that a matrix taken for another one shows.
SIZES = {
    "num_hidden_layers": 8,
    "hidden_size": 96,
    "intermediate_size": 102,
    "intermediate_size_mlp": 114,
    "moe_intermediate_size": 26,
    "shared_expert_intermediate_size": 46,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 22,
    "vocab_size": 133,
    "max_position_embeddings": 4096,
    "sliding_window": 64,
    "attention_chunk_size": 64,
    "n_routed_experts": 7,
    "num_local_experts": 7,
    "num_experts": 7,
    "num_experts_per_tok": 2,
    "n_shared_experts": 2,
    "first_k_dense_replace": 3,
    "interleave_moe_layer_step": 2,
    "kv_lora_rank": 14,
    "q_lora_rank": 34,
    "qk_rope_head_dim": 6,
    "qk_nope_head_dim": 10,
    "v_head_dim": 18,
    "index_n_heads": 5,
    "index_head_dim": 38,
}
CHOICES = (
    "attention_bias",
    "attention_out_bias",
    "lm_head_bias",
    "mlp_bias",
    "tie_word_embeddings",
    "use_bias",
    "use_qk_norm",
    "use_qkv_bias",
    "use_sliding_window",
)
# Those that transformers has no class for under that name.
NOT_BUILT = {
    "KimiK25ForConditionalGeneration",
    "Llama4ForConditionalGeneration",
    "MiMoForCausalLM",
    "PhiMoEForCausalLM",
}
WIDTH_IS_HIDDEN = {"helium"}  # heads x head_dim must be the hidden size


def types() -> dict[str, str]:
    return {names: kind for kind, names in reversed(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items())}


def configuration(kind: str, architecture: str, chosen: bool) -> PretrainedConfig:
    words = AutoConfig.for_model(kind).to_dict()
    own = {word: size for word, size in SIZES.items() if word in words}
    if "kv_lora_rank" in words:
        own.pop("head_dim", None)  # follows from the two parts of a key
    if kind in WIDTH_IS_HIDDEN:
        own["head_dim"] = 12
    own |= {word: chosen for word in CHOICES if word in words}
    own |= {f"{token}_token_id": 0 for token in ("pad", "bos", "eos")}
    return AutoConfig.for_model(kind, **own, architectures=[architecture])


def built(config: PretrainedConfig) -> PreTrainedModel:
    """The model without memory: its parameters have shapes and no numbers."""
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        return AutoModelForCausalLM.from_config(config)


def size(tensors: dict[str, Any]) -> int:
    return sum(tensor.numel() for tensor in tensors.values())


@pytest.mark.parametrize("chosen", [False, True], ids=["plain", "with all that is a choice"])
@pytest.mark.parametrize("architecture", sorted(set(FAMILIES) - NOT_BUILT))
def test_a_count_is_that_of_the_model_that_is_built(architecture: str, chosen: bool) -> None:
    config = configuration(types()[architecture], architecture, chosen)
    if architecture == "GPTNeoXForCausalLM" and not chosen:
        config.attention_bias = True  # a choice that no published checkpoint has made
    weights = dict(built(config).named_parameters())
    buffers = {name: it for name, it in built(config).named_buffers() if "bias" in name}  # stored too
    shape = from_config(json.loads(config.to_json_string(use_diff=False)), "config.json")
    assert shape.parameters == size(weights) + size(buffers)
    assert shape.expert_parameters == size({name: it for name, it in weights.items() if ".experts." in name})
    if kinds := getattr(config, "layer_types", None):
        sliding = sum(kind in ("sliding_attention", "chunked_attention") for kind in kinds)
        assert shape.sliding_layers == sliding


def test_what_is_not_built_is_of_a_family_that_is() -> None:
    tried = [family for name, family in FAMILIES.items() if name not in NOT_BUILT]
    assert all(FAMILIES[name] in tried for name in NOT_BUILT)
