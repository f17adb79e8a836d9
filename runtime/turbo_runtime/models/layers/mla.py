"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1) with its weights absorbed.

A token is cached as one vector for all heads: its normed latent and a rotated part. Keys and values of the
heads are never made: a head's key matrix is multiplied into its query, and its value matrix is applied to
the mixture of latents that attention finds. So all heads attend as one group over one key head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from turbo_runtime.models.attention import AttentionMetadata
from turbo_runtime.models.layers.primitives import Affine, Layer, RMSNorm, Rotation, fused
from turbo_runtime.models.matmul import BatchInvariantLinear, HeadProduct


class LatentAttention(Layer):
    """Projections down, queries into the latents' space, paged attention, and back."""

    def __init__(self, module: Any, layer: int) -> None:
        self.layer, self.heads = layer, int(module.num_heads)
        self.rank, self.rope = int(module.kv_lora_rank), int(module.qk_rope_head_dim)
        self.nope, self.value = int(module.qk_nope_head_dim), int(module.v_head_dim)
        self.scaling = float(module.scaling)
        interleaved = bool(getattr(module.config, "rope_interleave", True))
        queries = Affine.of(module.q_proj if module.q_lora_rank is None else module.q_b_proj)
        queries = queries.reordered(self._query_order(interleaved))
        order = torch.cat([self.rank + _rope_order(self.rope, interleaved), torch.arange(self.rank)])
        cached = Affine.of(module.kv_a_proj_with_mqa).reordered(order)
        self.down = fused(queries if module.q_lora_rank is None else module.q_a_proj, cached)
        self.query_norm: RMSNorm | None = None
        self.query: BatchInvariantLinear | None = None
        if module.q_lora_rank is not None:
            self.query_norm, self.query = RMSNorm(module.q_a_layernorm), fused(queries)
        self.latent_norm = RMSNorm(module.kv_a_layernorm)
        by_head = module.kv_b_proj.weight.detach().view(self.heads, self.nope + self.value, self.rank)
        self.absorb = HeadProduct(by_head[:, : self.nope].transpose(1, 2))
        self.expand = HeadProduct(by_head[:, self.nope :])
        self.output = fused(module.o_proj)

    def __call__(self, x: Tensor, rotation: Rotation, step: AttentionMetadata) -> Tensor:
        """x (rows, width) -> the same."""
        rows, heads = x.shape[0], self.heads
        query, key_rope, latent = self.down(x).tensor_split((-self.rope - self.rank, -self.rank), 1)
        if self.query and self.query_norm:
            query = self.query(self.query_norm(query))
        query, query_rope = query.tensor_split((heads * self.nope,), 1)
        rotated = rotation(torch.cat([query_rope, key_rope], 1).view(rows, heads + 1, self.rope))
        absorbed = self.absorb(query).view(rows, heads, self.rank)
        outputs = step.attend(
            self.layer,
            torch.cat([absorbed, rotated[:, :heads]], 2),
            torch.cat([self.latent_norm(latent)[:, None], rotated[:, heads:]], 2),
            None,
            self.scaling,
        )
        return self.output(self.expand(outputs.flatten(1)))

    def _query_order(self, interleaved: bool) -> Tensor:
        """Of the rows of the query matrix: what is not rotated of all heads, then what is rotated."""
        by_head = torch.arange(self.heads * (self.nope + self.rope)).view(self.heads, -1)
        rope = by_head[:, self.nope :].index_select(1, _rope_order(self.rope, interleaved))
        return torch.cat([by_head[:, : self.nope].reshape(-1), rope.reshape(-1)])


def _rope_order(width: int, interleaved: bool) -> Tensor:
    """Rows in the order of `Rotation`, pairs half a head apart; the checkpoint may have them side by side.
    Queries and keys are reordered alike, so that no score changes.
    """
    order = torch.arange(width)
    return torch.cat([order[0::2], order[1::2]]) if interleaved else order
