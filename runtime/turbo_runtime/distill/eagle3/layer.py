"""EAGLE-3 as a torch module: one decoder layer that drafts from the target's own features.

At place i the layer sees the token x_{i+1} and the features f_i of the target at i, the residual streams that
enter three of its layers, fused by one product; it guesses x_{i+2}. Then it goes on with what it computed
itself in place of the features, a token further each time (Li et al., arXiv 2503.01840). Parameters have the
names of the `speculators` format, so that vLLM and SGLang load what is learnt here.

It learns at all places of an answer at once: in each further step a place sees the keys that the first step
left at and before it, and of the steps since then its own alone, as in drafting.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import (
    LlamaMLP,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
)

STREAMS = 3  # layers of the target whose input it reads


class Attention(nn.Module):
    """Grouped queries; token and state come in side by side."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        width, self.head_dim = config.hidden_size, config.head_dim
        self.kv_heads = config.num_key_value_heads
        queries, keys = config.num_attention_heads * self.head_dim, self.kv_heads * self.head_dim
        self.q_proj = nn.Linear(2 * width, queries, bias=False)
        self.k_proj = nn.Linear(2 * width, keys, bias=False)
        self.v_proj = nn.Linear(2 * width, keys, bias=False)
        self.o_proj = nn.Linear(queries, width, bias=False)

    def split(self, projected: Tensor) -> Tensor:
        """Split queries, keys or values (n, heads x head_dim) into (KV heads, group, n, head_dim)."""
        return projected.view(len(projected), self.kv_heads, -1, self.head_dim).permute(1, 2, 0, 3)


class Block(nn.Module):
    """The decoder layer."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        width, epsilon = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = LlamaRMSNorm(width, epsilon)
        self.hidden_norm = LlamaRMSNorm(width, epsilon)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = LlamaRMSNorm(width, epsilon)
        self.mlp = LlamaMLP(config)

    def join(self, embedded: Tensor, state: Tensor) -> Tensor:
        """Join embeddings and states (n, width) to (n, 2 width)."""
        return torch.cat([self.input_layernorm(embedded), self.hidden_norm(state)], -1)

    def update(self, state: Tensor, attended: Tensor) -> Tensor:
        """Return the state (m, width) behind the layer; `attended` (KV heads, group, m, head_dim)."""
        state = state + self.self_attn.o_proj(attended.permute(2, 0, 1, 3).flatten(1))
        return state + cast("Tensor", self.mlp(self.post_attention_layernorm(state)))


class Eagle3(nn.Module):
    """Parameters are the draft's own; embedding and LM head are the target's and never trained."""

    embedding: Tensor
    output: Tensor
    vocabulary: Tensor

    def __init__(self, config: LlamaConfig, embedding: Tensor, output: Tensor, vocabulary: Tensor) -> None:
        """`config` of the layer; `embedding` (target vocabulary, width); `output` (V, width), the LM head's
        rows of `vocabulary` (V,) int64, ascending ids of the target.
        """
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.register_buffer("embedding", embedding, persistent=False)
        self.register_buffer("output", output, persistent=False)
        self.register_buffer("vocabulary", vocabulary.to(embedding.device), persistent=False)
        self.fc = nn.Linear(STREAMS * width, width, bias=False)
        self.layers = nn.ModuleList([Block(config)])
        self.norm = LlamaRMSNorm(width, config.rms_norm_eps)
        self._rotary = LlamaRotaryEmbedding(config)
        self.to(embedding.device)

    def forward(self, streams: Tensor, tokens: Tensor, before: Tensor) -> Tensor:
        """Guess behind the last m places of a text: streams (n, 3 width), tokens (n,) the token behind each
        place, before (m, depth) the tokens before the guessed ones -> logits (m, depth, V).

        `before[:, 0]` are the last m of `tokens`.
        """
        (block,) = self.layers
        assert isinstance(block, Block)
        attention = block.self_attn
        count, rows = len(tokens), len(before)
        state = self.fc(streams)
        inputs = block.join(self._embed(tokens), state)
        places = torch.arange(count, device=tokens.device)
        at = places[count - rows :]
        key = self._rotate(attention.split(attention.k_proj(inputs)), places)
        value = attention.split(attention.v_proj(inputs))
        hidden = places > at[:, None]  # (m, n): what comes later
        own: list[tuple[Tensor, Tensor]] = []
        inputs, state = inputs[count - rows :], state[count - rows :]
        logits = []
        for step in range(before.shape[1]):
            if step:
                inputs = block.join(self._embed(before[:, step]), state)
                left_key = self._rotate(attention.split(attention.k_proj(inputs)), at + step)
                own.append((left_key, attention.split(attention.v_proj(inputs))))
            query = self._rotate(attention.split(attention.q_proj(inputs)), at + step)
            state = block.update(state, _attend(query, key, value, hidden, own))
            logits.append(self.norm(state) @ self.output.T)
        return torch.stack(logits, 1)

    def _embed(self, tokens: Tensor) -> Tensor:
        return self.embedding[tokens].to(self.fc.weight.dtype)

    def _rotate(self, x: Tensor, places: Tensor) -> Tensor:
        """Rotate x (KV heads, group, n, head_dim) by its places (n,)."""
        return cast("Tensor", apply_rotary_pos_emb(x, x, *self._rotary(x, places[None]))[0])


def _attend(
    query: Tensor, key: Tensor, value: Tensor, hidden: Tensor, own: list[tuple[Tensor, Tensor]]
) -> Tensor:
    """Attend with query (KV heads, group, m, head_dim) to key and value (KV heads, 1, n, head_dim) but those
    `hidden` (m, n), and to a place's `own` of each step since (KV heads, 1, m, head_dim).
    """
    scale = query.shape[-1] ** -0.5
    scores = [(query @ key.transpose(-1, -2)).masked_fill(hidden, -torch.inf)]
    scores += [(query * left).sum(-1, keepdim=True) for left, _ in own]
    weights = (torch.cat(scores, -1) * scale).softmax(-1)
    first = key.shape[2]
    attended = weights[..., :first] @ value
    for number, (_, left) in enumerate(own):
        attended = attended + weights[..., first + number, None] * left
    return attended
