"""The changes to logits that requests ask for: forbidden tokens, bias, penalties, in this order.

Each request adds what its rows need to the `Edits` of a step, which change all rows in a few tensor
operations.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from turbo_runtime.messages import SamplingParams
from turbo_runtime.models.transfer import upload

Ids = NDArray[np.int64]
Counts = NDArray[np.float32]

_FIRST_ROOM = 64  # tokens with a penalty


class Edits:
    """The changes to a step's rows. A token of a row is addressed by its place in the flattened logits."""

    def __init__(self, vocabulary: int) -> None:
        self._vocabulary = vocabulary
        self._forbidden: list[tuple[int, Ids]] = []  # of each a row first
        self._biased: list[tuple[int, Ids, Counts]] = []
        # the last are repetition, frequency, presence
        self._penalized: list[tuple[int, Ids, Counts, tuple[float, float, float]]] = []

    def forbid(self, row: int, ids: Ids) -> None:
        """Forbid these tokens."""
        self._forbidden.append((row, ids))

    def add(self, row: int, ids: Ids, biases: Counts) -> None:
        """Add to these tokens' logits."""
        self._biased.append((row, ids, biases))

    def penalize(self, row: int, ids: Ids, counts: Counts, penalties: tuple[float, float, float]) -> None:
        """Penalize these tokens, which the answer has so often."""
        self._penalized.append((row, ids, counts, penalties))

    def apply(self, logits: Tensor) -> None:
        """Change `logits` (rows, vocabulary) float32 in place."""
        flat, device = logits.view(-1), logits.device
        if self._forbidden:
            places, _ = self._places(*zip(*self._forbidden, strict=True))
            flat.index_fill_(0, upload(places, device), -torch.inf)
        if self._biased:
            rows, ids, biases = zip(*self._biased, strict=True)
            places, _ = self._places(rows, ids)
            flat.index_add_(0, upload(places, device), upload(np.concatenate(biases), device))
        if self._penalized:
            rows, ids, occurrences, penalties = zip(*self._penalized, strict=True)
            places, sizes = self._places(rows, ids)
            each = np.repeat(np.array(penalties, np.float32), sizes, axis=0)
            repetition, frequency, presence = upload(each.T.copy(), device)
            at, counts = upload(places, device), upload(np.concatenate(occurrences), device)
            values = flat.index_select(0, at)
            values = torch.where(values > 0, values / repetition, values * repetition)
            values -= counts * frequency
            values -= (counts > 0) * presence
            flat.index_copy_(0, at, values)

    def _places(self, rows: Sequence[int], ids: Sequence[Ids]) -> tuple[Ids, list[int]]:
        """Return the places of each row's tokens, one row after the other, and how many each row has."""
        sizes = list(map(len, ids))
        return np.repeat(np.array(rows) * self._vocabulary, sizes) + np.concatenate(ids), sizes


class Processors:
    """The changes to one answer's rows, with their state."""

    def __init__(
        self, params: SamplingParams, prompt: Sequence[int], stop_ids: Collection[int], vocabulary: int
    ) -> None:
        """Raise ValueError for an unknown token. Costly state waits for the first row: many may be queued."""
        _check_ids("logit_bias", (token for token, _ in params.logit_bias), vocabulary)
        _check_ids("bad_words", (token for run in params.bad_words for token in run), vocabulary)
        if not all(params.bad_words):
            raise ValueError("bad_words holds an empty run of tokens; leave it out")
        self._params = params
        self._biased = np.array([token for token, _ in params.logit_bias], np.int64)
        self._biases = np.array([bias for _, bias in params.logit_bias], np.float32)
        self._never = [run[0] for run in params.bad_words if len(run) == 1]
        self._runs = [run for run in params.bad_words if len(run) > 1]
        self._longest = max(map(len, self._runs), default=1) - 1  # tokens before a run's last
        self._stops = np.array([token for token in stop_ids if 0 <= token < vocabulary], np.int64)
        self._output: list[int] = []
        self._prompt = prompt
        self._by_count = params.repetition_penalty, params.frequency_penalty, params.presence_penalty
        self._has_penalties = self._by_count != (1.0, 0.0, 0.0)
        self._penalties: Penalties | None = None  # made with the first row
        p = params
        # whether no row of this answer ever changes
        self.idle = not (p.logit_bias or p.bad_words or p.min_tokens or self._has_penalties)

    @property
    def gain(self) -> float:
        """The maximum growth of a difference between two rows: the repetition penalty multiplies."""
        return max(self._params.repetition_penalty, 1 / self._params.repetition_penalty)

    def read(self, tokens: Sequence[int]) -> None:
        """The answer goes on with these tokens."""
        self._output.extend(tokens)
        if self._penalties is not None:
            self._penalties.read(tokens)

    def collect(self, edits: Edits, first: int, drafts: Sequence[int]) -> None:
        """Add the changes to the row `first`, after the tokens read, and to the rows after each draft."""
        if self._has_penalties and self._penalties is None:
            self._penalties = Penalties(self._params, self._prompt)
            self._penalties.read(self._output)
        rows = range(first, first + len(drafts) + 1)
        if self._params.bad_words:
            self._forbid_words(edits, rows, drafts)
        if len(self._output) < self._params.min_tokens and len(self._stops):
            for row in rows[: self._params.min_tokens - len(self._output)]:
                edits.forbid(row, self._stops)
        if len(self._biased):
            for row in rows:
                edits.add(row, self._biased, self._biases)
        if self._penalties is not None:
            for accepted, row in enumerate(rows):
                edits.penalize(row, *self._penalties.after(drafts[:accepted]), self._by_count)

    def _forbid_words(self, edits: Edits, rows: Sequence[int], drafts: Sequence[int]) -> None:
        """Forbid what would complete a run of `bad_words`."""
        recent = [*self._output[max(0, len(self._output) - self._longest) :], *drafts]
        for end, row in enumerate(rows, len(recent) - len(drafts)):
            ended = [run[-1] for run in self._runs if _ends_with(recent, end, run[:-1])]
            edits.forbid(row, np.array([*self._never, *ended], np.int64))


class Penalties:
    """How often an answer has each token that can have a repetition, frequency or presence penalty."""

    def __init__(self, params: SamplingParams, prompt: Sequence[int]) -> None:
        penalized = prompt if params.repetition_penalty != 1.0 else ()
        self._place = {token: place for place, token in enumerate(dict.fromkeys(penalized))}  # in these two
        self._ids = np.fromiter(self._place, np.int64, len(self._place))
        self._counts = np.zeros(len(self._place), np.float32)

    def read(self, tokens: Sequence[int]) -> None:
        """The answer goes on with these tokens."""
        for token in tokens:
            place = self._place.setdefault(token, len(self._place))
            if place == len(self._ids):
                room = max(_FIRST_ROOM, len(self._ids))
                self._ids = np.concatenate([self._ids, np.zeros(room, np.int64)])
                self._counts = np.concatenate([self._counts, np.zeros(room, np.float32)])
            self._ids[place] = token
            self._counts[place] += 1

    def after(self, drafts: Sequence[int]) -> tuple[Ids, Counts]:
        """Return the tokens and their counts, if the answer went on with `drafts`; until it is read on."""
        size = len(self._place)
        ids, counts = self._ids[:size], self._counts[:size]
        if not drafts:
            return ids, counts
        counts, new = counts.copy(), Counter[int]()
        for token in drafts:
            place = self._place.get(token)
            if place is None:
                new[token] += 1
            else:
                counts[place] += 1
        more = np.fromiter(new.values(), np.float32, len(new))
        return np.concatenate([ids, np.fromiter(new, np.int64, len(new))]), np.concatenate([counts, more])


def _ends_with(tokens: Sequence[int], end: int, run: Sequence[int]) -> bool:
    """Whether the first `end` tokens end with `run`."""
    return end >= len(run) and tuple(tokens[end - len(run) : end]) == tuple(run)


def _check_ids(name: str, tokens: Iterable[int], vocabulary: int) -> None:
    for token in tokens:
        if not 0 <= token < vocabulary:
            raise ValueError(
                f"{name} names token {token}; the model's ids lie between 0 and {vocabulary - 1}"
            )
