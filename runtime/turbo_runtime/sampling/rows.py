"""Which rows of a step are drawn, and by what: plain columns, from which every way to draw starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from turbo_runtime.messages import SamplingParams
from turbo_runtime.sampling.noise import Floats, Ints, Noise, position_keys

Masks = NDArray[np.uint8]  # of tokens, a bit each, the lowest bit first


@dataclass(frozen=True, slots=True)
class SampledRows:
    """Rows that are drawn by noise."""

    rows: list[int] = field(default_factory=list)  # ascending
    params: list[SamplingParams] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)  # `noise.answer_key`, as int64
    positions: list[int] = field(default_factory=list)  # of their tokens

    def index(self) -> Ints:
        """Return the rows (n,)."""
        return np.array(self.rows, np.int64)

    def position_keys(self) -> Ints:
        """Return the keys (n,) of their noise."""
        return position_keys(self.keys, self.positions)

    def temperatures(self) -> Floats:
        """Return (n,) float64, above 0."""
        return np.array([params.temperature for params in self.params], np.float64)

    def part(self, which: slice) -> SampledRows:
        """Some of the rows."""
        return SampledRows(self.rows[which], self.params[which], self.keys[which], self.positions[which])


@dataclass(frozen=True, slots=True)
class DrawnRows:
    """All rows that are drawn, by the way that each is."""

    greedy: list[int] = field(default_factory=list)  # ascending
    plain: SampledRows = field(default_factory=SampledRows)
    truncated: SampledRows = field(default_factory=SampledRows)  # by min_p, top_k or top_p


class RowKernels(NamedTuple):
    """One way to compute on rows of logits; all ways give the same."""

    # logits (rows, vocabulary) float32 -> their tokens (rows,) int64, `NOTHING` where none is drawn
    draw: Callable[[Tensor, DrawnRows, Noise], Tensor]
    # (n, vocabulary) and a count -> the likeliest ids (n, count) of each row, ranked
    likeliest: Callable[[Tensor, int], Tensor]
    # logits (rows, vocabulary), n of the rows, and masks (n, bytes) of the tokens that these keep, in place
    forbid: Callable[[Tensor, Sequence[int], Masks], None]
    # a vocabulary -> how many rows to score together
    rows_at_once: Callable[[int], int]
