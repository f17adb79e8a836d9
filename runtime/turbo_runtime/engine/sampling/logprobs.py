"""Log probabilities under the model's own law: of logits as they came, at temperature 1."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from turbo_runtime.engine.request import TokenLogprob
from turbo_runtime.engine.sampling.ranking import head


def token_logprob(logits: Tensor, token: int, top: int) -> TokenLogprob:
    """Of `token` and of the `top` likeliest in one row (vocabulary,) of unprocessed logits; ranks count equal
    logits by lower id first.
    """
    row = logits.double()
    total = float(row.logsumexp(0))  # one row at a time: no sum is split by how many there are
    own = row[token]
    rank = 1 + int((row > own).sum()) + int((row[:token] == own).sum())
    ids = head(logits, top).tolist() if top else []
    best = tuple(zip(ids, (row[ids] - total).tolist(), strict=True))
    return TokenLogprob(token, float(own) - total, rank, best)


class PromptLogprobs:
    """Collects those of a prompt's tokens, from its second on, while the prompt is computed in chunks, some
    perhaps twice.
    """

    def __init__(self, prompt: Sequence[int], top: int) -> None:
        self._prompt = prompt
        self._top = top
        self._found: list[TokenLogprob] = []

    def rows(self, start: int, count: int) -> range:
        """Positions of a chunk of `count` tokens from position `start` whose logits are wanted: they foretell
        a token of the prompt that was not told yet. The chunk of a prompt's last token may yield an answer's
        row behind them.
        """
        begin = max(start, len(self._found))
        return range(begin, max(begin, min(start + count, len(self._prompt) - 1)))

    def read(self, logits: Tensor, positions: range) -> None:
        """Logits (rows, vocabulary) of those positions."""
        if positions and positions.start != len(self._found):
            raise ValueError(f"prompt rows from {positions.start} on came, {len(self._found)} were due")
        for row, position in zip(logits, positions, strict=True):
            self._found.append(token_logprob(row, self._prompt[position + 1], self._top))

    def take(self) -> tuple[TokenLogprob, ...] | None:
        """All of them, once the prompt is through; None before."""
        return tuple(self._found) if len(self._found) == len(self._prompt) - 1 else None
