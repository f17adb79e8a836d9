"""The weights of a decoder, module by module, from its dimensions and its family's differences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from turbo_runtime.shapes.config_reader import Dimensions, Experts, Latent, Words
from turbo_runtime.shapes.families import Bias, Family


@dataclass(frozen=True, slots=True)
class Module:
    """Elements of one module: a matrix, which may be quantised, and vectors, which never are."""

    name: str
    matrix: int = 0
    vectors: int = 0
    routed: bool = False  # of routed experts
    may_be_quantized: bool = True


def modules(words: Words, it: Dimensions, family: Family) -> Iterator[Module]:
    """Every module of the decoder and its head; a tied head has no matrix. MTP layers are left out."""
    yield Module("model.embed_tokens", it.vocab * it.hidden, may_be_quantized=False)
    mlp_bias = _said(words, family.mlp_bias)
    for layer in range(it.layers):
        root = f"model.layers.{layer}"
        yield Module(f"{root}.norms", vectors=family.norms * family.norm_vectors * it.hidden)
        yield from _attention(f"{root}.self_attn", words, it, family)
        if it.experts and layer in it.expert_layers:
            yield from _mixture(f"{root}.mlp", it.experts, it.hidden, family, mlp_bias)
        else:
            yield from _mlp(f"{root}.mlp", it.hidden, it.inner, family, mlp_bias)
    yield Module("model.norm", vectors=family.norm_vectors * it.hidden)
    matrix = 0 if tied(words, family) else it.vocab * it.hidden
    yield Module("lm_head", matrix, it.vocab if _said(words, family.head_bias) else 0)


def tied(words: Words, family: Family) -> bool:
    """Whether the head is the embedding."""
    return words.says("tie_word_embeddings", family.tied)


def _said(words: Words, bias: Bias) -> bool:
    return bias if isinstance(bias, bool) else words.says(bias)


def _attention(root: str, words: Words, it: Dimensions, family: Family) -> Iterator[Module]:
    qkv, out = _said(words, family.qkv_bias), _said(words, family.out_bias)
    if it.latent:
        yield from _latent(root, it.latent, it, qkv)
        yield from _indexer(root, words, it)
        yield Module(f"{root}.o_proj", it.heads * it.latent.value * it.hidden, it.hidden if out else 0)
        return
    queries, keys = it.heads * it.head_dim, it.kv_heads * it.head_dim
    for name, size in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
        yield Module(f"{root}.{name}", it.hidden * size, size if qkv else 0)
    yield Module(f"{root}.o_proj", queries * it.hidden, it.hidden if out else 0)
    if family.qk_norm and (family.qk_norm_word is None or words.says(family.qk_norm_word)):
        yield Module(
            f"{root}.qk_norm", vectors=2 * it.head_dim if family.qk_norm == "head" else queries + keys
        )
    if family.sinks:
        yield Module(f"{root}.sinks", vectors=it.heads)


def _latent(root: str, latent: Latent, it: Dimensions, bias: bool) -> Iterator[Module]:
    """The projections of latent attention up to the output; the up-projection of keys and values is one."""
    queries, cached = it.heads * (latent.nope + latent.rope), latent.kv_rank + latent.rope
    if latent.query_rank:
        rank = latent.query_rank
        yield Module(f"{root}.q_a_proj", it.hidden * rank, rank + (rank if bias else 0))
        yield Module(f"{root}.q_b_proj", rank * queries)
    else:
        yield Module(f"{root}.q_proj", it.hidden * queries)
    yield Module(f"{root}.kv_a_proj_with_mqa", it.hidden * cached, latent.kv_rank + (cached if bias else 0))
    yield Module(f"{root}.kv_b_proj", latent.kv_rank * it.heads * (latent.nope + latent.value))


def _indexer(root: str, words: Words, it: Dimensions) -> Iterator[Module]:
    """What chooses the tokens that sparse attention looks at."""
    heads, size = words.some("index_n_heads"), words.some("index_head_dim")
    if heads and size and it.latent:
        yield Module(f"{root}.indexer.wq_b", it.latent.query_rank * heads * size)
        yield Module(f"{root}.indexer.wk", it.hidden * size, 2 * size)
        yield Module(f"{root}.indexer.weights_proj", it.hidden * heads, may_be_quantized=False)


def _mlp(root: str, hidden: int, inner: int, family: Family, bias: bool) -> Iterator[Module]:
    inward = ("gate_proj", "up_proj") if family.gated else ("up_proj",)
    for name in inward:
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
