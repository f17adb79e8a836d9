"""Llama's block and its near kin, with as few operations a layer as they need.

The families differ in two things: Qwen2 has biases on queries, keys and values, and Qwen3 norms queries and
keys. Both are read off the modules that transformers built, as is every weight.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from turbo_runtime.engine.arithmetic import RowProduct
from turbo_runtime.engine.attention import PagedStep
from turbo_runtime.engine.layers.rope import Rope, Rotation
from turbo_runtime.engine.layers.rowwise import RowWise

LEAN_ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")


class RMSNorm:
    """x / sqrt(mean(x²) + epsilon) * weight over the last dimension (Zhang, Sennrich, arXiv 1910.07467)."""

    def __init__(self, module: Any) -> None:
        self.weight: Tensor = module.weight.detach()
        self.epsilon = float(module.variance_epsilon)

    def __call__(self, x: Tensor) -> Tensor:
        """x (..., width) -> the same."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.epsilon)


class HeadNorm:
    """RMSNorm of each query and key head, in one go."""

    def __init__(self, query: Any, key: Any, heads: int, kv_heads: int) -> None:
        self.epsilon = float(query.variance_epsilon)
        self.weight = torch.cat([query.weight.expand(heads, -1), key.weight.expand(kv_heads, -1)]).detach()

    def __call__(self, x: Tensor) -> Tensor:
        """x (rows, query and key heads, width)."""
        return F.rms_norm(x, x.shape[-1:], None, self.epsilon) * self.weight


class LeanAttention:
    """Fused projections, rotation, paged attention, projection back."""

    def __init__(self, module: Any, layer: int, heads: int, kv_heads: int) -> None:
        self.layer, self.heads, self.kv_heads = layer, heads, kv_heads
        self.scaling = float(module.scaling)
        self.project = _fused(module.q_proj, module.k_proj, module.v_proj)
        self.output = _fused(module.o_proj)
        self.head_norm: HeadNorm | None = None
        if hasattr(module, "q_norm"):
            self.head_norm = HeadNorm(module.q_norm, module.k_norm, heads, kv_heads)

    def __call__(self, x: Tensor, rotation: Rotation, step: PagedStep) -> Tensor:
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
        return self.output(found.view(rows, -1))


class GatedMLP:
    """down(act(gate(x)) * up(x)) (Shazeer, arXiv 2002.05202)."""

    def __init__(self, module: Any) -> None:
        self.gate_up = _fused(module.gate_proj, module.up_proj)
        self.down = _fused(module.down_proj)
        self.activation: nn.Module = module.act_fn

    def gated(self, gate_up: Tensor) -> Tensor:
        """(rows, 2 * inner) -> (rows, inner)."""
        gate, up = gate_up.chunk(2, -1)
        gated: Tensor = self.activation(gate) * up
        return gated

    def __call__(self, x: Tensor) -> Tensor:
        """x (rows, width) -> the same."""
        return self.down(self.gated(self.gate_up(x)))


class LeanBlock:
    """One layer with its residuals."""

    def __init__(self, module: Any, layer: int, heads: int, kv_heads: int) -> None:
        self.attention_norm = RMSNorm(module.input_layernorm)
        self.attention = LeanAttention(module.self_attn, layer, heads, kv_heads)
        self.mlp_norm = RMSNorm(module.post_attention_layernorm)
        self.mlp = GatedMLP(module.mlp)

    def __call__(self, x: Tensor, rotation: Rotation, step: PagedStep) -> Tensor:
        """x (rows, width) -> the same."""
        x = x + self.attention(self.attention_norm(x), rotation, step)
        return x + self.mlp(self.mlp_norm(x))


class LeanDecoder:
    """The whole model; takes each layer's weights over and lets the layer go."""

    def __init__(self, model: PreTrainedModel, longest: int) -> None:
        """`longest`: tokens of a sequence."""
        config, body = model.config, model.get_decoder()
        heads, kv_heads = int(config.num_attention_heads), int(config.num_key_value_heads)
        self._embedding: Tensor = body.embed_tokens.weight.detach()
        self._rope = Rope(body.rotary_emb, longest, self._embedding)
        self._blocks: list[LeanBlock] = []
        for layer, module in enumerate(body.layers):
            self._blocks.append(LeanBlock(module, layer, heads, kv_heads))
            body.layers[layer] = nn.Identity()  # else the fused copies would stand beside all of its weights
        self._norm = RMSNorm(body.norm)
        self._head = _fused(model.get_output_embeddings())

    def products(self) -> Iterable[RowProduct]:
        """Every product with weights, the LM head included."""
        for block in self._blocks:
            yield from (block.attention.project, block.attention.output, block.mlp.gate_up, block.mlp.down)
        yield self._head

    def row_wise(self) -> Iterable[RowWise]:
        """Every other operation that could mix rows, one of a kind."""
        block = self._blocks[0]
        yield RowWise("RMSNorm", self._norm.weight.shape[0], self._norm)
        yield RowWise("the gated activation", block.mlp.gate_up.shape[0], block.mlp.gated)
        if norm := block.attention.head_norm:
            heads = norm.weight.shape
            yield RowWise("the norm of heads", heads.numel(), lambda x: norm(x.view(-1, *heads)).view_as(x))

    def hidden(self, tokens: Tensor, step: PagedStep) -> Tensor:
        """tokens (rows) -> (rows, width), after the final norm."""
        x = self._embedding.index_select(0, tokens)
        rotation = self._rope.at(step.positions)
        for block in self._blocks:
            x = block(x, rotation, step)
        return self._norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """(rows, width) -> (rows, vocabulary)."""
        return self._head(hidden)


def _fused(*linears: nn.Linear) -> RowProduct:
    """One product that gives the outputs of all these layers side by side."""
    weights = [linear.weight.detach() for linear in linears]
    biases = [linear.bias.detach() for linear in linears if linear.bias is not None]
    assert len(biases) in (0, len(linears))
    weight = weights[0] if len(weights) == 1 else torch.cat(weights)
    return RowProduct(weight, torch.cat(biases) if biases else None)
