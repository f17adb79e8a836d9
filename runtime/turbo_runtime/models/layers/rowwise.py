"""Operations that work row by row, as the start-up check sees them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class RowWise:
    """A function of rows (rows, width) whose rows must not depend on their number or place."""

    name: str
    width: int
    apply: Callable[[Tensor], Tensor]
