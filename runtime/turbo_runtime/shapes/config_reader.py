"""Reads a model's dimensions from its `config.json`, whatever its family calls them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from turbo_runtime.contract.documents import LARGEST, ModelShape
from turbo_runtime.shapes.families import Family

Config = Mapping[str, Any]
MAX_LAYERS = 1000  # of any decoder; a file of another program must not keep a reader busy


class UnknownShapeError(ValueError):
    """A shape that cannot be read; the message is a sentence with the remedy."""


class Latent(NamedTuple):
    """Latent attention: what is cached is one vector of `kv_rank + rope` for all heads of a layer."""

    kv_rank: int
    rope: int
    nope: int
    value: int
    query_rank: int  # 0: queries are made in one step


class Experts(NamedTuple):
    """The routed experts of a layer and what stands beside them."""

    total: int
    per_token: int
    inner: int  # 0 where unknown
    shared_inner: int  # of the shared experts together; 0: there are none
    layers: frozenset[int]  # that have them


class ConfigReader:
    """Reads a configuration's keys by type. Raises UnknownShapeError for a value of another type."""

    def __init__(self, config: Config, name: str, family: Family) -> None:
        self._config, self._name, self.family = config, name, family

    def __contains__(self, key: str) -> bool:
        return key in self._config

    def count(self, key: str, default: int | None = None, max_value: int = LARGEST) -> int:
        """Return a whole number above 0; `default` where it is absent or null."""
        value = self._config.get(key)
        if value is None:
            value = default
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= max_value:
            limit = "" if max_value == LARGEST else f" and at most {max_value}"
            raise self._error(key, f"a whole number above 0{limit}", value)
        return value

    def some(self, *keys: str) -> int:
        """Return the first of some keys that is neither absent, null nor 0; 0 where none is."""
        return next((self.count(key) for key in keys if self._config.get(key)), 0)

    def says(self, key: str, default: bool = False) -> bool:
        """Return whether a key is true; `default` where it is absent or null."""
        value = self._config.get(key)
        return default if value is None else bool(value)

    def listed(self, key: str, kind: type) -> tuple[Any, ...]:
        """Return a list of numbers or of texts; empty where it is absent or null."""
        value = self._config.get(key) or ()
        if not isinstance(value, (list, tuple)) or not all(isinstance(item, kind) for item in value):
            raise self._error(key, f"a list of {kind.__name__}", value)
        return tuple(value)

    def _error(self, key: str, expected: str, value: object) -> UnknownShapeError:
        return UnknownShapeError(f"{self._name}: {key} must be {expected}, not {repr(value)[:80]}.")

    @property
    def layers(self) -> int:
        """Return the number of layers."""
        return self.count("num_hidden_layers", max_value=MAX_LAYERS)

    @property
    def mlp_inner(self) -> int:
        """Return the inner elements of the MLP of a layer without experts; 0 where unknown."""
        return self.some("intermediate_size_mlp", "intermediate_size")

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding."""
        return self.says("tie_word_embeddings", self.family.tied)

    @property
    def latent(self) -> Latent | None:
        """Read the sizes of latent attention; None where a model has none."""
        if not self.some("kv_lora_rank"):
            return None
        kv_rank, rope = self.count("kv_lora_rank"), self.count("qk_rope_head_dim")
        nope, value = self.count("qk_nope_head_dim"), self.count("v_head_dim")
        return Latent(kv_rank, rope, nope, value, self.some("q_lora_rank"))

    @property
    def experts(self) -> Experts | None:
        """Read the sizes of experts; None where a model has none."""
        if not (total := self.some("n_routed_experts", "num_local_experts", "num_experts")):
            return None
        inner = self.some("moe_intermediate_size", "intermediate_size")
        shared = self.some("n_shared_experts", "num_shared_experts") or self.family.shared_experts
        return Experts(
            total,
            self.some("num_experts_per_tok") or self.count("experts_per_token"),
            inner,
            self.some("shared_expert_intermediate_size") or shared * inner,
            _expert_layers(self, self.layers),
        )


def decoder(config: Config) -> Config:
    """Return the part of a configuration that describes the text decoder, over the keys of the whole."""
    for key in ("text_config", "language_config", "llm_config"):
        if isinstance(config.get(key), Mapping):
            return {**config, **config[key], "architectures": config.get("architectures")}
    return config


def read_shape(config: ConfigReader, architecture: str) -> ModelShape:
    """Read all but the counts of weights. Raises UnknownShapeError."""
    layers = config.layers
    hidden, heads = config.count("hidden_size"), config.count("num_attention_heads")
    positions = config.count("max_position_embeddings")
    latent, experts = config.latent, config.experts
    window, sliding = _window(config, layers, positions)
    width = 0 if experts and len(experts.layers) == layers else config.mlp_inner
    if experts and experts.layers:
        width = max(width, experts.per_token * experts.inner + experts.shared_inner)
    return ModelShape(
        architecture=architecture,
        parameters=0,
        layers=layers,
        hidden_size=hidden,
        heads=heads,
        kv_heads=heads if latent else config.count("num_key_value_heads", heads),
        head_dim=latent.nope + latent.rope if latent else config.count("head_dim", hidden // heads),
        vocab_size=config.count("vocab_size"),
        max_position=positions,
        dtype="",
        experts=experts.total if experts else 0,
        experts_per_token=experts.per_token if experts else 0,
        kv_latent=latent.kv_rank + latent.rope if latent else 0,
        sliding_window=window,
        sliding_layers=sliding,
        mtp_layers=config.some("num_nextn_predict_layers", "mtp_num_hidden_layers"),
        mlp_width=width,
    )


def _expert_layers(config: ConfigReader, layers: int) -> frozenset[int]:
    """Return the layers that have experts. Families say it in five ways; without any, all layers do."""
    every = range(layers)
    if kinds := config.listed("mlp_layer_types", str):
        return frozenset(i for i, kind in enumerate(kinds[:layers]) if kind == "sparse")
    if listed := config.listed("moe_layers", int):
        return frozenset(listed) & frozenset(every)
    if step := config.some("interleave_moe_layer_step"):
        return frozenset(i for i in every if (i + 1) % step == 0)
    first, step = config.some("first_k_dense_replace"), config.some("decoder_sparse_step") or 1
    dense = frozenset(config.listed("mlp_only_layers", int))
    return frozenset(i for i in every if i >= first and (i + 1) % step == 0 and i not in dense)


def _window(config: ConfigReader, layers: int, positions: int) -> tuple[int, int]:
    """Return how far sliding layers look back, and their number; (0, 0) where there are none."""
    family = config.family
    if not config.says("use_sliding_window", not family.window_if_asked):
        return 0, 0
    window = config.some("sliding_window") if "sliding_window" in config else family.window
    window = window or config.some("attention_chunk_size")
    if not window or window >= positions:
        return 0, 0
    if kinds := config.listed("layer_types", str):
        sliding = sum(kind in ("sliding_attention", "chunked_attention") for kind in kinds[:layers])
    elif family.window_if_asked and "max_window_layers" in config:
        sliding = max(0, layers - config.some("max_window_layers"))
    else:
        every = config.some("sliding_window_pattern", "_sliding_window_pattern") or family.full_every
        sliding = layers - (layers // every if every else 0)
    return (window, sliding) if sliding else (0, 0)
