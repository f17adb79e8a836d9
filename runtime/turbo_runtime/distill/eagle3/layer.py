"""EAGLE-3 as a torch module: one decoder layer that drafts from the target's own features.

At place i the layer sees the token x_{i+1} and the features f_i of the target at i, the residual streams that
enter three of its layers, fused by one product; it guesses x_{i+2}. Then it goes on with what it computed
itself in place of the features, a token further each time (Li et al., arXiv 2503.01840). Parameters have the
names of the `speculators` format, so that vLLM and SGLang load what is learnt here.

It learns at all places of an answer at once: in each further step a place sees the keys that the first step
left at and before it, and of the steps since then its own alone, as in drafting.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import (
    LlamaMLP,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
)

STREAMS = 3  # layers of the target whose input is seen


class Attention(nn.Module):
    """Grouped queries; token and state come in side by side."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        width, self.each = config.hidden_size, config.head_dim
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.q_proj = nn.Linear(2 * width, self.heads * self.each, bias=False)
        self.k_proj = nn.Linear(2 * width, self.kv_heads * self.each, bias=False)
        self.v_proj = nn.Linear(2 * width, self.kv_heads * self.each, bias=False)
        self.o_proj = nn.Linear(self.heads * self.each, width, bias=False)

    def query(self, x: Tensor) -> Tensor:
        """x (m, 2 width) -> (KV heads, group, m, each)."""
        query: Tensor = self.q_proj(x).view(len(x), self.kv_heads, -1, self.each).permute(1, 2, 0, 3)
        return query

    def key_value(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (n, 2 width) -> twice (KV heads, 1, n, each)."""
        key, value = (
            part(x).view(len(x), self.kv_heads, 1, self.each).permute(1, 2, 0, 3)
            for part in (self.k_proj, self.v_proj)
        )
        return key, value

    def join(self, found: Tensor) -> Tensor:
        """(KV heads, group, m, each) -> (m, width)."""
        joined: Tensor = self.o_proj(found.permute(2, 0, 1, 3).flatten(1))
        return joined


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

    def seen(self, embedded: Tensor, state: Tensor) -> Tensor:
        """(n, width) each -> (n, 2 width)."""
        return torch.cat([self.input_layernorm(embedded), self.hidden_norm(state)], -1)

    def leave(self, state: Tensor, found: Tensor) -> Tensor:
        """The state that came in and what attention found -> the state that goes out (m, width)."""
        state = state + self.self_attn.join(found)
        left: Tensor = state + self.mlp(self.post_attention_layernorm(state))
        return left


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
        """Guesses behind the last m places of a text: streams (n, 3 width), tokens (n,) the token behind each
        place, before (m, depth) the tokens before the guessed ones -> logits (m, depth, V).

        `before[:, 0]` are the last m of `tokens`.
        """
        (block,) = self.layers
        assert isinstance(block, Block)
        attention = block.self_attn
        count, rows = len(tokens), len(before)
        state = self.fc(streams)
        seen = block.seen(self._embedded(tokens), state)
        places = torch.arange(count, device=tokens.device)
        at = places[count - rows :]
        key, value = attention.key_value(seen)
        key = self._turned(key, places)
        hidden = places > at[:, None]  # (m, n): what comes later
        own: list[tuple[Tensor, Tensor]] = []
        seen, state = seen[count - rows :], state[count - rows :]
        logits = []
        for step in range(before.shape[1]):
            if step:
                seen = block.seen(self._embedded(before[:, step]), state)
                left_key, left_value = attention.key_value(seen)
                own.append((self._turned(left_key, at + step), left_value))
            query = self._turned(attention.query(seen), at + step)
            state = block.leave(state, _attended(query, key, value, hidden, own))
            logits.append(self.norm(state) @ self.output.T)
        return torch.stack(logits, 1)

    def _embedded(self, tokens: Tensor) -> Tensor:
        embedded: Tensor = self.embedding[tokens].to(self.fc.weight.dtype)
        return embedded

    def _turned(self, x: Tensor, places: Tensor) -> Tensor:
        """x (KV heads, group, n, each), rotated by its places (n,)."""
        cos, sin = self._rotary(x, places[None])
        turned: Tensor = apply_rotary_pos_emb(x, x, cos, sin)[0]
        return turned


def _attended(
    query: Tensor, key: Tensor, value: Tensor, hidden: Tensor, own: list[tuple[Tensor, Tensor]]
) -> Tensor:
    """query (KV heads, group, m, each) over key and value (KV heads, 1, n, each) but those `hidden` (m, n),
    and over a place's own of each step since (KV heads, 1, m, each).
    """
    scale = query.shape[-1] ** -0.5
    scores = [(query @ key.transpose(-1, -2)).masked_fill(hidden, -torch.inf)]
    scores += [(query * left).sum(-1, keepdim=True) for left, _ in own]
    weights = (torch.cat(scores, -1) * scale).softmax(-1)
    first = key.shape[2]
    found: Tensor = weights[..., :first] @ value
    for number, (_, left) in enumerate(own):
        found = found + weights[..., first + number, None] * left
    return found
