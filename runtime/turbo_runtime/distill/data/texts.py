"""What a layer learns from that drafts a token at a time: an answer as a whole, its prompt before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from turbo_runtime.distill.data.examples import TrainingExamples
from turbo_runtime.distill.data.responses import Completion


@dataclass(frozen=True)
class Text:
    """One answer."""

    streams: Tensor  # (n, layers x width): of every token of prompt and answer but the last
    tokens: Tensor  # (n,) int64: the token behind each
    # Of the answer's tokens, which are the last of `tokens`; its `hidden` are rows of `streams`.
    answer: TrainingExamples

    @classmethod
    def of(cls, said: Completion, streams: Tensor, places: TrainingExamples, first: int) -> Text:
        """`places` are of several answers, this one's begin at row `first`."""
        rows = slice(first, first + len(said.tokens))
        text = (*said.asked.prompt, *said.tokens)
        return cls(
            streams,
            torch.tensor(text[1:], device=streams.device),
            TrainingExamples(
                streams[-len(said.tokens) :],
                places.tokens[rows].clone(),
                places.left[rows].clone(),
                places.likely[rows].clone(),
                places.chances[rows].clone(),
            ),
        )


@dataclass(frozen=True)
class Texts:
    """Several answers."""

    texts: Sequence[Text]

    @property
    def places(self) -> TrainingExamples:
        """Of all answers."""
        return TrainingExamples.joined([text.answer for text in self.texts])
