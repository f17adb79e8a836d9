"""Training material of any number of responses in bounded memory: states are computed when needed."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from turbo_runtime.distill.data.responses import Completion

JUDGES_SHARE = 16  # of the rows that fit the memory one such part is the judges'


class Shards:
    """Responses dealt once into parts; memory holds the material of the part that was read last."""

    def __init__(
        self,
        completions: Sequence[Completion],
        rows: Callable[[Completion], int],
        max_rows: int,
        seed: int,
        read: Callable[[Sequence[Completion]], Any],
    ) -> None:
        """Deal into parts of at most `max_rows`, but for a response that has more by itself."""
        mixed = list(completions)
        random.Random(seed).shuffle(mixed)  # noqa: S311  a shuffle, no secret
        self.parts: list[list[Completion]] = []
        num_free = 0
        for completion in mixed:
            if not self.parts or rows(completion) > num_free:
                self.parts.append([])
                num_free = max_rows
            self.parts[-1].append(completion)
            num_free -= rows(completion)
        self.max_rows, self._read = max_rows, read
        self._number: int | None = None
        self._material: Any = None

    def order(self, epoch: int, seed: int) -> list[int]:
        """Number the parts in the order of an epoch."""
        numbers = list(range(len(self.parts)))
        random.Random(f"{seed} {epoch}").shuffle(numbers)  # noqa: S311
        return numbers

    def material(self, number: int) -> Any:
        """Return the material of a part."""
        if self._number != number:
            self._number, self._material = None, None  # first: there is memory for one
            self._material = self._read(self.parts[number])
            self._number = number
        return self._material


def fitting(
    completions: Sequence[Completion], rows: Callable[[Completion], int], max_rows: int
) -> list[Completion]:
    """Take as many of the first ones as `max_rows` hold, and at least one."""
    fit: list[Completion] = []
    for completion in completions:
        max_rows -= rows(completion)
        if fit and max_rows < 0:
            break
        fit.append(completion)
    return fit
