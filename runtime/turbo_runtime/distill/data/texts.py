"""What a layer learns from that drafts a token at a time: an answer as a whole, its prompt before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from turbo_runtime.distill.data.examples import Places
from turbo_runtime.distill.data.responses import Said


@dataclass(frozen=True)
class Text:
    """One answer."""

    streams: Tensor  # (n, layers x width): of every token of prompt and answer but the last
    tokens: Tensor  # (n,) int64: the token behind each
    answer: Places  # of the answer's tokens, which are the last of `tokens`; `hidden` are rows of `streams`

    @classmethod
    def of(cls, said: Said, streams: Tensor, places: Places, first: int) -> Text:
        """`places` are of several answers, this one's begin at row `first`."""
        rows = slice(first, first + len(said.tokens))
        text = (*said.asked.prompt, *said.tokens)
        return cls(
            streams,
            torch.tensor(text[1:], device=streams.device),
            Places(
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
    def places(self) -> Places:
        """Of all answers."""
        return Places.joined([text.answer for text in self.texts])
