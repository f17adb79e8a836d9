"""Model shapes without a model: from a `config.json`, `turbo inspect`'s output, or the shipped table.

Only architectures whose weights are counted exactly below are read from a configuration; another one is
refused by its name, since a wrong count would be a plan that runs out of memory. In a cluster the inspect Job
counts the weights themselves instead.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from importlib import resources
from typing import Any

from turbo_runtime.contract import ModelFacts, ModelShape


class UnknownShapeError(ValueError):
    """A shape that cannot be read; the message is a sentence: what was found, and what would do instead."""


# Biases and extra norms per layer are what tells these decoder-only families apart; all have RMSNorm, a gated
# MLP and RoPE.
ATTENTION_BIAS = {
    "LlamaForCausalLM": False,
    "MistralForCausalLM": False,
    "Qwen2ForCausalLM": True,
    "Qwen3ForCausalLM": False,
}
HEAD_NORMS = {"Qwen3ForCausalLM"}  # one RMSNorm over each head of queries and of keys


def from_document(text: str, name: str) -> ModelShape:
    """The shape in `turbo inspect`'s output or a model's `config.json`; `name` is for the error."""
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise UnknownShapeError(
            f"{name} is not JSON ({error.msg}); give a config.json, a folder that holds one, or what "
            "`turbo inspect MODEL` prints. A .gguf file is read by `turbo inspect`."
        ) from error
    if not isinstance(document, dict):
        raise UnknownShapeError(
            f"{name} holds no JSON object; give a config.json or what `turbo inspect MODEL` prints."
        )
    if "shape" not in document:
        return from_config(document, name)
    try:
        return ModelFacts.from_json(text).shape
    except (ValueError, TypeError) as error:
        raise UnknownShapeError(f"{name} is no output of `turbo inspect`: {error}.") from error


def from_config(config: Mapping[str, Any], name: str) -> ModelShape:
    """The shape that a Hugging Face `config.json` describes; a tied embedding counts once."""
    architecture = next(iter(config.get("architectures") or ()), "no architecture")
    if architecture not in ATTENTION_BIAS:
        raise UnknownShapeError(
            f"{name} describes {architecture}, whose weights are not counted from a configuration; those "
            f"that are: {', '.join(sorted(ATTENTION_BIAS))}. Give what `turbo inspect MODEL` prints instead."
        )
    hidden, inner, layers, heads, vocab, positions = (
        _count(config, key, name)
        for key in (
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "vocab_size",
            "max_position_embeddings",
        )
    )
    kv_heads = _count(config, "num_key_value_heads", name, heads)
    head_dim = _count(config, "head_dim", name, hidden // heads)
    queries, keys = heads * head_dim, kv_heads * head_dim
    layer = hidden * (queries + 2 * keys) + queries * hidden + 3 * hidden * inner + 2 * hidden
    if config.get("attention_bias", ATTENTION_BIAS[architecture]):
        layer += queries + 2 * keys
        if (
            architecture != "Qwen2ForCausalLM"
        ):  # where `attention_bias` is a choice it gives the output projection one too
            layer += hidden
    if config.get("mlp_bias", False):
        layer += 2 * inner + hidden
    if architecture in HEAD_NORMS:
        layer += 2 * head_dim
    embeddings = vocab * hidden * (1 if config.get("tie_word_embeddings", False) else 2)
    return ModelShape(
        architecture=architecture,
        parameters=embeddings + layers * layer + hidden,
        layers=layers,
        hidden_size=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=vocab,
        max_position=positions,
        dtype=str(config.get("dtype") or config.get("torch_dtype") or "float32"),
    )


def shipped(hub_id: str) -> ModelShape | None:
    """The shape of a well-known model by its hub id in any case; None when it is not shipped."""
    table = tomllib.loads(resources.files(__package__).joinpath("shapes.toml").read_text(encoding="utf-8"))
    for row in table["model"]:
        if hub_id.lower() in (name.lower() for name in row["names"]):
            return from_config(row["config"], hub_id)
    return None


def _count(config: Mapping[str, Any], key: str, name: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UnknownShapeError(f"{name}: {key} must be a whole number above 0, not {value!r}.")
    return value
