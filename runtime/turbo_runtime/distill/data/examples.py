"""What heads learn from: each token of an answer, the state that it was drawn from, and what follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

UNKNOWN = -1  # in place of a token that the answer does not have


@dataclass(frozen=True)
class TrainingExamples:
    """Rows stand as their tokens do in the answers, one answer behind the other."""

    hidden: Tensor  # (rows, width), in the target's dtype
    tokens: Tensor  # (rows,) int64: the token drawn from it
    left: Tensor  # (rows,) int64: tokens of the same answer behind that
    likely: Tensor  # (rows, kept) int32: the likeliest ids under the target's law there
    chances: Tensor  # (rows, kept) float32: their probabilities

    @classmethod
    def of(
        cls, hidden: Tensor, answers: Sequence[Sequence[int]], likely: Tensor, chances: Tensor
    ) -> TrainingExamples:
        """`hidden`, `likely` and `chances` have a row for each token of the answers."""
        tokens = torch.tensor([token for answer in answers for token in answer], device=hidden.device)
        left = torch.cat([torch.arange(len(answer) - 1, -1, -1, device=hidden.device) for answer in answers])
        return cls(hidden, tokens, left, likely, chances)

    @classmethod
    def joined(cls, places: Sequence[TrainingExamples]) -> TrainingExamples:
        """One behind the other."""
        return cls(
            *(
                torch.cat([getattr(one, name) for one in places])
                for name in ("hidden", "tokens", "left", "likely", "chances")
            )
        )

    @property
    def places(self) -> TrainingExamples:
        """Itself: heads learn from nothing else."""
        return self

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def teaching(self) -> Tensor:
        """Numbers of the rows that something follows."""
        return self.left.nonzero().squeeze(1)

    def pick(self, rows: Tensor, heads: int) -> TrainingBatch:
        """What heads are taught at these rows."""
        ahead = torch.arange(heads, device=rows.device)
        known = ahead < self.left[rows, None]
        at = torch.where(known, rows[:, None] + ahead, rows[:, None])  # of the token before the guessed one
        then = torch.where(known, at + 1, rows[:, None])
        return TrainingBatch(
            self.hidden[rows],
            self.tokens[at],
            torch.where(known, self.tokens[then], UNKNOWN),
            self.likely[then],
            self.chances[then] * known[..., None],
        )


@dataclass(frozen=True)
class TrainingBatch:
    """Rows to learn from, each for all heads at once."""

    hidden: Tensor  # (rows, width)
    before: Tensor  # (rows, heads): the token before the one to guess
    wanted: Tensor  # (rows, heads): the one to guess; UNKNOWN behind an answer's end
    likely: Tensor  # (rows, heads, kept): ids that the target finds likeliest there
    chances: Tensor  # (rows, heads, kept): their probabilities; 0 behind an answer's end
