"""Mixtures of experts, under the row rule of `matmul`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from turbo_runtime.models.attention.spans import ragged
from turbo_runtime.models.layers.loops import find_row_unit
from turbo_runtime.models.layers.primitives import ClampedMLP, GatedMLP, Layer, RowWise
from turbo_runtime.models.matmul import BatchInvariantLinear, padded_rows
from turbo_runtime.models.step_batch import Ints


class Router(Layer):
    """The routers of DeepSeek-V3 (arXiv 2412.19437, section 2.1.2) and DeepSeek-V2 (arXiv 2405.04434, section
    2.2): the best experts of the best groups. V3 scores by a sigmoid, corrects the scores for the choice
    alone and ranks a group by its best two; V2 scores by a softmax and ranks a group by its best. And those
    of Mixtral (arXiv 2401.04088, section 2.1), Qwen3 and GPT-OSS: the best experts by a softmax, of all or of
    those that are chosen, which is the same once they sum up to one.
    """

    def __init__(self, module: Any) -> None:
        bias = getattr(module, "bias", None)
        self.product = BatchInvariantLinear(
            module.weight.detach().float(), None if bias is None else bias.detach().float()
        )
        self.correction: Tensor | None = getattr(module, "e_score_correction_bias", None)
        self.per_token = int(module.top_k)
        method = getattr(module, "topk_method", None)  # DeepSeek-V2's
        grouped = hasattr(module, "num_group") and method != "greedy"
        self.groups = int(module.num_group) if grouped else 1
        self.num_top_groups = int(module.topk_group) if grouped else 1
        self.normalized = method is None and bool(getattr(module, "norm_topk_prob", True))
        self.scale = float(getattr(module, "routed_scaling_factor", 1.0))

    def checked(self) -> RowWise:
        """The router."""
        return RowWise("the router", self.product.shape[1], lambda x: torch.cat(self(x), 1))

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
    """Routed experts, and in some models shared ones that see every row. An expert's rows are padded like a
    step's, and a row adds up its experts in its own order, best first: no sum depends on the batch.
    """

    def __init__(self, module: Any) -> None:
        self.router = Router(module.gate if hasattr(module, "gate") else module.router)
        self.shared: GatedMLP | None = None
        if hasattr(module, "shared_experts"):
            self.shared = GatedMLP.from_module(module.shared_experts)
        self.experts: list[GatedMLP] = list(_read_experts(module.experts))
        units = [mlp.row_unit for mlp in (*self.experts, self.shared) if mlp]
        self.row_unit = max(find_row_unit(len(self.experts)), *units)  # the scores of a row, and activations

    def __call__(self, x: Tensor, tokens: int) -> Tensor:
        """x (rows, width) -> the same. Rows from `tokens` on are padding, for which no expert is read."""
        weights, experts = self.router(x)
        out = self.shared(x) if self.shared else torch.zeros_like(x)
        out[:tokens] += self._routed(x, weights[:tokens], experts[:tokens]).to(x.dtype)
        return out

    def _routed(self, x: Tensor, weights: Tensor, experts: Tensor) -> Tensor:
        """Sum the outputs of the chosen `experts` (rows, each) by their weights: (rows, width) float32."""
        numbers, ends, rows, places = _group_by_expert(experts.cpu().numpy(), self.row_unit)
        inputs = x.index_select(0, torch.from_numpy(rows).to(x.device)).tensor_split(ends)
        outputs = torch.cat([self.experts[i](part) for i, part in zip(numbers, inputs, strict=True)])
        by_row = outputs.index_select(0, torch.from_numpy(places).to(x.device)).view(*experts.shape, -1)
        total, *others = (by_row * weights[..., None]).unbind(1)
        for other in others:
            total = total + other
        return total


def _read_experts(module: Any) -> Iterator[GatedMLP]:
    """Take the weights of a transformers module. GPT-OSS has them transposed, with gate and up in turns."""
    gate_ups, downs = module.gate_up_proj.detach(), module.down_proj.detach()
    if not hasattr(module, "gate_up_proj_bias"):
        for gate_up, down in zip(gate_ups, downs, strict=True):
            yield GatedMLP(BatchInvariantLinear(gate_up), BatchInvariantLinear(down), module.act_fn)
        return
    biases = module.gate_up_proj_bias.detach(), module.down_proj_bias.detach()
    for gate_up, down, gate_up_bias, down_bias in zip(gate_ups, downs, *biases, strict=True):
        weight, bias = (torch.cat([part[..., ::2], part[..., 1::2]], -1) for part in (gate_up, gate_up_bias))
        products = (
            BatchInvariantLinear(weight.t().contiguous(), bias),
            BatchInvariantLinear(down.t().contiguous(), down_bias.clone()),
        )
        yield ClampedMLP(*products, float(module.alpha), float(module.limit))


def _group_by_expert(experts: Ints, unit: int) -> tuple[list[int], list[int], Ints, Ints]:
    """Order the entries of `experts` (rows, each) by expert, with rows padded in `unit`s. Returns the used
    experts, where each but the last ends, the row at every place, and the place of every entry of `experts`.
    """
    flat = experts.ravel()
    order = np.argsort(flat, kind="stable")
    numbers, counts = np.unique(flat, return_counts=True)
    padded = np.array([padded_rows(count, unit) for count in counts.tolist()])
    ends = np.cumsum(padded)
    sorted_places = np.repeat(ends - padded, counts) + ragged(counts)
    rows, places = np.zeros(ends[-1], np.int64), np.empty(len(flat), np.int64)
    rows[sorted_places] = order // experts.shape[1]
    places[order] = sorted_places
    return numbers.tolist(), ends[:-1].tolist(), rows, places
