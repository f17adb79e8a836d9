"""A mixture of experts whose rows do not depend on which other rows go to the same expert."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from turbo_runtime.models.attention.spans import Ints, ragged
from turbo_runtime.models.layers.mlp import GatedMLP
from turbo_runtime.models.layers.router import Router
from turbo_runtime.models.layers.rowwise import RowWise
from turbo_runtime.models.matmul import BatchInvariantLinear, padded_rows


class Experts:
    """Routed experts, and shared ones that see every row.

    An expert's rows are padded like a step's, and a row adds up its experts in its own order, best first:
    no sum depends on the batch.
    """

    def __init__(self, module: Any) -> None:
        self.router = Router(module.gate)
        self.shared = GatedMLP.of(module.shared_experts)
        routed = module.experts
        self.experts = [
            GatedMLP(BatchInvariantLinear(gate_up), BatchInvariantLinear(down), routed.act_fn)
            for gate_up, down in zip(routed.gate_up_proj.detach(), routed.down_proj.detach(), strict=True)
        ]

    def products(self) -> Iterable[BatchInvariantLinear]:
        """Every product with weights."""
        yield from self.router.products()
        for each in (self.shared, *self.experts):
            yield from each.products()

    def row_wise(self) -> Iterable[RowWise]:
        """Every other operation that could mix rows, of one expert only."""
        for each in (self.router, self.shared, self.experts[0]):
            yield from each.row_wise()

    def __call__(self, x: Tensor, tokens: int) -> Tensor:
        """x (rows, width) -> the same. Rows from `tokens` on are padding, for which no expert is read."""
        weights, experts = self.router(x)
        out = self.shared(x)
        out[:tokens] += self._routed(x, weights[:tokens], experts[:tokens]).to(x.dtype)
        return out

    def _routed(self, x: Tensor, weights: Tensor, experts: Tensor) -> Tensor:
        """What the chosen experts (rows, each) say with these weights: (rows, width) float32."""
        numbers, ends, rows, places = _by_expert(experts.cpu().numpy())
        taken = x.index_select(0, torch.from_numpy(rows).to(x.device)).tensor_split(ends)
        said = torch.cat([self.experts[number](part) for number, part in zip(numbers, taken, strict=True)])
        by_row = said.index_select(0, torch.from_numpy(places).to(x.device)).view(*experts.shape, -1)
        total, *others = (by_row * weights[..., None]).unbind(1)
        for other in others:
            total = total + other
        return total


def _by_expert(experts: Ints) -> tuple[list[int], list[int], Ints, Ints]:
    """Lay out what `experts` (rows, each) asks for, expert after expert, with each one's rows padded.

    Returns the experts that are hit, where each but the last ends, the row at every place, and the place of
    every entry of `experts`.
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
