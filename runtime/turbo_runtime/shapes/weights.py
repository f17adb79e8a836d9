"""The weights of a decoder, module by module, from its dimensions and its family's differences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from turbo_runtime.shapes.config_reader import ConfigReader, Dimensions, Experts, Latent
from turbo_runtime.shapes.families import Bias, Family


@dataclass(frozen=True, slots=True)
class Module:
    """Elements of one module: a matrix, which may be quantised, and vectors, which never are."""

    name: str
    matrix: int = 0
    vectors: int = 0
    routed: bool = False  # of routed experts
    may_be_quantized: bool = True


def modules(config: ConfigReader, size: Dimensions, family: Family) -> Iterator[Module]:
    """Yield every module of the decoder and its head; a tied head has no matrix. MTP layers are left out."""
    yield Module("model.embed_tokens", size.vocab * size.hidden, may_be_quantized=False)
    mlp_bias = _has_bias(config, family.mlp_bias)
    for layer in range(size.layers):
        root = f"model.layers.{layer}"
        yield Module(f"{root}.norms", vectors=family.norms * family.norm_vectors * size.hidden)
        yield from _attention(f"{root}.self_attn", config, size, family)
        if size.experts and layer in size.expert_layers:
            yield from _mixture(f"{root}.mlp", size.experts, size.hidden, family, mlp_bias)
        else:
            yield from _mlp(f"{root}.mlp", size.hidden, size.inner, family, mlp_bias)
    yield Module("model.norm", vectors=family.norm_vectors * size.hidden)
    matrix = 0 if tied(config, family) else size.vocab * size.hidden
    yield Module("lm_head", matrix, size.vocab if _has_bias(config, family.head_bias) else 0)


def tied(config: ConfigReader, family: Family) -> bool:
    """Whether the head is the embedding."""
    return config.says("tie_word_embeddings", family.tied)


def _has_bias(config: ConfigReader, bias: Bias) -> bool:
    return bias if isinstance(bias, bool) else config.says(bias)


def _attention(root: str, config: ConfigReader, size: Dimensions, family: Family) -> Iterator[Module]:
    qkv, out = _has_bias(config, family.qkv_bias), _has_bias(config, family.out_bias)
    if size.latent:
        yield from _latent(root, size.latent, size, qkv)
        yield from _indexer(root, config, size)
        yield Module(
            f"{root}.o_proj", size.heads * size.latent.value * size.hidden, size.hidden if out else 0
        )
        return
    queries, keys = size.heads * size.head_dim, size.kv_heads * size.head_dim
    for name, width in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
        yield Module(f"{root}.{name}", size.hidden * width, width if qkv else 0)
    yield Module(f"{root}.o_proj", queries * size.hidden, size.hidden if out else 0)
    if family.qk_norm and (family.qk_norm_word is None or config.says(family.qk_norm_word)):
        yield Module(
            f"{root}.qk_norm", vectors=2 * size.head_dim if family.qk_norm == "head" else queries + keys
        )
    if family.sinks:
        yield Module(f"{root}.sinks", vectors=size.heads)


def _latent(root: str, latent: Latent, size: Dimensions, bias: bool) -> Iterator[Module]:
    """Yield latent attention up to the output; the up-projection of keys and values is one."""
    queries, cached = size.heads * (latent.nope + latent.rope), latent.kv_rank + latent.rope
    if latent.query_rank:
        rank = latent.query_rank
        yield Module(f"{root}.q_a_proj", size.hidden * rank, rank + (rank if bias else 0))
        yield Module(f"{root}.q_b_proj", rank * queries)
    else:
        yield Module(f"{root}.q_proj", size.hidden * queries)
    yield Module(f"{root}.kv_a_proj_with_mqa", size.hidden * cached, latent.kv_rank + (cached if bias else 0))
    yield Module(f"{root}.kv_b_proj", latent.kv_rank * size.heads * (latent.nope + latent.value))


def _indexer(root: str, config: ConfigReader, size: Dimensions) -> Iterator[Module]:
    """Yield what chooses the tokens of sparse attention."""
    heads, head_dim = config.some("index_n_heads"), config.some("index_head_dim")
    if heads and head_dim and size.latent:
        yield Module(f"{root}.indexer.wq_b", size.latent.query_rank * heads * head_dim)
        yield Module(f"{root}.indexer.wk", size.hidden * head_dim, 2 * head_dim)
        yield Module(f"{root}.indexer.weights_proj", size.hidden * heads, may_be_quantized=False)


def _mlp(root: str, hidden: int, inner: int, family: Family, bias: bool) -> Iterator[Module]:
    for name in ("gate_proj", "up_proj") if family.gated else ("up_proj",):
        yield Module(f"{root}.{name}", hidden * inner, inner if bias else 0)
    yield Module(f"{root}.down_proj", inner * hidden, hidden if bias else 0)


def _mixture(root: str, experts: Experts, hidden: int, family: Family, mlp_bias: bool) -> Iterator[Module]:
    bias = experts.count * (2 * experts.inner + hidden) if family.expert_bias else 0
    yield Module(f"{root}.experts", experts.count * 3 * hidden * experts.inner, bias, routed=True)
    router_bias = experts.count if family.router_bias else 0
    yield Module(f"{root}.gate", hidden * experts.count, router_bias, may_be_quantized=False)
    if experts.shared_inner:
        yield from _mlp(f"{root}.shared_experts", hidden, experts.shared_inner, family, mlp_bias)
    if experts.shared_inner and family.shared_expert_gate:
        yield Module(f"{root}.shared_expert_gate", hidden, may_be_quantized=False)
