"""A model's shape from its `config.json`, for the operator and for `turbo inspect` alike.

The standard library only, since the operator imports it. Weights are counted from the files where there are
any (`model_files`), else from the configuration, for the architectures in `families` alone: a wrong count is
a plan that runs out of memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from turbo_runtime.contract.documents import ModelShape
from turbo_runtime.shapes.config_reader import Config, ConfigReader, Quantization, UnknownShapeError
from turbo_runtime.shapes.families import FAMILIES

__all__ = ["UnknownShapeError", "describe", "from_config"]


def describe(config: Config, name: str) -> tuple[ModelShape, Quantization | None, bool | None]:
    """Read the shape of any decoder-only model without counts, its quantization, and whether embeddings are
    tied (None: it does not say); `name` is for errors. Raises UnknownShapeError.
    """
    reader = ConfigReader(config, name)
    tied = None if reader.config.get("tie_word_embeddings") is None else reader.tied
    return reader.shape(), reader.quantization(), tied


def from_config(config: Config, name: str) -> ModelShape:
    """Return the shape that a Hugging Face `config.json` describes; `name` is for errors. A tied embedding
    counts once; MTP layers, scales and zero points do not count. Raises UnknownShapeError.
    """
    reader = ConfigReader(config, name)
    if reader.architecture not in FAMILIES:
        raise UnknownShapeError(
            f"{name} describes {reader.architecture}, whose weights are not counted from a configuration; "
            f"those that are: {', '.join(sorted(FAMILIES))}. Give what `turbo inspect MODEL` prints instead."
        )
    (shape, less, _), inner, experts = describe(config, name), reader.config, reader.experts
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
        dequantizable=bool(quantized and less and less.refusal is None),
        embedding_parameters=0 if reader.tied else shape.vocab_size * shape.hidden_size,
        expert_parameters=routed,
    )


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
    hidden, vocab, family, experts = shape.hidden_size, shape.vocab_size, config.family, config.experts
    yield Module("model.embed_tokens", vocab * hidden, may_be_quantized=False)
    for layer in range(shape.layers):
        root = f"model.layers.{layer}"
        yield Module(f"{root}.norms", vectors=family.norms * family.norm_vectors * hidden)
        yield from _attention(f"{root}.self_attn", config, shape)
        if experts is None or layer not in experts.layers:
            yield from _mlp(f"{root}.mlp", config, hidden, config.mlp_inner)
            continue
        total, bias = experts.total, experts.total * (2 * experts.inner + hidden) if family.expert_bias else 0
        yield Module(f"{root}.mlp.experts", total * 3 * hidden * experts.inner, bias, routed=True)
        router_bias = total if family.router_bias else 0
        yield Module(f"{root}.mlp.gate", hidden * total, router_bias, may_be_quantized=False)
        if experts.shared_inner:
            yield from _mlp(f"{root}.mlp.shared_experts", config, hidden, experts.shared_inner)
            if family.shared_expert_gate:
                yield Module(f"{root}.mlp.shared_expert_gate", hidden, may_be_quantized=False)
    yield Module("model.norm", vectors=family.norm_vectors * hidden)
    matrix = 0 if config.tied else vocab * hidden
    yield Module("lm_head", matrix, vocab if config.says(family.head_bias) else 0)


def _mlp(root: str, config: ConfigReader, hidden: int, inner: int) -> Iterator[Module]:
    bias = config.says(config.family.mlp_bias)
    for name in ("gate_proj", "up_proj") if config.family.gated else ("up_proj",):
        yield Module(f"{root}.{name}", hidden * inner, inner if bias else 0)
    yield Module(f"{root}.down_proj", inner * hidden, hidden if bias else 0)


def _attention(root: str, config: ConfigReader, shape: ModelShape) -> Iterator[Module]:
    """Yield an attention's modules; the up-projection of latent keys and values is one."""
    family, latent = config.family, config.latent
    bias, hidden, queries = config.says(family.qkv_bias), shape.hidden_size, shape.heads * shape.head_dim
    if latent is None:
        inner, keys = queries, shape.kv_heads * shape.head_dim
        for name, width in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
            yield Module(f"{root}.{name}", hidden * width, width if bias else 0)
        if family.qk_norm and (family.qk_norm_word is None or config.says(family.qk_norm_word)):
            norms = 2 * shape.head_dim if family.qk_norm == "head" else queries + keys
            yield Module(f"{root}.qk_norm", vectors=norms)
        if family.sinks:
            yield Module(f"{root}.sinks", vectors=shape.heads)
    else:
        inner, rank, cached = shape.heads * latent.value, latent.query_rank, shape.kv_latent
        if rank:
            yield Module(f"{root}.q_a_proj", hidden * rank, rank + (rank if bias else 0))
        yield Module(f"{root}.q_b_proj" if rank else f"{root}.q_proj", (rank or hidden) * queries)
        yield Module(f"{root}.kv_a_proj_with_mqa", hidden * cached, latent.kv_rank + (cached if bias else 0))
        yield Module(f"{root}.kv_b_proj", latent.kv_rank * shape.heads * (latent.nope + latent.value))
        heads, head_dim = config.some("index_n_heads"), config.some("index_head_dim")
        if heads and head_dim:  # these choose the tokens of sparse attention
            yield Module(f"{root}.indexer.wq_b", rank * heads * head_dim)
            yield Module(f"{root}.indexer.wk", hidden * head_dim, 2 * head_dim)
            yield Module(f"{root}.indexer.weights_proj", hidden * heads, may_be_quantized=False)
    yield Module(f"{root}.o_proj", inner * hidden, hidden if config.says(family.out_bias) else 0)
