"""Training material of any number of responses in bounded memory: states are computed when needed."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from turbo_runtime.distill.data.responses import Completion
from turbo_runtime.distill.method import Material

JUDGES_SHARE = 16  # of the rows that fit the memory one such part is the judges'


@dataclass(frozen=True)
class Shards:
    """Responses dealt once into parts whose material fits the memory, one at a time; a single part stays."""

    parts: Sequence[Sequence[Completion]]

    @classmethod
    def of(
        cls, completions: Sequence[Completion], rows: Callable[[Completion], int], max_rows: int, seed: int
    ) -> Shards:
        """Deal into parts of at most `max_rows`, but for a response that has more by itself."""
        mixed = list(completions)
        random.Random(seed).shuffle(mixed)  # noqa: S311  a shuffle, no secret
        parts: list[list[Completion]] = []
        num_free = 0
        for completion in mixed:
            if not parts or rows(completion) > num_free:
                parts.append([])
                num_free = max_rows
            parts[-1].append(completion)
            num_free -= rows(completion)
        return cls(parts)

    def order(self, epoch: int, seed: int) -> list[int]:
        """Number the parts in the order of an epoch."""
        numbers = list(range(len(self.parts)))
        random.Random(f"{seed} {epoch}").shuffle(numbers)  # noqa: S311
        return numbers


class Reader:
    """Holds the material of the part that was read last."""

    def __init__(self, shards: Shards, read: Callable[[Sequence[Completion]], Material]) -> None:
        self._shards, self._read = shards, read
        self._number: int | None = None
        self._material: Material | None = None

    def part(self, number: int) -> Material:
        """Return the material of a part."""
        if self._number != number or self._material is None:
            self._material = None  # first: there is memory for one
            self._material = self._read(self._shards.parts[number])
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
