"""The processors of an answer's logits: masks, bias, penalties, in this order."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import count

import torch
from torch import Tensor

from turbo_runtime.messages import SamplingParams
from turbo_runtime.sampling.noise import Noise


class Processors:
    """The processors of one answer, with their state."""

    def __init__(
        self, params: SamplingParams, prompt: Sequence[int], stop_ids: Collection[int], noise: Noise
    ) -> None:
        """Raise ValueError for an unknown token. Costly state waits for the first row: many may be queued."""
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
        self._output: list[int] = []
        self._prompt = prompt
        self._device = device
        self._has_penalties = bool(
            params.presence_penalty or params.frequency_penalty or params.repetition_penalty != 1.0
        )
        self._penalties: Penalties | None = None  # made with the first row

    @property
    def idle(self) -> bool:
        """Whether no row of this answer ever changes."""
        p = self._params
        return not (p.logit_bias or p.bad_words or p.min_tokens or self._has_penalties)

    @property
    def gain(self) -> float:
        """The maximum growth of a difference between two rows: the repetition penalty multiplies."""
        return max(self._params.repetition_penalty, 1 / self._params.repetition_penalty)

    def read(self, tokens: Sequence[int]) -> None:
        """The answer goes on with these tokens."""
        self._output.extend(tokens)
        if self._penalties is not None:
            self._penalties.read(tokens)

    def apply(self, logits: Tensor) -> Tensor:
        """Return processed logits (vocabulary,) float32 of the row after the read tokens, as a copy."""
        row = logits.clone()
        row[self._never] = -torch.inf
        for run in self._runs:
            if tuple(self._output[1 - len(run) :]) == run[:-1]:
                row[run[-1]] = -torch.inf
        if len(self._output) < self._params.min_tokens:
            row[self._stops] = -torch.inf
        row.index_add_(0, self._biased, self._bias)
        if not self._has_penalties:
            return row
        if self._penalties is None:
            self._penalties = Penalties(self._params, self._prompt, self._device)
            self._penalties.read(self._output)
        return self._penalties.apply(row)


class Penalties:
    """Repetition, frequency and presence penalties, for the tokens that can have them."""

    def __init__(self, params: SamplingParams, prompt: Sequence[int], device: torch.device) -> None:
        self._params = params
        penalized = prompt if params.repetition_penalty != 1.0 else ()
        self._place = {token: place for place, token in enumerate(dict.fromkeys(penalized))}  # in these two
        self._ids = torch.tensor([*self._place], device=device).long()
        self._counts = torch.zeros(len(self._ids), device=device)  # how often the answer has them

    def read(self, tokens: Sequence[int]) -> None:
        """The answer goes on with these tokens."""
        if new := [token for token in dict.fromkeys(tokens) if token not in self._place]:
            self._place.update(zip(new, count(len(self._place)), strict=False))
            self._ids = torch.cat([self._ids, torch.tensor(new, device=self._ids.device)])
            self._counts = torch.cat([self._counts, self._counts.new_zeros(len(new))])
        places = torch.tensor([self._place[token] for token in tokens], device=self._ids.device).long()
        self._counts.index_add_(0, places, torch.ones(len(tokens), device=places.device))

    def apply(self, row: Tensor) -> Tensor:
        """Apply all three to the row (vocabulary,) in place."""
        values, counts = row.index_select(0, self._ids), self._counts
        penalty = self._params.repetition_penalty
        values = torch.where(values > 0, values / penalty, values * penalty)
        values -= counts * self._params.frequency_penalty
        values -= (counts > 0) * self._params.presence_penalty
        return row.index_copy_(0, self._ids, values)


def _check_ids(name: str, tokens: Iterable[int], vocabulary: int) -> None:
    for token in tokens:
        if not 0 <= token < vocabulary:
            raise ValueError(
                f"{name} names token {token}; the model's ids lie between 0 and {vocabulary - 1}"
            )
