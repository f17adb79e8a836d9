"""Llama's block and its variants, with as few operations a layer as they need.

Qwen2 has biases on queries, keys and values, Qwen3 norms queries and keys, Gemma 3 norms what its parts give,
too, and GPT-OSS has attention sinks. All of that comes from the modules that transformers built, as does
every weight.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from turbo_runtime.model_files.source import ARCHITECTURES
from turbo_runtime.models.attention.metadata import StepMetadata
from turbo_runtime.models.attention.pool import cache_shape
from turbo_runtime.models.layers.experts import Experts
from turbo_runtime.models.layers.primitives import (
    Affine,
    Decoder,
    GatedMLP,
    HeadNorm,
    Hidden,
    Layer,
    Product,
    RMSNorm,
    Rope,
    Rotation,
    Site,
    find_parts,
    fused,
)
from turbo_runtime.models.matmul import BatchInvariantLinear, HeadProduct

LEAN_ARCHITECTURES = frozenset(ARCHITECTURES) - {"Olmo2ForCausalLM"}  # whose norms come behind its parts


class LeanAttention(Layer):
    """Fused projections, rotation, paged attention, projection back."""

    def __init__(self, module: Any, layer: int, heads: int, kv_heads: int) -> None:
        self.layer, self.heads, self.kv_heads = layer, heads, kv_heads
        self.scaling = float(module.scaling)
        parts = find_parts(module, ("qkv_proj",), ("q_proj", "k_proj", "v_proj"))
        self.parts = {name: part.out_features for name, part in parts.items()}
        self.project: Product = fused(*parts.values())
        sinks: Tensor | None = getattr(module, "sinks", None)
        self.sinks = None if sinks is None else sinks.detach().float()
        self.output: Product = fused(module.o_proj)
        self.head_norm: HeadNorm | None = None
        if hasattr(module, "q_norm"):
            self.head_norm = HeadNorm(module.q_norm, module.k_norm, heads, kv_heads)

    def __call__(self, x: Tensor, rotation: Rotation, step: StepMetadata) -> Tensor:
        """x (rows, width) -> the same."""
        rows = x.shape[0]
        projected = self.project(x).view(rows, self.heads + 2 * self.kv_heads, -1)
        rotated = projected[:, : self.heads + self.kv_heads]
        if self.head_norm:
            rotated = self.head_norm(rotated)
        rotated = rotation(rotated)
        query, key = rotated[:, : self.heads], rotated[:, self.heads :]
        value = projected[:, self.heads + self.kv_heads :]
        outputs = step.attend(self.layer, query, key, value, self.scaling, self.sinks)
        return self.output(outputs.flatten(1))

    def sites(self, prefix: str) -> Iterator[Site]:
        """Yield the products that adapters may change, of the module `prefix`."""
        yield Site(self, "project", {f"{prefix}.{name}": size for name, size in self.parts.items()})
        yield Site.single(self, "output", f"{prefix}.o_proj")


class LatentAttention(Layer):
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1) with its weights absorbed.

    A token is cached as one vector for all heads: its normed latent and a rotated part. Keys and values of
    the heads are never made: a head's key matrix is multiplied into its query, and its value matrix is
    applied to the mixture of latents that attention finds. So all heads attend as one group over one key
    head.
    """

    def __init__(self, module: Any, layer: int) -> None:
        self.layer, self.heads = layer, int(module.num_heads)
        self.rank, self.rope = int(module.kv_lora_rank), int(module.qk_rope_head_dim)
        self.nope, self.value = int(module.qk_nope_head_dim), int(module.v_head_dim)
        self.scaling = float(module.scaling)
        interleaved = bool(getattr(module.config, "rope_interleave", True))
        queries = Affine.from_linear(module.q_proj if module.q_lora_rank is None else module.q_b_proj)
        queries = queries.reordered(self._query_order(interleaved))
        order = torch.cat([self.rank + _rope_order(self.rope, interleaved), torch.arange(self.rank)])
        cached = Affine.from_linear(module.kv_a_proj_with_mqa).reordered(order)
        self.down = fused(queries if module.q_lora_rank is None else module.q_a_proj, cached)
        self.query_norm: RMSNorm | None = None
        self.query: BatchInvariantLinear | None = None
        if module.q_lora_rank is not None:
            self.query_norm, self.query = RMSNorm(module.q_a_layernorm), fused(queries)
        self.latent_norm = RMSNorm(module.kv_a_layernorm)
        by_head = module.kv_b_proj.weight.detach().view(self.heads, self.nope + self.value, self.rank)
        self.absorb = HeadProduct(by_head[:, : self.nope].transpose(1, 2))
        self.expand = HeadProduct(by_head[:, self.nope :])
        self.output: Product = fused(module.o_proj)

    def __call__(self, x: Tensor, rotation: Rotation, step: StepMetadata) -> Tensor:
        """x (rows, width) -> the same."""
        rows, heads = x.shape[0], self.heads
        query, key_rope, latent = self.down(x).tensor_split((-self.rope - self.rank, -self.rank), 1)
        if self.query and self.query_norm:
            query = self.query(self.query_norm(query))
        query, query_rope = query.tensor_split((heads * self.nope,), 1)
        rotated = rotation(torch.cat([query_rope, key_rope], 1).view(rows, heads + 1, self.rope))
        absorbed = self.absorb(query).view(rows, heads, self.rank)
        queries = torch.cat([absorbed, rotated[:, :heads]], 2)
        cached = torch.cat([self.latent_norm(latent)[:, None], rotated[:, heads:]], 2)
        outputs = step.attend(self.layer, queries, cached, None, self.scaling)
        return self.output(self.expand(outputs.flatten(1)))

    def _query_order(self, interleaved: bool) -> Tensor:
        """Of the rows of the query matrix: what is not rotated of all heads, then what is rotated."""
        by_head = torch.arange(self.heads * (self.nope + self.rope)).view(self.heads, -1)
        rope = by_head[:, self.nope :].index_select(1, _rope_order(self.rope, interleaved))
        return torch.cat([by_head[:, : self.nope].reshape(-1), rope.reshape(-1)])


def _rope_order(width: int, interleaved: bool) -> Tensor:
    """Order rows as `Rotation` has them, pairs half a head apart, of queries and keys alike."""
    order = torch.arange(width)
    return torch.cat([order[0::2], order[1::2]]) if interleaved else order


class LeanBlock(Layer):
    """One layer with its residuals."""

    def __init__(self, module: Any, layer: int, heads: int, kv_heads: int) -> None:
        attention, mlp = module.self_attn, module.mlp
        self.attention_norm = RMSNorm(module.input_layernorm)
        self.attention = (
            LatentAttention(attention, layer)
            if hasattr(attention, "kv_lora_rank")
            else LeanAttention(attention, layer, heads, kv_heads)
        )
        self.attention_scale: RMSNorm | None = None
        self.mlp_scale: RMSNorm | None = None
        if hasattr(module, "pre_feedforward_layernorm"):
            self.attention_scale = RMSNorm(module.post_attention_layernorm)
            self.mlp_norm = RMSNorm(module.pre_feedforward_layernorm)
            self.mlp_scale = RMSNorm(module.post_feedforward_layernorm)
        else:
            self.mlp_norm = RMSNorm(module.post_attention_layernorm)
        self.mlp = Experts(mlp) if hasattr(mlp, "experts") else GatedMLP.from_module(mlp)

    def __call__(
        self, x: Tensor, more: Tensor | None, rotation: Rotation, step: StepMetadata
    ) -> tuple[Tensor, Tensor]:
        """The residual stream x (rows, width), and what is still to be added to it -> the same two."""
        x, normed = self.attention_norm.add(x, more)
        attended = self.attention(normed, rotation, step)
        x, normed = self.mlp_norm.add(x, self.attention_scale(attended) if self.attention_scale else attended)
        mixed = self.mlp(normed, step.tokens) if isinstance(self.mlp, Experts) else self.mlp(normed)
        return x, self.mlp_scale(mixed) if self.mlp_scale else mixed


class LeanDecoder(Decoder):
    """The whole model; takes over each layer's weights and frees the layer."""

    def __init__(self, model: PreTrainedModel, max_length: int) -> None:
        """`max_length`: tokens of a sequence."""
        body, cached = model.get_decoder(), cache_shape(model.config)
        self.embedding: Tensor = body.embed_tokens.weight.detach()
        scale: Tensor | None = getattr(body.embed_tokens, "embed_scale", None)  # Gemma's
        self._scale = None if scale is None else scale.to(self.embedding.dtype)
        self._kinds: list[str] = [""] * len(body.layers)
        if hasattr(body.rotary_emb, "layer_types"):
            self._kinds = model.config.layer_types
        self._ropes = {
            kind: Rope(body.rotary_emb, max_length, self.embedding, *([kind] if kind else []))
            for kind in set(self._kinds)
        }
        self._norm = RMSNorm(body.norm)
        self._blocks: list[LeanBlock] = []
        for layer, module in enumerate(body.layers):
            self._blocks.append(LeanBlock(module, layer, cached.heads, cached.kv_heads))
            body.layers[layer] = nn.Identity()  # else both its weights and the fused copies take memory
        self._head = fused(model.get_output_embeddings())
        self.row_unit = max(block.mlp.row_unit for block in self._blocks)
        for block in self._blocks:
            if isinstance(block.mlp, Experts):
                block.mlp.row_unit = self.row_unit  # of which the start-up check tries multiples alone

    @property
    def captures(self) -> bool:
        """Whether a graph can hold it: nothing waits for the device, nor depends on what is computed."""
        return not any(isinstance(block.mlp, Experts) for block in self._blocks)

    def embed(self, tokens: Tensor) -> Tensor:
        """tokens (rows) -> (rows, width)."""
        x = self.embedding.index_select(0, tokens)
        return x if self._scale is None else x * self._scale

    def hidden(self, tokens: Tensor, step: StepMetadata, layers: Collection[int]) -> Hidden:
        """tokens (rows) -> (rows, width); and what enters `layers`."""
        x, more = self.embed(tokens), None
        rotations = {kind: rope.at(step.positions) for kind, rope in self._ropes.items()}
        streams: dict[int, Tensor] = {}
        for layer, (block, kind) in enumerate(zip(self._blocks, self._kinds, strict=True)):
            if layer in layers:  # a copy: the next norm adds in place
                streams[layer] = x.clone() if more is None else x + more
            x, more = block(x, more, rotations[kind], step)
        return self._norm.add(x, more)[1], streams

    def sites(self) -> Iterator[Site]:
        """Yield the products that adapters may change: none of latent attention, whose weights are absorbed,
        nor of routed experts.
        """
        for layer, block in enumerate(self._blocks):
            if isinstance(block.attention, LeanAttention):
                yield from block.attention.sites(f"layers.{layer}.self_attn")
            if isinstance(block.mlp, GatedMLP):
                yield from block.mlp.sites(f"layers.{layer}.mlp")

    def first_layers(self, count: int) -> LeanDecoder:
        """Return the model without its later layers, which shares all weights."""
        shallow = copy(self)
        shallow._blocks, shallow._kinds = self._blocks[:count], self._kinds[:count]
        return shallow
