"""A model's shape from its `config.json`, for the operator and for `turbo inspect` alike.

The standard library only, since the operator imports it. An architecture that is not in `families` is refused
by its name where its weights would have to be counted from the configuration: a wrong count is a plan that
runs out of memory. Where the weight files are at hand they are counted instead (`stored`), and the
configuration gives the dimensions only.
"""

from __future__ import annotations

from dataclasses import dataclass

from turbo_runtime.contract.model import ModelShape
from turbo_runtime.shapes.config_reader import (
    Config,
    Dimensions,
    UnknownShapeError,
    Words,
    decoder,
    dimensions,
)
from turbo_runtime.shapes.families import FAMILIES, Family
from turbo_runtime.shapes.quantization import Quantization, quantization
from turbo_runtime.shapes.weights import modules, tied

__all__ = ["Counted", "Described", "UnknownShapeError", "describe", "from_config"]


@dataclass(frozen=True, slots=True)
class Counted:
    """What was counted of a model's weights, in elements; see ModelShape for each."""

    parameters: int
    quantized: int
    routed: int  # of routed experts
    embedding: int  # 0 where the head is the same table
    dtype: str
    quantization: str | None


@dataclass(frozen=True, slots=True)
class Described:
    """What a configuration says without a count."""

    architecture: str
    size: Dimensions
    quantization: Quantization | None
    tied: bool | None  # None: it does not say

    def shape(self, counted: Counted) -> ModelShape:
        """The shape of the model, given the count of its weights."""
        it = self.size
        return ModelShape(
            architecture=self.architecture,
            parameters=counted.parameters,
            layers=it.layers,
            hidden_size=it.hidden,
            heads=it.heads,
            kv_heads=it.kv_heads,
            head_dim=it.head_dim,
            vocab_size=it.vocab,
            max_position=it.positions,
            dtype=counted.dtype,
            quantization=counted.quantization if counted.quantized else None,
            quantized_parameters=counted.quantized,
            embedding_parameters=counted.embedding,
            experts=it.experts.count if it.experts else 0,
            experts_per_token=it.experts.per_token if it.experts else 0,
            expert_parameters=counted.routed,
            kv_latent=it.latent.kv_rank + it.latent.rope if it.latent else 0,
            sliding_window=it.window,
            sliding_layers=it.sliding_layers,
            mtp_layers=it.mtp_layers,
            mlp_width=it.mlp_width,
        )


def describe(config: Config, name: str) -> Described:
    """What the configuration of a model of any decoder-only architecture says; `name` is for the error.

    Raises UnknownShapeError.
    """
    architecture = _architecture(config)
    inner = decoder(config)
    words = Words(inner, name)
    return Described(
        architecture=architecture,
        size=dimensions(words, FAMILIES.get(architecture, Family())),
        quantization=quantization(inner, name),
        tied=None if inner.get("tie_word_embeddings") is None else words.says("tie_word_embeddings"),
    )


def from_config(config: Config, name: str) -> ModelShape:
    """The shape that a Hugging Face `config.json` describes; `name` is for the error.

    `parameters` are those of the decoder and its head: a tied embedding counts once, layers that predict the
    tokens after the next (MTP) do not count, nor do scales and zero points of quantised weights.
    Raises UnknownShapeError.
    """
    architecture = _architecture(config)
    family = FAMILIES.get(architecture)
    if family is None:
        raise UnknownShapeError(
            f"{name} describes {architecture}, whose weights are not counted from a configuration; those "
            f"that are: {', '.join(sorted(FAMILIES))}. Give what `turbo inspect MODEL` prints instead."
        )
    described, inner = describe(config, name), decoder(config)
    words = Words(inner, name)
    size, less = described.size, described.quantization
    if not (size.experts.inner if len(size.expert_layers) == size.layers and size.experts else size.inner):
        words.count("intermediate_size")  # raises: only where weights are counted is it needed
    parameters, quantized, routed = 0, 0, 0
    for module in modules(words, size, family):
        parameters += module.matrix + module.vectors
        routed += module.matrix + module.vectors if module.routed else 0
        quantized += module.matrix if less and module.may_be_quantized and less.covers(module.name) else 0
    counted = Counted(
        parameters=parameters,
        quantized=quantized,
        routed=routed,
        embedding=0 if tied(words, family) else size.vocab * size.hidden,
        dtype=str(inner.get("dtype") or inner.get("torch_dtype") or "float32"),
        quantization=less.dtype if less else None,
    )
    return described.shape(counted)


def _architecture(config: Config) -> str:
    named = config.get("architectures")
    return str(named[0]) if isinstance(named, list) and named else "no architecture"
