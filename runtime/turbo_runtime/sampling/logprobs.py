"""Log probabilities under the model's own distribution: of unprocessed logits, at temperature 1."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from turbo_runtime.messages import TokenLogprob
from turbo_runtime.sampling.truncation import head, sum_rows

_ROWS = 8  # at once: a vocabulary of float64 is a megabyte


@torch.inference_mode()
def token_logprobs(logits: Tensor, tokens: Sequence[int], top: int) -> list[TokenLogprob]:
    """Return the log probability of each row's token and the `top` likeliest; `logits` (rows, vocabulary)."""
    result: list[TokenLogprob] = []
    for start in range(0, len(tokens), _ROWS):
        result += _chunk_logprobs(logits[start : start + _ROWS], tokens[start : start + _ROWS], top)
    return result


def _chunk_logprobs(rows: Tensor, tokens: Sequence[int], top: int) -> list[TokenLogprob]:
    wanted = torch.tensor(tokens, device=rows.device)[:, None]
    peaks = rows.amax(1, keepdim=True).double()
    totals = peaks + sum_rows(rows.double().sub_(peaks).exp_()).log_()
    own = rows.gather(1, wanted)
    before = torch.arange(rows.shape[1], device=rows.device) < wanted
    ranks = 1 + ((rows > own) | ((rows == own) & before)).sum(1)
    logprobs = own.double() - totals
    best: list[tuple[tuple[int, float], ...]] = [()] * len(tokens)
    if top:
        ids = [head(row, top) for row in rows]
        best = [
            tuple(zip(ranked.tolist(), (row[ranked].double() - total).tolist(), strict=True))
            for ranked, row, total in zip(ids, rows, totals, strict=True)
        ]
    return list(map(TokenLogprob, tokens, logprobs[:, 0].tolist(), ranks.tolist(), best))


class PromptLogprobs:
    """The log probabilities of a prompt's tokens from the second on, in chunks, some perhaps twice."""

    def __init__(self, prompt: Sequence[int], top: int | None) -> None:
        """Without `top` none are requested."""
        self._prompt = prompt
        self._top = top
        self._logprobs: list[TokenLogprob] = []

    def rows(self, start: int, count: int) -> range:
        """Positions among `count` tokens from `start` whose logits predict a new token of the prompt."""
        if self._top is None:
            return range(0)
        begin = max(start, len(self._logprobs))
        return range(begin, max(begin, min(start + count, len(self._prompt) - 1)))

    def read(self, logits: Tensor, positions: range) -> None:
        """Read the logits (rows, vocabulary) of those positions."""
        if self._top is None:
            return
        if positions and positions.start != len(self._logprobs):
            raise ValueError(f"prompt rows from {positions.start} on came, {len(self._logprobs)} were due")
        tokens = self._prompt[positions.start + 1 : positions.stop + 1]
        self._logprobs += token_logprobs(logits, tokens, self._top)

    def take(self) -> tuple[TokenLogprob, ...] | None:
        """Return all of them once, when the prompt is complete; else None."""
        if self._top is None or len(self._logprobs) < len(self._prompt) - 1:
            return None
        self._top = None
        return tuple(self._logprobs)
