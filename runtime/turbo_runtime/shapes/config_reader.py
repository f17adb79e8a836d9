"""Reads a model's dimensions from its `config.json`, whatever its family calls them; and which weights it has
in fewer bits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from turbo_runtime.contract.documents import LARGEST, ModelShape
from turbo_runtime.shapes.dequantization import describe_refusal
from turbo_runtime.shapes.families import FAMILIES, Bias, Family
from turbo_runtime.shapes.support import find_unsupported

Config = Mapping[str, Any]
_DECODERS = ("text_config", "language_config", "llm_config")  # parts that describe the text decoder
MAX_LAYERS = 1000  # of any decoder; a file of another program must not keep a reader busy
BITS = {"fp8": 8, "int8": 8, "int4": 4, "mxfp4": 4, "nvfp4": 4}  # of one weight, its scales apart
_INTEGERS = {8: "int8", 4: "int4"}
_BY_NAME = {"fp8": "fp8", "fbgemm_fp8": "fp8", "mxfp4": "mxfp4"}
_BY_BITS = frozenset({"awq", "gptq", "gptq_marlin", "awq_marlin", "auto-round", "auto_round"})
_MODELOPT = {"FP8": "fp8", "FP8_PB_WO": "fp8", "NVFP4": "nvfp4", "INT8_SQ": "int8", "W4A16_AWQ": "int4"}
_KEPT = ("modules_to_not_convert", "ignore", "ignored_layers", "exclude_modules")
READ = "fp8, fbgemm_fp8, awq, gptq, auto-round, mxfp4, bitsandbytes, compressed-tensors, modelopt"


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


@dataclass(frozen=True, slots=True)
class Quantization:
    """The type of the quantized weights, and the modules that keep the model's own."""

    dtype: str  # a key of BITS
    kept: tuple[str, ...] = ()  # names, parts of names, patterns with * or, after `re:`, regular expressions
    targets: tuple[str, ...] = ()  # only those, where there are any
    head: bool = False  # the output head too, unless it is kept
    refusal: str | None = None  # why engine Turbo cannot dequantize them

    def covers(self, module: str) -> bool:
        """Whether the matrices of a module like `model.layers.3.mlp.down_proj` are quantized."""
        is_target = not self.targets or any(_matches(item, module) for item in self.targets)
        is_kept = (module == "lm_head" and not self.head) or any(_matches(item, module) for item in self.kept)
        return is_target and not is_kept


class ConfigReader:
    """Reads keys of the text decoder, by type. Raises UnknownShapeError for a value of another type."""

    def __init__(self, config: Config, name: str) -> None:
        named = config.get("architectures")
        self.architecture = str(named[0]) if isinstance(named, list) and named else "no architecture"
        self.family, self._name = FAMILIES.get(self.architecture, Family()), name
        decoders = [config[key] for key in _DECODERS if isinstance(config.get(key), Mapping)]
        self.config = {**config, **decoders[0]} if decoders else config

    def count(self, key: str, default: int | None = None, max_value: int = LARGEST) -> int:
        """Return a whole number above 0; `default` where it is absent or null."""
        value = self.config.get(key)
        if value is None:
            value = default
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= max_value:
            limit = "" if max_value == LARGEST else f" and at most {max_value}"
            raise self._error(key, f"a whole number above 0{limit}", value)
        return value

    def some(self, *keys: str) -> int:
        """Return the first of some keys that is neither absent, null nor 0; 0 where none is."""
        return next((self.count(key) for key in keys if self.config.get(key)), 0)

    def says(self, key: Bias, default: bool = False) -> bool:
        """Return whether a key is true, `default` where it is absent or null; or what is always so."""
        value = key if isinstance(key, bool) else self.config.get(key)
        return default if value is None else bool(value)

    def listed(self, key: str, kind: type) -> tuple[Any, ...]:
        """Return a list of numbers or of texts; empty where it is absent or null."""
        value = self.config.get(key) or ()
        if not isinstance(value, (list, tuple)) or not all(isinstance(item, kind) for item in value):
            raise self._error(key, f"a list of {kind.__name__}", value)
        return tuple(value)

    def _error(self, key: str, expected: str, value: object) -> UnknownShapeError:
        if value is None:
            return UnknownShapeError(
                f"{self._name} of {self.architecture} has no {key}, {expected}: decoder-only models with "
                "attention have one, and no others are served."
            )
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
            self._expert_layers(self.layers),
        )

    def _expert_layers(self, layers: int) -> frozenset[int]:
        """Return the layers that have experts. Families say it in five ways; without any, all layers do."""
        every = range(layers)
        if kinds := self.listed("mlp_layer_types", str):
            return frozenset(i for i, kind in enumerate(kinds[:layers]) if kind == "sparse")
        if listed := self.listed("moe_layers", int):
            return frozenset(listed) & frozenset(every)
        if step := self.some("interleave_moe_layer_step"):
            return frozenset(i for i in every if (i + 1) % step == 0)
        first, step = self.some("first_k_dense_replace"), self.some("decoder_sparse_step") or 1
        dense = frozenset(self.listed("mlp_only_layers", int))
        return frozenset(i for i in every if i >= first and (i + 1) % step == 0 and i not in dense)

    def shape(self) -> ModelShape:
        """Read all but the counts of weights. Raises UnknownShapeError."""
        layers = self.layers
        hidden, heads = self.count("hidden_size"), self.count("num_attention_heads")
        positions = self.count("max_position_embeddings")
        latent, experts = self.latent, self.experts
        window, sliding = self._window(layers, positions)
        width = 0 if experts and len(experts.layers) == layers else self.mlp_inner
        if experts and experts.layers:
            width = max(width, experts.per_token * experts.inner + experts.shared_inner)
        return ModelShape(
            architecture=self.architecture,
            parameters=0,
            layers=layers,
            hidden_size=hidden,
            heads=heads,
            kv_heads=heads if latent else self.count("num_key_value_heads", heads),
            head_dim=latent.nope + latent.rope if latent else self.count("head_dim", hidden // heads),
            vocab_size=self.count("vocab_size"),
            max_position=positions,
            dtype="",
            experts=experts.total if experts else 0,
            experts_per_token=experts.per_token if experts else 0,
            kv_latent=latent.kv_rank + latent.rope if latent else 0,
            sliding_window=window,
            sliding_layers=sliding,
            mtp_layers=self.some("num_nextn_predict_layers", "mtp_num_hidden_layers"),
            mlp_width=width,
            unsupported=find_unsupported(self.config),
        )

    def _window(self, layers: int, positions: int) -> tuple[int, int]:
        """Return how far sliding layers look back, and their number; (0, 0) where there are none."""
        family = self.family
        if not self.says("use_sliding_window", not family.window_if_asked):
            return 0, 0
        window = self.some("sliding_window") if "sliding_window" in self.config else family.window
        window = window or self.some("attention_chunk_size")
        if not window or window >= positions:
            return 0, 0
        if kinds := self.listed("layer_types", str):
            sliding = sum(kind in ("sliding_attention", "chunked_attention") for kind in kinds[:layers])
        elif family.window_if_asked and "max_window_layers" in self.config:
            sliding = max(0, layers - self.some("max_window_layers"))
        else:
            every = self.some("sliding_window_pattern", "_sliding_window_pattern") or family.full_every
            sliding = layers - (layers // every if every else 0)
        return (window, sliding) if sliding else (0, 0)

    def quantization(self) -> Quantization | None:
        """Read the quantization, None where there is none. Raises UnknownShapeError for one not counted."""
        section = self.config.get("quantization_config") or self.config.get("compression_config")
        if not isinstance(section, Mapping):
            return None
        method = str(section.get("quant_method") or section.get("quant_algo") or "none").lower()
        kept = tuple(name for key in _KEPT for name in _names(section.get(key)))
        head = bool(section.get("lm_head")) or method in ("compressed-tensors", "modelopt")
        dtype, targets, groups = None, tuple[str, ...](), section.get("config_groups")
        if method in _BY_NAME:
            dtype = _BY_NAME[method]
        elif method in _BY_BITS:
            dtype = _INTEGERS.get(_bits(section, "bits", "w_bit"))
        elif method == "bitsandbytes":
            dtype = "int4" if section.get("load_in_4bit") else "int8"
        elif method == "modelopt" and str(section.get("quant_algo")) in _MODELOPT:
            dtype = _MODELOPT[str(section["quant_algo"])]
        elif isinstance(groups, Mapping):
            items = [item for item in groups.values() if isinstance(item, Mapping)]
            items = [item for item in items if isinstance(item.get("weights"), Mapping)]
            types = {_compressed(item["weights"]) for item in items}
            dtype = types.pop() if len(types) == 1 else None
            named = tuple(name for item in items for name in _names(item.get("targets")))
            targets = () if "Linear" in named else named
        if dtype is None:
            raise UnknownShapeError(
                f"{self._name} is quantized in a way that is not counted: {_uncounted(section, method)}. "
                f"Choose a checkpoint with weights of one type of 8 or 4 bits, of a method among {READ}."
            )
        return Quantization(dtype, kept, targets, head, describe_refusal(section))


def _uncounted(section: Mapping[str, Any], method: str) -> str:
    """Name the word of the quantization's section that is not known, and its value."""
    if method in _BY_BITS:
        return f"quantization_config.bits is {section.get('bits', section.get('w_bit'))}"
    if isinstance(section.get("config_groups"), Mapping):
        return "the weights of quantization_config.config_groups are of several types, or of an unknown one"
    if method == "modelopt":
        return f"quantization_config.quant_algo is {section.get('quant_algo')}"
    return f"quantization_config.quant_method is {'missing' if method == 'none' else method}"


def _compressed(weights: Mapping[str, Any]) -> str | None:
    """The type of a group of `compressed-tensors` or `modelopt`."""
    bits = _bits(weights, "num_bits")
    if weights.get("type") == "float":
        four = "mxfp4" if weights.get("group_size") == 32 else "nvfp4"
        return {8: "fp8", 4: four}.get(bits)
    return _INTEGERS.get(bits)


def _bits(section: Mapping[str, Any], *keys: str) -> int:
    return next((section[key] for key in keys if isinstance(section.get(key), int)), 0)


def _names(value: object) -> Iterator[str]:
    """Names of modules without the part that wraps a text decoder into a model of several inputs."""
    for item in value if isinstance(value, (list, tuple)) else ():
        if isinstance(item, str):
            yield item.replace("language_model.", "")


def _matches(pattern: str, module: str) -> bool:
    if pattern.startswith("re:"):
        try:
            return re.match(pattern[3:], module) is not None
        except re.error as error:
            raise UnknownShapeError(f"quantization_config: {pattern!r} is no pattern: {error}.") from error
    if "*" in pattern:
        return fnmatchcase(module, pattern) or fnmatchcase(module, f"{pattern}.*")
    return f".{pattern}." in f".{module}."
