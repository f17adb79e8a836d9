"""A model's dimensions in the words of its `config.json`, whatever its family calls them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from turbo_runtime.contract.codec import LARGEST
from turbo_runtime.shapes.families import Family

Config = Mapping[str, Any]
MOST_LAYERS = 1000  # of any decoder; a file of another program must not keep a reader busy


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

    @property
    def mlp_width(self) -> int:
        """Inner elements of one token in the widest layer, its routed and shared experts together; 0 where no
        word says so.
        """
        dense = self.inner if len(self.expert_layers) < self.layers else 0
        if not (self.experts and self.expert_layers):
            return dense
        return max(dense, self.experts.per_token * self.experts.inner + self.experts.shared_inner)


class Words:
    """A configuration's words by type; a word of another type is refused by its name."""

    def __init__(self, config: Config, name: str) -> None:
        self._config = config
        self._name = name  # of the configuration, for errors

    def __contains__(self, key: str) -> bool:
        return key in self._config

    def count(self, key: str, default: int | None = None, most: int = LARGEST) -> int:
        """The whole number above 0 that a word stands for; `default` where it is absent or null."""
        value = self._config.get(key)
        if value is None:
            value = default
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            most_said = "" if most == LARGEST else f" and at most {most}"
            raise self._refusal(key, f"a whole number above 0{most_said}", value)
        return value

    def some(self, *keys: str) -> int:
        """The first of some words that stands for a number above 0; 0 where none does."""
        return next((self.count(key) for key in keys if self._config.get(key)), 0)

    def says(self, key: str, default: bool = False) -> bool:
        """Whether a word is true; `default` where it is absent or null."""
        value = self._config.get(key)
        return default if value is None else bool(value)

    def listed(self, key: str, kind: type) -> tuple[Any, ...]:
        """A list of numbers or of texts; empty where it is absent or null."""
        value = self._config.get(key) or ()
        if not isinstance(value, (list, tuple)) or not all(isinstance(each, kind) for each in value):
            raise self._refusal(key, f"a list of {kind.__name__}", value)
        return tuple(value)

    def _refusal(self, key: str, wanted: str, value: object) -> UnknownShapeError:
        return UnknownShapeError(f"{self._name}: {key} must be {wanted}, not {repr(value)[:80]}.")


def decoder(config: Config) -> Config:
    """The part of a configuration that describes the text decoder, over the words of the whole."""
    for key in ("text_config", "language_config", "llm_config"):
        if isinstance(config.get(key), Mapping):
            return {**config, **config[key], "architectures": config.get("architectures")}
    return config


def dimensions(words: Words, family: Family) -> Dimensions:
    """Of a decoder; UnknownShapeError names the word that is missing or wrong."""
    layers = words.count("num_hidden_layers", most=MOST_LAYERS)
    hidden, heads = words.count("hidden_size"), words.count("num_attention_heads")
    positions = words.count("max_position_embeddings")
    latent = _latent(words)
    experts = _experts(words, family)
    window, sliding = _window(words, family, layers, positions)
    return Dimensions(
        layers=layers,
        hidden=hidden,
        inner=words.some("intermediate_size_mlp", "intermediate_size"),
        heads=heads,
        kv_heads=heads if latent else words.count("num_key_value_heads", heads),
        head_dim=latent.nope + latent.rope if latent else words.count("head_dim", hidden // heads),
        vocab=words.count("vocab_size"),
        positions=positions,
        window=window,
        sliding_layers=sliding,
        mtp_layers=words.some("num_nextn_predict_layers", "mtp_num_hidden_layers"),
        latent=latent,
        experts=experts,
        expert_layers=_expert_layers(words, layers) if experts else frozenset(),
    )


def _latent(words: Words) -> Latent | None:
    if not words.some("kv_lora_rank"):
        return None
    return Latent(
        kv_rank=words.count("kv_lora_rank"),
        rope=words.count("qk_rope_head_dim"),
        nope=words.count("qk_nope_head_dim"),
        value=words.count("v_head_dim"),
        query_rank=words.some("q_lora_rank"),
    )


def _experts(words: Words, family: Family) -> Experts | None:
    total = words.some("n_routed_experts", "num_local_experts", "num_experts")
    if not total:
        return None
    inner = words.some("moe_intermediate_size", "intermediate_size")
    shared = words.some("n_shared_experts", "num_shared_experts") or family.shared_experts
    return Experts(
        count=total,
        per_token=words.some("num_experts_per_tok") or words.count("experts_per_token"),
        inner=inner,
        shared_inner=words.some("shared_expert_intermediate_size") or shared * inner,
    )


def _expert_layers(words: Words, layers: int) -> frozenset[int]:
    """Which layers have experts. Families say it in five ways; one that says nothing has them everywhere."""
    every = range(layers)
    if kinds := words.listed("mlp_layer_types", str):
        return frozenset(i for i, kind in enumerate(kinds[:layers]) if kind == "sparse")
    if listed := words.listed("moe_layers", int):
        return frozenset(listed) & frozenset(every)
    if step := words.some("interleave_moe_layer_step"):
        return frozenset(i for i in every if (i + 1) % step == 0)
    first, step = words.some("first_k_dense_replace"), words.some("decoder_sparse_step") or 1
    dense = frozenset(words.listed("mlp_only_layers", int))
    return frozenset(i for i in every if i >= first and (i + 1) % step == 0 and i not in dense)


def _window(words: Words, family: Family, layers: int, positions: int) -> tuple[int, int]:
    """How far sliding layers look back, and how many there are; (0, 0) where none does."""
    if not words.says("use_sliding_window", not family.window_if_asked):
        return 0, 0
    window = words.some("sliding_window") if "sliding_window" in words else family.window
    window = window or words.some("attention_chunk_size")
    if not window or window >= positions:
        return 0, 0
    if kinds := words.listed("layer_types", str):
        sliding = sum(kind in ("sliding_attention", "chunked_attention") for kind in kinds[:layers])
    elif family.window_if_asked and "max_window_layers" in words:
        sliding = max(0, layers - words.some("max_window_layers"))
    else:
        every = words.some("sliding_window_pattern", "_sliding_window_pattern") or family.full_every
        sliding = layers - (layers // every if every else 0)
    return (window, sliding) if sliding else (0, 0)
