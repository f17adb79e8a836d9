"""What changes an answer's logits before its law is read from them: masks, bias, penalties, in this order."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import torch
from torch import Tensor

from turbo_runtime.engine.request import SamplingParams
from turbo_runtime.engine.sampling.noise import Noise


class Processors:
    """The processors of one answer, and what they remember of its prompt and of the answer so far."""

    def __init__(
        self, params: SamplingParams, prompt: Sequence[int], stop_ids: Collection[int], noise: Noise
    ) -> None:
        """Vocabulary and device are those of `noise`. Raises ValueError with a sentence for a token that is
        not in the vocabulary.
        """
        vocabulary, device = noise.vocabulary, noise.device
        _check_ids("logit_bias", (token for token, _ in params.logit_bias), vocabulary)
        _check_ids("bad_words", (token for run in params.bad_words for token in run), vocabulary)
        if not all(params.bad_words):
            raise ValueError("bad_words holds an empty run of tokens; leave it out")
        self._params = params
        self._biased = torch.tensor([token for token, _ in params.logit_bias], device=device).long()
        self._bias = torch.tensor([bias for _, bias in params.logit_bias], device=device)
        self._never = torch.tensor(
            [run[0] for run in params.bad_words if len(run) == 1], device=device
        ).long()
        self._runs = [run for run in params.bad_words if len(run) > 1]
        stops = [token for token in stop_ids if 0 <= token < vocabulary]
        self._stops = torch.tensor(stops, device=device).long()
        self._answer: list[int] = []
        self._penalties: Penalties | None = None
        if params.presence_penalty or params.frequency_penalty or params.repetition_penalty != 1.0:
            self._penalties = Penalties(params, prompt, noise)

    @property
    def idle(self) -> bool:
        """Whether no row of this answer is ever changed."""
        p = self._params
        return not (p.logit_bias or p.bad_words or p.min_tokens) and self._penalties is None

    @property
    def gain(self) -> float:
        """By what a difference between two rows grows at most: the repetition penalty multiplies."""
        return max(self._params.repetition_penalty, 1 / self._params.repetition_penalty)

    def read(self, tokens: Sequence[int]) -> None:
        """The answer goes on with these tokens."""
        self._answer.extend(tokens)
        if self._penalties is not None:
            self._penalties.read(tokens)

    def apply(self, logits: Tensor) -> Tensor:
        """Processed logits (vocabulary,) float32 of the row after what was read, as a copy."""
        row = logits.clone()
        row[self._never] = -torch.inf
        for run in self._runs:
            if tuple(self._answer[1 - len(run) :]) == run[:-1]:
                row[run[-1]] = -torch.inf
        if len(self._answer) < self._params.min_tokens:
            row[self._stops] = -torch.inf
        row.index_add_(0, self._biased, self._bias)
        return row if self._penalties is None else self._penalties.apply(row)


class Penalties:
    """Repetition, frequency and presence, of the tokens that they can concern."""

    def __init__(self, params: SamplingParams, prompt: Sequence[int], noise: Noise) -> None:
        self._params = params
        self._counts = torch.zeros(noise.vocabulary, device=noise.device)  # of the answer's tokens
        self._known: dict[int, None] = {}  # tokens seen so far, in order
        self._ids = torch.empty(0, dtype=torch.int64, device=noise.device)  # the same
        if params.repetition_penalty != 1.0:
            self._meet(prompt)

    def read(self, tokens: Sequence[int]) -> None:
        """The answer goes on with these tokens."""
        self._meet(tokens)
        ids = torch.tensor(tokens, device=self._counts.device)
        self._counts.index_add_(0, ids, torch.ones(len(tokens), device=ids.device))

    def apply(self, row: Tensor) -> Tensor:
        """The row (vocabulary,) with all three, changed in place."""
        values, counts = row.index_select(0, self._ids), self._counts.index_select(0, self._ids)
        penalty = self._params.repetition_penalty
        values = torch.where(values > 0, values / penalty, values * penalty)
        values -= counts * self._params.frequency_penalty
        values -= (counts > 0) * self._params.presence_penalty
        return row.index_copy_(0, self._ids, values)

    def _meet(self, tokens: Sequence[int]) -> None:
        new = [token for token in dict.fromkeys(tokens) if token not in self._known]
        self._known.update(dict.fromkeys(new))
        self._ids = torch.cat([self._ids, torch.tensor(new, device=self._ids.device).long()])


def _check_ids(name: str, tokens: Iterable[int], vocabulary: int) -> None:
    for token in tokens:
        if not 0 <= token < vocabulary:
            raise ValueError(
                f"{name} names token {token}; the model's ids lie between 0 and {vocabulary - 1}"
            )
