"""A model's shape from its `config.json`, for the operator and for `turbo inspect` alike.

The standard library only, since the operator imports it. Weights are counted from the files where there are
any (`tensor_counts`), else from the configuration, for the architectures in `families` alone: a wrong count
is a plan that runs out of memory.
"""

from __future__ import annotations

from dataclasses import dataclass

from turbo_runtime.contract.model import ModelShape
from turbo_runtime.shapes.config_reader import (
    Config,
    ConfigReader,
    Dimensions,
    UnknownShapeError,
    decoder,
    dimensions,
)
from turbo_runtime.shapes.families import FAMILIES, Family
from turbo_runtime.shapes.quantization import Quantization, quantization
from turbo_runtime.shapes.weights import modules, tied

__all__ = ["Described", "UnknownShapeError", "describe", "from_config"]


@dataclass(frozen=True, slots=True)
class Described:
    """A configuration without counts."""

    architecture: str
    size: Dimensions
    quantization: Quantization | None
    tied: bool | None  # None: it does not say

    def shape(
        self,
        *,
        parameters: int,
        quantized: int,
        routed: int,
        embedding: int,
        dtype: str,
        quantization: str | None,
    ) -> ModelShape:
        """Return the shape with these counts of elements, `routed` those of routed experts."""
        size = self.size
        return ModelShape(
            architecture=self.architecture,
            parameters=parameters,
            layers=size.layers,
            hidden_size=size.hidden,
            heads=size.heads,
            kv_heads=size.kv_heads,
            head_dim=size.head_dim,
            vocab_size=size.vocab,
            max_position=size.positions,
            dtype=dtype,
            quantization=quantization if quantized else None,
            quantized_parameters=quantized,
            embedding_parameters=embedding,
            experts=size.experts.count if size.experts else 0,
            experts_per_token=size.experts.per_token if size.experts else 0,
            expert_parameters=routed,
            kv_latent=size.latent.kv_rank + size.latent.rope if size.latent else 0,
            sliding_window=size.window,
            sliding_layers=size.sliding_layers,
            mtp_layers=size.mtp_layers,
            mlp_width=size.mlp_width,
        )


def describe(config: Config, name: str) -> Described:
    """Read the configuration of any decoder-only model; `name` is for errors. Raises UnknownShapeError."""
    architecture = _architecture(config)
    inner = decoder(config)
    reader = ConfigReader(inner, name)
    return Described(
        architecture=architecture,
        size=dimensions(reader, FAMILIES.get(architecture, Family())),
        quantization=quantization(inner, name),
        tied=None if inner.get("tie_word_embeddings") is None else reader.says("tie_word_embeddings"),
    )


def from_config(config: Config, name: str) -> ModelShape:
    """Return the shape that a Hugging Face `config.json` describes; `name` is for errors. A tied embedding
    counts once; MTP layers, scales and zero points do not count. Raises UnknownShapeError.
    """
    architecture = _architecture(config)
    family = FAMILIES.get(architecture)
    if family is None:
        raise UnknownShapeError(
            f"{name} describes {architecture}, whose weights are not counted from a configuration; those "
            f"that are: {', '.join(sorted(FAMILIES))}. Give what `turbo inspect MODEL` prints instead."
        )
    described, inner = describe(config, name), decoder(config)
    reader = ConfigReader(inner, name)
    size, less = described.size, described.quantization
    if not (size.experts.inner if len(size.expert_layers) == size.layers and size.experts else size.inner):
        reader.count("intermediate_size")  # raises: only where weights are counted is it needed
    parameters, quantized, routed = 0, 0, 0
    for module in modules(reader, size, family):
        parameters += module.matrix + module.vectors
        routed += module.matrix + module.vectors if module.routed else 0
        quantized += module.matrix if less and module.may_be_quantized and less.covers(module.name) else 0
    return described.shape(
        parameters=parameters,
        quantized=quantized,
        routed=routed,
        embedding=0 if tied(reader, family) else size.vocab * size.hidden,
        dtype=str(inner.get("dtype") or inner.get("torch_dtype") or "float32"),
        quantization=less.dtype if less else None,
    )


def _architecture(config: Config) -> str:
    named = config.get("architectures")
    return str(named[0]) if isinstance(named, list) and named else "no architecture"
