"""A model's shape from its `config.json`, for the operator and for `turbo inspect` alike.

The standard library only, since the operator imports it. Weights are counted from the files where there are
any (`model_files`), else from the configuration, for the architectures in `families` alone: a wrong count is
a plan that runs out of memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from turbo_runtime.contract.documents import ModelShape
from turbo_runtime.shapes.config_reader import (
    Config,
    ConfigReader,
    Experts,
    Latent,
    UnknownShapeError,
    decoder,
    read_shape,
)
from turbo_runtime.shapes.families import FAMILIES, Bias, Family
from turbo_runtime.shapes.quantization import Quantization, quantization

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
    for module in _modules(reader, shape):
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


@dataclass(frozen=True, slots=True)
class Module:
    """Elements of one module: a matrix, which may be quantised, and vectors, which never are."""

    name: str
    matrix: int = 0
    vectors: int = 0
    routed: bool = False  # of routed experts
    may_be_quantized: bool = True


def _modules(config: ConfigReader, shape: ModelShape) -> Iterator[Module]:
    """Yield every module of the decoder and its head; a tied head has no matrix. MTP layers are left out."""
    hidden, vocab, family = shape.hidden_size, shape.vocab_size, config.family
    yield Module("model.embed_tokens", vocab * hidden, may_be_quantized=False)
    experts, inner = config.experts, config.mlp_inner
    mlp_bias = _has_bias(config, family.mlp_bias)
    for layer in range(shape.layers):
        root = f"model.layers.{layer}"
        yield Module(f"{root}.norms", vectors=family.norms * family.norm_vectors * hidden)
        yield from _attention(f"{root}.self_attn", config, shape)
        if experts and layer in experts.layers:
            yield from _mixture(f"{root}.mlp", experts, hidden, family, mlp_bias)
        else:
            yield from _mlp(f"{root}.mlp", hidden, inner, family, mlp_bias)
    yield Module("model.norm", vectors=family.norm_vectors * hidden)
    matrix = 0 if config.tied else vocab * hidden
    yield Module("lm_head", matrix, vocab if _has_bias(config, family.head_bias) else 0)


def _has_bias(config: ConfigReader, bias: Bias) -> bool:
    return bias if isinstance(bias, bool) else config.says(bias)


def _attention(root: str, config: ConfigReader, shape: ModelShape) -> Iterator[Module]:
    family = config.family
    qkv, out = _has_bias(config, family.qkv_bias), _has_bias(config, family.out_bias)
    hidden, out_inner = shape.hidden_size, shape.heads * shape.head_dim
    if latent := config.latent:
        yield from _latent(root, latent, shape, qkv)
        yield from _indexer(root, config, hidden, latent.query_rank)
        out_inner = shape.heads * latent.value
    else:
        keys = shape.kv_heads * shape.head_dim
        for name, width in (("q_proj", out_inner), ("k_proj", keys), ("v_proj", keys)):
            yield Module(f"{root}.{name}", hidden * width, width if qkv else 0)
        if family.qk_norm and (family.qk_norm_word is None or config.says(family.qk_norm_word)):
            norms = 2 * shape.head_dim if family.qk_norm == "head" else out_inner + keys
            yield Module(f"{root}.qk_norm", vectors=norms)
        if family.sinks:
            yield Module(f"{root}.sinks", vectors=shape.heads)
    yield Module(f"{root}.o_proj", out_inner * hidden, hidden if out else 0)


def _latent(root: str, latent: Latent, shape: ModelShape, bias: bool) -> Iterator[Module]:
    """Yield latent attention up to the output; the up-projection of keys and values is one."""
    hidden, rank = shape.hidden_size, latent.query_rank
    queries, cached = shape.heads * shape.head_dim, shape.kv_latent
    if rank:
        yield Module(f"{root}.q_a_proj", hidden * rank, rank + (rank if bias else 0))
        yield Module(f"{root}.q_b_proj", rank * queries)
    else:
        yield Module(f"{root}.q_proj", hidden * queries)
    yield Module(f"{root}.kv_a_proj_with_mqa", hidden * cached, latent.kv_rank + (cached if bias else 0))
    yield Module(f"{root}.kv_b_proj", latent.kv_rank * shape.heads * (latent.nope + latent.value))


def _indexer(root: str, config: ConfigReader, hidden: int, query_rank: int) -> Iterator[Module]:
    """Yield what chooses the tokens of sparse attention."""
    heads, head_dim = config.some("index_n_heads"), config.some("index_head_dim")
    if heads and head_dim:
        yield Module(f"{root}.indexer.wq_b", query_rank * heads * head_dim)
        yield Module(f"{root}.indexer.wk", hidden * head_dim, 2 * head_dim)
        yield Module(f"{root}.indexer.weights_proj", hidden * heads, may_be_quantized=False)


def _mlp(root: str, hidden: int, inner: int, family: Family, bias: bool) -> Iterator[Module]:
    for name in ("gate_proj", "up_proj") if family.gated else ("up_proj",):
        yield Module(f"{root}.{name}", hidden * inner, inner if bias else 0)
    yield Module(f"{root}.down_proj", inner * hidden, hidden if bias else 0)


def _mixture(root: str, experts: Experts, hidden: int, family: Family, mlp_bias: bool) -> Iterator[Module]:
    bias = experts.total * (2 * experts.inner + hidden) if family.expert_bias else 0
    yield Module(f"{root}.experts", experts.total * 3 * hidden * experts.inner, bias, routed=True)
    router_bias = experts.total if family.router_bias else 0
    yield Module(f"{root}.gate", hidden * experts.total, router_bias, may_be_quantized=False)
    if experts.shared_inner:
        yield from _mlp(f"{root}.shared_experts", hidden, experts.shared_inner, family, mlp_bias)
    if experts.shared_inner and family.shared_expert_gate:
        yield Module(f"{root}.shared_expert_gate", hidden, may_be_quantized=False)
