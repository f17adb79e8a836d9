"""Llama's block and its variants, with as few operations a layer as they need.

Qwen2 has biases on queries, keys and values, Qwen3 norms queries and keys, DeepSeek caches latents and has
experts. All of that comes from the modules that transformers built, as does every weight.
"""

from __future__ import annotations

from collections.abc import Collection
from copy import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from turbo_runtime.model_files.source import ARCHITECTURES
from turbo_runtime.models.attention.metadata import StepMetadata
from turbo_runtime.models.attention.pool import cache_shape
from turbo_runtime.models.attention.spans import ragged
from turbo_runtime.models.layers.primitives import (
    Affine,
    Decoder,
    GatedMLP,
    HeadNorm,
    Hidden,
    Layer,
    RMSNorm,
    Rope,
    Rotation,
    RowWise,
    fused,
)
from turbo_runtime.models.matmul import BatchInvariantLinear, HeadProduct, padded_rows
from turbo_runtime.models.step_batch import Ints

LEAN_ARCHITECTURES = frozenset(ARCHITECTURES) - {"Olmo2ForCausalLM"}  # whose norms come behind its parts


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
        outputs = step.attend(self.layer, query, key, value, self.scaling)
        return self.output(outputs.flatten(1))


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
        self.output = fused(module.o_proj)

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


class Router(Layer):
    """The routers of DeepSeek-V3 (arXiv 2412.19437, section 2.1.2) and DeepSeek-V2 (arXiv 2405.04434, section
    2.2): the best experts of the best groups. V3 scores by a sigmoid, corrects the scores for the choice
    alone and ranks a group by its best two; V2 scores by a softmax and ranks a group by its best.
    """

    def __init__(self, module: Any) -> None:
        self.product = BatchInvariantLinear(module.weight.detach().float())
        self.correction: Tensor | None = getattr(module, "e_score_correction_bias", None)
        self.per_token = int(module.top_k)
        grouped = getattr(module, "topk_method", "") != "greedy"
        self.groups = int(module.num_group) if grouped else 1
        self.num_top_groups = int(module.topk_group) if grouped else 1
        self.normalized = self.correction is not None and bool(module.norm_topk_prob)
        self.scale = float(module.routed_scaling_factor)
        self.checked = RowWise("the router", self.product.shape[1], lambda x: torch.cat(self(x), 1))

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (rows, width) -> weights (rows, experts each) float32, best first, and the experts' numbers."""
        scores = self.product(x.float())
        scores = scores.softmax(-1) if self.correction is None else scores.sigmoid()
        ranked = scores if self.correction is None else scores + self.correction
        if self.groups > 1:
            ranked = self._mask_groups(ranked)
        experts = ranked.topk(self.per_token).indices
        weights = scores.gather(1, experts)
        if self.normalized:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return weights * self.scale, experts

    def _mask_groups(self, ranked: Tensor) -> Tensor:
        """(rows, experts): -inf outside the best groups."""
        by_group = ranked.view(len(ranked), self.groups, -1)
        best = by_group.topk(1 if self.correction is None else 2).values.sum(-1)
        indices = best.topk(self.num_top_groups).indices
        selected = torch.zeros_like(best, dtype=torch.bool).scatter_(1, indices, True)
        return by_group.masked_fill(~selected[..., None], float("-inf")).view_as(ranked)


class Experts(Layer):
    """Routed experts, and shared ones that see every row. An expert's rows are padded like a step's, and a
    row adds up its experts in its own order, best first: no sum depends on the batch.
    """

    def __init__(self, module: Any) -> None:
        self.router = Router(module.gate)
        self.shared = GatedMLP.from_module(module.shared_experts)
        routed = module.experts
        self.experts = [
            GatedMLP(BatchInvariantLinear(gate_up), BatchInvariantLinear(down), routed.act_fn)
            for gate_up, down in zip(routed.gate_up_proj.detach(), routed.down_proj.detach(), strict=True)
        ]

    def __call__(self, x: Tensor, tokens: int) -> Tensor:
        """x (rows, width) -> the same. Rows from `tokens` on are padding, for which no expert is read."""
        weights, experts = self.router(x)
        out = self.shared(x)
        out[:tokens] += self._routed(x, weights[:tokens], experts[:tokens]).to(x.dtype)
        return out

    def _routed(self, x: Tensor, weights: Tensor, experts: Tensor) -> Tensor:
        """Sum the outputs of the chosen `experts` (rows, each) by their weights: (rows, width) float32."""
        numbers, ends, rows, places = _group_by_expert(experts.cpu().numpy())
        inputs = x.index_select(0, torch.from_numpy(rows).to(x.device)).tensor_split(ends)
        outputs = torch.cat([self.experts[i](part) for i, part in zip(numbers, inputs, strict=True)])
        by_row = outputs.index_select(0, torch.from_numpy(places).to(x.device)).view(*experts.shape, -1)
        total, *others = (by_row * weights[..., None]).unbind(1)
        for other in others:
            total = total + other
        return total


def _group_by_expert(experts: Ints) -> tuple[list[int], list[int], Ints, Ints]:
    """Order the entries of `experts` (rows, each) by expert, with each one's rows padded. Returns the used
    experts, where each but the last ends, the row at every place, and the place of every entry of `experts`.
    """
    flat = experts.ravel()
    order = np.argsort(flat, kind="stable")
    numbers, counts = np.unique(flat, return_counts=True)
    padded = np.array([padded_rows(count) for count in counts.tolist()])
    ends = np.cumsum(padded)
    sorted_places = np.repeat(ends - padded, counts) + ragged(counts)
    rows, places = np.zeros(ends[-1], np.int64), np.empty(len(flat), np.int64)
    rows[sorted_places] = order // experts.shape[1]
    places[order] = sorted_places
    return numbers.tolist(), ends[:-1].tolist(), rows, places


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
        self.mlp = Experts(mlp) if hasattr(mlp, "experts") else GatedMLP.from_module(mlp)

    def __call__(self, x: Tensor, rotation: Rotation, step: StepMetadata) -> Tensor:
        """x (rows, width) -> the same."""
        x = x + self.attention(self.attention_norm(x), rotation, step)
        normed = self.mlp_norm(x)
        return x + (self.mlp(normed, step.tokens) if isinstance(self.mlp, Experts) else self.mlp(normed))


class LeanDecoder(Decoder):
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

    @property
    def captures(self) -> bool:
        """Whether a graph can hold it: nothing waits for the device, nor depends on what is computed."""
        return not any(isinstance(block.mlp, Experts) for block in self._blocks)

    def hidden(self, tokens: Tensor, step: StepMetadata, layers: Collection[int]) -> Hidden:
        """tokens (rows) -> (rows, width); and what enters `layers`."""
        x = self.embedding.index_select(0, tokens)
        rotation = self._rope.at(step.positions)
        streams: dict[int, Tensor] = {}
        for layer, block in enumerate(self._blocks):
            if layer in layers:
                streams[layer] = x
            x = block(x, rotation, step)
        return self._norm(x), streams

    def first_layers(self, count: int) -> LeanDecoder:
        """Return the model without its later layers, which shares all weights."""
        shallow = copy(self)
        shallow._blocks = self._blocks[:count]
        return shallow
