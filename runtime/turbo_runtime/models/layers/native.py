"""Llama's block and its variants, with as few operations a layer as they need.

Qwen2 has biases on queries, keys and values, Qwen3 norms queries and keys, DeepSeek caches latents and has
experts. All of that comes from the modules that transformers built, as does every weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from turbo_runtime.models.attention import AttentionMetadata, cache_shape
from turbo_runtime.models.layers.experts import Experts
from turbo_runtime.models.layers.mla import LatentAttention
from turbo_runtime.models.layers.primitives import (
    GatedMLP,
    HeadNorm,
    Layer,
    RMSNorm,
    Rope,
    Rotation,
    RowWise,
    Tap,
    fused,
)

LEAN_ARCHITECTURES = (
    "DeepseekV2ForCausalLM",
    "DeepseekV3ForCausalLM",
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
)


class LeanAttention(Layer):
    """Fused projections, rotation, paged attention, projection back."""

    def __init__(self, module: Any, layer: int, heads: int, kv_heads: int) -> None:
        self.layer, self.heads, self.kv_heads = layer, heads, kv_heads
        self.scaling = float(module.scaling)
        self.project = fused(module.q_proj, module.k_proj, module.v_proj)
        self.output = fused(module.o_proj)
        self.head_norm: HeadNorm | None = None
        if hasattr(module, "q_norm"):
            self.head_norm = HeadNorm(module.q_norm, module.k_norm, heads, kv_heads)

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
        outputs = step.attend(self.layer, query, key, value, self.scaling)
        return self.output(outputs.flatten(1))


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
        self.mlp_norm = RMSNorm(module.post_attention_layernorm)
        self.mlp = Experts(mlp) if hasattr(mlp, "experts") else GatedMLP.of(mlp)

    def __call__(self, x: Tensor, rotation: Rotation, step: AttentionMetadata) -> Tensor:
        """x (rows, width) -> the same."""
        x = x + self.attention(self.attention_norm(x), rotation, step)
        normed = self.mlp_norm(x)
        return x + (self.mlp(normed, step.tokens) if isinstance(self.mlp, Experts) else self.mlp(normed))


class LeanDecoder(Layer):
    """The whole model; takes over each layer's weights and frees the layer."""

    def __init__(self, model: PreTrainedModel, max_length: int) -> None:
        """`max_length`: tokens of a sequence."""
        body, cached = model.get_decoder(), cache_shape(model.config)
        self.embedding: Tensor = body.embed_tokens.weight.detach()
        self._rope = Rope(body.rotary_emb, max_length, self.embedding)
        self._norm = RMSNorm(body.norm)
        self._blocks: list[LeanBlock] = []
        for layer, module in enumerate(body.layers):
            self._blocks.append(LeanBlock(module, layer, cached.heads, cached.kv_heads))
            body.layers[layer] = nn.Identity()  # else both its weights and the fused copies take memory
        self._head = fused(model.get_output_embeddings())

    def output_rows(self, ids: Tensor) -> Tensor:
        """Return rows (n, width) of the LM head for ids (n)."""
        return self._head.output_rows(ids)

    def row_wise(self) -> Iterator[RowWise]:
        """Yield every other operation that could mix rows, one of a kind."""
        kinds: dict[tuple[str, int], RowWise] = {}
        for operation in super().row_wise():
            kinds.setdefault((operation.name, operation.width), operation)
        yield from kinds.values()

    def hidden(self, tokens: Tensor, step: AttentionMetadata, tap: Tap | None = None) -> Tensor:
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
