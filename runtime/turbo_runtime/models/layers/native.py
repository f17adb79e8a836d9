"""Llama's block and its near kin, with as few operations a layer as they need.

The families differ in a few things: Qwen2 has biases on queries, keys and values, Qwen3 norms queries and
keys, DeepSeek caches latents and has experts. All are read off the modules that transformers built, as is
every weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from turbo_runtime.models.attention import AttentionMetadata, cache_shape
from turbo_runtime.models.layers.experts import Experts
from turbo_runtime.models.layers.linear import fused
from turbo_runtime.models.layers.mla import LatentAttention
from turbo_runtime.models.layers.mlp import GatedMLP
from turbo_runtime.models.layers.norm import HeadNorm, RMSNorm
from turbo_runtime.models.layers.rope import Rope, Rotation
from turbo_runtime.models.layers.rowwise import RowWise
from turbo_runtime.models.matmul import BatchInvariantLinear

LEAN_ARCHITECTURES = (
    "DeepseekV2ForCausalLM",
    "DeepseekV3ForCausalLM",
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
)


class LeanAttention:
    """Fused projections, rotation, paged attention, projection back."""

    def __init__(self, module: Any, layer: int, heads: int, kv_heads: int) -> None:
        self.layer, self.heads, self.kv_heads = layer, heads, kv_heads
        self.scaling = float(module.scaling)
        self.project = fused(module.q_proj, module.k_proj, module.v_proj)
        self.output = fused(module.o_proj)
        self.head_norm: HeadNorm | None = None
        if hasattr(module, "q_norm"):
            self.head_norm = HeadNorm(module.q_norm, module.k_norm, heads, kv_heads)

    def products(self) -> Iterable[BatchInvariantLinear]:
        """Every product with weights."""
        return self.project, self.output

    def row_wise(self) -> Iterable[RowWise]:
        """Every other operation that could mix rows."""
        if norm := self.head_norm:
            heads = norm.weight.shape
            yield RowWise("the norm of heads", heads.numel(), lambda x: norm(x.view(-1, *heads)).view_as(x))

    def __call__(self, x: Tensor, rotation: Rotation, step: AttentionMetadata) -> Tensor:
        """x (rows, width) -> the same."""
        rows = x.shape[0]
        projected = self.project(x).view(rows, self.heads + 2 * self.kv_heads, -1)
        rotated = projected[:, : self.heads + self.kv_heads]
        if self.head_norm:
            rotated = self.head_norm(rotated)
        rotated = rotation(rotated)
        query, key = rotated[:, : self.heads], rotated[:, self.heads :]
        value = projected[:, self.heads + self.kv_heads :]
        found = step.attend(self.layer, query, key, value, self.scaling)
        return self.output(found.flatten(1))


class LeanBlock:
    """One layer with its residuals."""

    def __init__(self, module: Any, layer: int, heads: int, kv_heads: int) -> None:
        attention, mlp = module.self_attn, module.mlp
        self.attention_norm = RMSNorm(module.input_layernorm)
        self.attention = (
            LatentAttention(attention, layer)
            if hasattr(attention, "kv_lora_rank")
            else LeanAttention(attention, layer, heads, kv_heads)
        )
        self.mlp_norm = RMSNorm(module.post_attention_layernorm)
        self.mlp = Experts(mlp) if hasattr(mlp, "experts") else GatedMLP.of(mlp)

    def products(self) -> Iterable[BatchInvariantLinear]:
        """Every product with weights."""
        yield from self.attention.products()
        yield from self.mlp.products()

    def row_wise(self) -> Iterable[RowWise]:
        """Every other operation that could mix rows."""
        yield from self.attention.row_wise()
        yield from self.mlp.row_wise()

    def __call__(self, x: Tensor, rotation: Rotation, step: AttentionMetadata) -> Tensor:
        """x (rows, width) -> the same."""
        x = x + self.attention(self.attention_norm(x), rotation, step)
        normed = self.mlp_norm(x)
        return x + (self.mlp(normed, step.tokens) if isinstance(self.mlp, Experts) else self.mlp(normed))


class LeanDecoder:
    """The whole model; takes each layer's weights over and lets the layer go."""

    def __init__(self, model: PreTrainedModel, longest: int) -> None:
        """`longest`: tokens of a sequence."""
        body, cached = model.get_decoder(), cache_shape(model.config)
        self.embedding: Tensor = body.embed_tokens.weight.detach()
        self._rope = Rope(body.rotary_emb, longest, self.embedding)
        self._blocks: list[LeanBlock] = []
        for layer, module in enumerate(body.layers):
            self._blocks.append(LeanBlock(module, layer, cached.heads, cached.kv_heads))
            body.layers[layer] = nn.Identity()  # else the fused copies would stand beside all of its weights
        self._norm = RMSNorm(body.norm)
        self._head = fused(model.get_output_embeddings())

    def output_rows(self, ids: Tensor) -> Tensor:
        """ids (n) -> those rows (n, width) of the LM head."""
        return self._head.output_rows(ids)

    def products(self) -> Iterable[BatchInvariantLinear]:
        """Every product with weights, the LM head included."""
        for block in self._blocks:
            yield from block.products()
        yield self._head

    def row_wise(self) -> Iterable[RowWise]:
        """Every other operation that could mix rows, one of a kind."""
        found = {("RMSNorm", width := self._norm.weight.shape[0]): RowWise("RMSNorm", width, self._norm)}
        for block in self._blocks:
            for operation in block.row_wise():
                found.setdefault((operation.name, operation.width), operation)
        return found.values()

    def hidden(
        self, tokens: Tensor, step: AttentionMetadata, tap: Callable[[int, Tensor], None] | None = None
    ) -> Tensor:
        """tokens (rows) -> (rows, width), after the final norm."""
        x = self.embedding.index_select(0, tokens)
        rotation = self._rope.at(step.positions)
        for layer, block in enumerate(self._blocks):
            if tap:
                tap(layer, x)
            x = block(x, rotation, step)
        return self._norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """(rows, width) -> (rows, vocabulary)."""
        return self._head(hidden)
