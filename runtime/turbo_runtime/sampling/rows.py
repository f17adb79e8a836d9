"""Which rows of a step are drawn, and by what: plain columns, from which every way to draw starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from turbo_runtime.messages import SamplingParams
from turbo_runtime.models.transfer import upload
from turbo_runtime.sampling.noise import Noise


@dataclass(frozen=True, slots=True)
class SampledRows:
    """Rows that are drawn by noise."""

    rows: list[int] = field(default_factory=list)
    params: list[SamplingParams] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)  # `noise.position_key`

    def columns(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the rows and their keys, each (n,) int64."""
        return upload(np.array(self.rows, np.int64), device), upload(np.array(self.keys, np.int64), device)

    def temperatures(self, device: torch.device) -> Tensor:
        """Return (n,) float64, above 0."""
        return upload(np.array([params.temperature for params in self.params], np.float64), device)

    def part(self, which: slice) -> SampledRows:
        """Some of the rows."""
        return SampledRows(self.rows[which], self.params[which], self.keys[which])


@dataclass(frozen=True, slots=True)
class DrawnRows:
    """All rows that are drawn, by the way that each is."""

    greedy: list[int] = field(default_factory=list)
    plain: SampledRows = field(default_factory=SampledRows)
    truncated: SampledRows = field(default_factory=SampledRows)  # by min_p, top_k or top_p

    def greedy_index(self, device: torch.device) -> Tensor:
        """Return the greedy rows (n,) int64."""
        return upload(np.array(self.greedy, np.int64), device)


class RowKernels(NamedTuple):
    """One way to compute on rows of logits; all ways give the same."""

    # logits (rows, vocabulary) float32 -> their tokens (rows,) int64, `NOTHING` where none is drawn
    draw: Callable[[Tensor, DrawnRows, Noise], Tensor]
    # (n, vocabulary) and a count -> the likeliest ids (n, count) of each row, ranked
    likeliest: Callable[[Tensor, int], Tensor]
    # logits (rows, vocabulary), n of the rows, and which tokens (n, vocabulary) bool those lose, in place
    forbid: Callable[[Tensor, Sequence[int], Tensor], None]
    # a vocabulary -> how many rows to score together
    rows_at_once: Callable[[int], int]


def column(values: Sequence[float], device: torch.device) -> Tensor:
    """Put numbers (n,) on `device` as (n, 1) float64."""
    return upload(np.array(values, np.float64), device)[:, None]
