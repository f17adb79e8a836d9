"""The lessons of any number of answers in bounded memory: states are computed again when their turn comes."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic

from turbo_runtime.distill.data.responses import Completion
from turbo_runtime.distill.method import Read

JUDGES_SHARE = 16  # of the rows that fit the memory one such part is the judges'


@dataclass(frozen=True)
class Shards:
    """Answers dealt once and for all into parts whose places fit the memory; one part is in it at a time.

    What all fits is computed once and stays.
    """

    parts: Sequence[Sequence[Completion]]

    @classmethod
    def of(
        cls, said: Sequence[Completion], rows: Callable[[Completion], int], most_rows: int, seed: int
    ) -> Shards:
        """So many rows in a part at most, but for an answer that has more by itself."""
        mixed = list(said)
        random.Random(seed).shuffle(mixed)  # noqa: S311  a shuffle, no secret
        parts: list[list[Completion]] = []
        room = 0
        for one in mixed:
            if not parts or rows(one) > room:
                parts.append([])
                room = most_rows
            parts[-1].append(one)
            room -= rows(one)
        return cls(parts)

    def order(self, epoch: int, seed: int) -> list[int]:
        """The parts in the order of an epoch."""
        numbers = list(range(len(self.parts)))
        random.Random(f"{seed} {epoch}").shuffle(numbers)  # noqa: S311
        return numbers


class Reader(Generic[Read]):
    """Keeps the part that was read last."""

    def __init__(self, shards: Shards, read: Callable[[Sequence[Completion]], Read]) -> None:
        self._shards, self._read = shards, read
        self._number: int | None = None
        self._material: Read | None = None

    def part(self, number: int) -> Read:
        """What it teaches with."""
        if self._number != number or self._material is None:
            self._material = None  # before the next one is there: memory for one is what there is
            self._material = self._read(self._shards.parts[number])
            self._number = number
        return self._material


def fitting(said: Sequence[Completion], rows: Callable[[Completion], int], most: int) -> list[Completion]:
    """As many of the first ones as have so many rows together, one at least."""
    kept: list[Completion] = []
    for one in said:
        most -= rows(one)
        if kept and most < 0:
            break
        kept.append(one)
    return kept
