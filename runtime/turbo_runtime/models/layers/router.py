"""Which experts a row goes to, and with what weight."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from turbo_runtime.models.layers.rowwise import RowWise
from turbo_runtime.models.matmul import BatchInvariantLinear


class Router:
    """The routers of DeepSeek-V3 (arXiv 2412.19437, section 2.1.2) and DeepSeek-V2 (arXiv 2405.04434, section
    2.2): the best experts of the best groups.

    V3 scores by a sigmoid, corrects the scores for the choice alone and ranks a group by its best two; V2
    scores by a softmax and ranks a group by its best.
    """

    def __init__(self, module: Any) -> None:
        self.product = BatchInvariantLinear(module.weight.detach().float())
        self.correction: Tensor | None = getattr(module, "e_score_correction_bias", None)
        self.per_token = int(module.top_k)
        grouped = getattr(module, "topk_method", "") != "greedy"
        self.groups = int(module.num_group) if grouped else 1
        self.kept = int(module.topk_group) if grouped else 1
        self.normalised = self.correction is not None and bool(module.norm_topk_prob)
        self.scale = float(module.routed_scaling_factor)

    def products(self) -> Iterable[BatchInvariantLinear]:
        """Every product with weights."""
        return (self.product,)

    def row_wise(self) -> Iterable[RowWise]:
        """Every other operation that could mix rows."""
        yield RowWise("the router", self.product.shape[1], lambda x: torch.cat(self(x), 1))

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (rows, width) -> weights (rows, experts each) float32, best first, and the experts' numbers."""
        scores = self.product(x.float())
        scores = scores.softmax(-1) if self.correction is None else scores.sigmoid()
        ranked = scores if self.correction is None else scores + self.correction
        if self.groups > 1:
            ranked = self._within_the_best_groups(ranked)
        experts = ranked.topk(self.per_token).indices
        weights = scores.gather(1, experts)
        if self.normalised:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return weights * self.scale, experts

    def _within_the_best_groups(self, ranked: Tensor) -> Tensor:
        """(rows, experts): -inf outside of the groups that are kept."""
        by_group = ranked.view(len(ranked), self.groups, -1)
        best = by_group.topk(1 if self.correction is None else 2).values.sum(-1)
        kept = torch.zeros_like(best, dtype=torch.bool).scatter_(1, best.topk(self.kept).indices, True)
        return by_group.masked_fill(~kept[..., None], float("-inf")).view_as(ranked)
