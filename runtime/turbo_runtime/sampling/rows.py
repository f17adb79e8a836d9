"""Which rows of a step are drawn, and by what: plain columns, from which every way to draw starts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from turbo_runtime.messages import SamplingParams
from turbo_runtime.models.transfer import Array
from turbo_runtime.sampling.noise import Floats, Ints, Noise, position_keys

Masks = NDArray[np.uint8]  # of tokens, a bit each, the lowest bit first

NOTHING = -1  # in place of a token: the row has none with a finite logit
GREEDY_BELOW = 1e-6  # a lower temperature is 0: float64 would not resolve the quotient


class Rule(NamedTuple):
    """How a row is drawn."""

    temperature: float = 0.0  # 0: its highest logit
    log_min_p: float = -math.inf
    top_k: float = math.inf
    top_p: float = math.inf

    @property
    def truncates(self) -> bool:
        """Whether any token may be dropped."""
        return self.temperature > 0.0 and self[1:] != _WHOLE


_WHOLE = Rule()[1:]


def rule_of(params: SamplingParams) -> Rule:
    """Return how a request's rows are drawn."""
    if params.temperature < GREEDY_BELOW:
        return Rule()
    return Rule(
        params.temperature,
        math.log(params.min_p) if params.min_p > 0.0 else -math.inf,
        params.top_k if params.top_k > 0 else math.inf,
        params.top_p if params.top_p < 1.0 else math.inf,
    )


@dataclass(frozen=True, slots=True)
class DrawnRows:
    """Rows that are drawn, as columns."""

    rows: list[int] = field(default_factory=list)
    rules: list[Rule] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)  # `noise.answer_key`, as int64
    positions: list[int] = field(default_factory=list)  # of their tokens
    masks: list[tuple[int, Masks]] = field(default_factory=list)  # of some of the rows (bytes,)

    def add(self, first: int, count: int, rule: Rule, key: int = 0, position: int = 0) -> None:
        """Add an answer's rows from `first` on, whose tokens follow one another from `position` on."""
        if count == 1:  # most often, and four times as fast
            self.rows.append(first)
            self.rules.append(rule)
            self.keys.append(key)
            self.positions.append(position)
            return
        self.rows.extend(range(first, first + count))
        self.rules.extend([rule] * count)
        self.keys.extend([key] * count)
        self.positions.extend(range(position, position + count))

    def keep(self, row: int, mask: Masks) -> None:
        """Forbid all tokens of a row but those of its mask (bytes,)."""
        self.masks.append((row, mask))

    def index(self) -> Ints:
        """Return the rows (n,)."""
        return np.array(self.rows, np.int64)

    def mask_table(self) -> tuple[Ints, Masks]:
        """Return the rows (m,) that have a mask and their masks (m, bytes). Raises ValueError without any."""
        rows, masks = zip(*self.masks, strict=True)
        return np.array(rows, np.int64), np.stack(masks)

    def position_keys(self) -> Ints:
        """Return the keys (n,) of their noise."""
        return position_keys(self.keys, self.positions)

    def table(self) -> Floats:
        """Return the rules (n, 4) float64."""
        return np.array(self.rules, np.float64).reshape(-1, len(Rule._fields))


class RowKernels(NamedTuple):
    """One way to compute on rows of logits; all ways give the same."""

    # logits (rows, vocabulary) float32 -> their tokens (rows,) int64, `NOTHING` where none is drawn; it lays
    # the masks on the logits of these rows
    draw: Callable[[Tensor, DrawnRows, Noise], Tensor]
    # (n, vocabulary) and a count -> the likeliest ids (n, count) of each row, ranked
    likeliest: Callable[[Tensor, int], Tensor]
    # a vocabulary -> how many rows to score together
    rows_at_once: Callable[[int], int]
    # tensors -> their arrays on the host, which may share the tensors' memory: read before the next step
    fetch: Callable[..., list[Array]]
