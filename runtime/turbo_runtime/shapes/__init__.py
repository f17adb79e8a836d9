"""A model's shape from its `config.json`, for the operator and for `turbo inspect` alike.

The standard library only, since the operator imports it. Weights are counted from the files where there are
any (`model_files`), else from the configuration, for the architectures in `families` alone: a wrong count is
a plan that runs out of memory.
"""

from __future__ import annotations

from dataclasses import replace

from turbo_runtime.contract.model import ModelShape
from turbo_runtime.shapes.config_reader import Config, ConfigReader, UnknownShapeError, decoder, read_shape
from turbo_runtime.shapes.families import FAMILIES, Family
from turbo_runtime.shapes.quantization import Quantization, quantization
from turbo_runtime.shapes.weights import modules

__all__ = ["UnknownShapeError", "describe", "from_config"]


def describe(config: Config, name: str) -> tuple[ModelShape, Quantization | None, bool | None]:
    """Read the shape of any decoder-only model without counts, its quantization, and whether embeddings are
    tied (None: it does not say); `name` is for errors. Raises UnknownShapeError.
    """
    architecture, inner = _architecture(config), decoder(config)
    reader = ConfigReader(inner, name, FAMILIES.get(architecture, Family()))
    tied = None if inner.get("tie_word_embeddings") is None else reader.tied
    return read_shape(reader, architecture), quantization(inner, name), tied


def from_config(config: Config, name: str) -> ModelShape:
    """Return the shape that a Hugging Face `config.json` describes; `name` is for errors. A tied embedding
    counts once; MTP layers, scales and zero points do not count. Raises UnknownShapeError.
    """
    family = FAMILIES.get(architecture := _architecture(config))
    if family is None:
        raise UnknownShapeError(
            f"{name} describes {architecture}, whose weights are not counted from a configuration; those "
            f"that are: {', '.join(sorted(FAMILIES))}. Give what `turbo inspect MODEL` prints instead."
        )
    (shape, less, _), inner = describe(config, name), decoder(config)
    reader = ConfigReader(inner, name, family)
    experts = reader.experts
    if not (experts.inner if experts and len(experts.layers) == shape.layers else reader.mlp_inner):
        reader.count("intermediate_size")  # raises: only where weights are counted is it needed
    parameters, quantized, routed = 0, 0, 0
    for module in modules(reader, shape):
        parameters += module.matrix + module.vectors
        routed += module.matrix + module.vectors if module.routed else 0
        quantized += module.matrix if less and module.may_be_quantized and less.covers(module.name) else 0
    return replace(
        shape,
        parameters=parameters,
        dtype=str(inner.get("dtype") or inner.get("torch_dtype") or "float32"),
        quantization=less.dtype if less and quantized else None,
        quantized_parameters=quantized,
        embedding_parameters=0 if reader.tied else shape.vocab_size * shape.hidden_size,
        expert_parameters=routed,
    )


def _architecture(config: Config) -> str:
    named = config.get("architectures")
    return str(named[0]) if isinstance(named, list) and named else "no architecture"
