"""A model's dimensions in the words of its `config.json`, whatever its family calls them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from turbo_runtime.shapes.families import Family

Config = Mapping[str, Any]


class UnknownShapeError(ValueError):
    """A shape that cannot be read; the message is a sentence: what was found, and what would do instead."""


@dataclass(frozen=True, slots=True)
class Latent:
    """Latent attention: what is cached is one vector of `kv_rank + rope` for all heads of a layer."""

    kv_rank: int
    rope: int
    nope: int
    value: int
    query_rank: int  # 0: queries are made in one step


@dataclass(frozen=True, slots=True)
class Experts:
    """The routed experts of a layer and what stands beside them."""

    count: int
    per_token: int
    inner: int  # 0 where no word says so
    shared_inner: int  # of the shared experts together; 0: there are none


@dataclass(frozen=True, slots=True)
class Dimensions:
    """What the configuration says of the decoder, in elements and layers."""

    layers: int
    hidden: int
    inner: int  # of the MLP of a layer without experts; 0 where no word says so
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    positions: int
    window: int  # 0: no layer slides
    sliding_layers: int
    mtp_layers: int
    latent: Latent | None
    experts: Experts | None
    expert_layers: frozenset[int]


def decoder(config: Config) -> Config:
    """The part of a configuration that describes the text decoder, over the words of the whole."""
    for key in ("text_config", "language_config", "llm_config"):
        if isinstance(config.get(key), Mapping):
            return {**config, **config[key], "architectures": config.get("architectures")}
    return config


def dimensions(config: Config, name: str, family: Family) -> Dimensions:
    """Of a decoder's configuration; UnknownShapeError names the word that is missing or wrong."""
    hidden, layers, heads, vocab, positions = (
        count(config, name, key)
        for key in (
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "vocab_size",
            "max_position_embeddings",
        )
    )
    latent = _latent(config, name)
    experts = _experts(config, name, family)
    expert_layers = _expert_layers(config, layers) if experts else frozenset()
    inner = config.get("intermediate_size_mlp") or config.get("intermediate_size") or 0
    head_dim = latent.nope + latent.rope if latent else count(config, name, "head_dim", hidden // heads)
    window, sliding = _window(config, family, layers, positions)
    return Dimensions(
        layers=layers,
        hidden=hidden,
        inner=inner,
        heads=heads,
        kv_heads=heads if latent else count(config, name, "num_key_value_heads", heads),
        head_dim=head_dim,
        vocab=vocab,
        positions=positions,
        window=window,
        sliding_layers=sliding,
        mtp_layers=int(config.get("num_nextn_predict_layers") or config.get("mtp_num_hidden_layers") or 0),
        latent=latent,
        experts=experts,
        expert_layers=expert_layers,
    )


def count(config: Config, name: str, key: str, default: int | None = None) -> int:
    """The whole number above 0 that a word stands for; `default` where it is absent or null."""
    value = config.get(key)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UnknownShapeError(f"{name}: {key} must be a whole number above 0, not {value!r}.")
    return value


def _first(config: Config, *keys: str) -> str | None:
    return next((key for key in keys if config.get(key)), None)


def _latent(config: Config, name: str) -> Latent | None:
    if not config.get("kv_lora_rank"):
        return None
    return Latent(
        kv_rank=count(config, name, "kv_lora_rank"),
        rope=count(config, name, "qk_rope_head_dim"),
        nope=count(config, name, "qk_nope_head_dim"),
        value=count(config, name, "v_head_dim"),
        query_rank=count(config, name, "q_lora_rank") if config.get("q_lora_rank") else 0,
    )


def _experts(config: Config, name: str, family: Family) -> Experts | None:
    total = _first(config, "n_routed_experts", "num_local_experts", "num_experts")
    if total is None:
        return None
    chosen = _first(config, "num_experts_per_tok", "experts_per_token") or "num_experts_per_tok"
    inner = config.get("moe_intermediate_size") or config.get("intermediate_size") or 0
    shared = config.get("n_shared_experts") or config.get("num_shared_experts") or family.shared_experts
    return Experts(
        count=count(config, name, total),
        per_token=count(config, name, chosen),
        inner=inner,
        shared_inner=int(config.get("shared_expert_intermediate_size") or shared * inner),
    )


def _expert_layers(config: Config, layers: int) -> frozenset[int]:
    """Which layers have experts. Families say it in five ways; one that says nothing has them everywhere."""
    every = range(layers)
    if kinds := config.get("mlp_layer_types"):
        return frozenset(i for i in every if kinds[i] == "sparse")
    if listed := config.get("moe_layers"):
        return frozenset(listed)
    if step := config.get("interleave_moe_layer_step"):
        return frozenset(i for i in every if (i + 1) % step == 0)
    first = config.get("first_k_dense_replace") or 0
    step = config.get("decoder_sparse_step") or 1
    dense = frozenset(config.get("mlp_only_layers") or ())
    return frozenset(i for i in every if i >= first and (i + 1) % step == 0 and i not in dense)


def _window(config: Config, family: Family, layers: int, positions: int) -> tuple[int, int]:
    """How far sliding layers look back, and how many there are; (0, 0) where none does."""
    window = config.get("sliding_window", family.window) or config.get("attention_chunk_size") or 0
    if not config.get("use_sliding_window", not family.window_if_asked):
        window = 0
    if not window or window >= positions:
        return 0, 0
    if kinds := config.get("layer_types"):
        sliding = sum(kind in ("sliding_attention", "chunked_attention") for kind in kinds)
    elif "max_window_layers" in config and family.window_if_asked:
        sliding = max(0, layers - int(config["max_window_layers"]))
    else:
        pattern = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern")
        every = pattern if isinstance(pattern, int) else family.full_every
        sliding = layers - (layers // every if every else 0)
    return (int(window), sliding) if sliding else (0, 0)
