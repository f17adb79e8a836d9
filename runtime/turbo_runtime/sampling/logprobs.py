"""Log probabilities under the model's own distribution: of unprocessed logits, at temperature 1."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from turbo_runtime.messages import TokenLogprob
from turbo_runtime.models.transfer import Array
from turbo_runtime.sampling.rows import RowKernels
from turbo_runtime.sampling.search import SEARCH
from turbo_runtime.sampling.truncation import sum_rows

Columns = tuple[Tensor, Tensor, Tensor, Tensor]


@torch.inference_mode()
def score(logits: Tensor, tokens: Tensor, top: int, kernels: RowKernels = SEARCH) -> Columns:
    """Score the `tokens` (n,) of rows (n, vocabulary): log probability (n,) float64 and rank (n,) of each,
    and ids and log probabilities (n, top) of the likeliest ones.
    """
    size = kernels.rows_at_once(logits.shape[1])
    parts = zip(torch.split(logits, size), torch.split(tokens, size), strict=True)
    pieces = [_score(rows, wanted, top, kernels.likeliest) for rows, wanted in parts]
    logprobs, ranks, ids, best = (torch.cat(each) for each in zip(*pieces, strict=True))
    return logprobs, ranks, ids, best


def _score(rows: Tensor, tokens: Tensor, top: int, ranked: Callable[[Tensor, int], Tensor]) -> Columns:
    wanted = tokens[:, None]
    peaks = rows.amax(1, keepdim=True).double()
    totals = peaks + sum_rows(rows.double().sub_(peaks).exp_()).log_()
    logit = rows.gather(1, wanted)
    before = torch.arange(rows.shape[1], device=rows.device) < wanted
    ranks = 1 + ((rows > logit) | ((rows == logit) & before)).sum(1)
    ids = ranked(rows, min(top, rows.shape[1])) if top else wanted[:, :0]
    return (logit.double() - totals)[:, 0], ranks, ids, rows.gather(1, ids).double() - totals


def read_scores(columns: Sequence[Array], tokens: Sequence[int], first: int, top: int) -> list[TokenLogprob]:
    """Read those of `tokens` from downloaded columns, row `first` being that of the first token."""
    logprobs, ranks, ids, best = (each[first : first + len(tokens)].tolist() for each in columns)
    likely = [
        tuple(pair for pair in zip(row[:top], chances, strict=False) if pair[1] > -math.inf)
        for row, chances in zip(ids, best, strict=True)
    ]
    return list(map(TokenLogprob, tokens, logprobs, ranks, likely))


class PromptLogprobs:
    """The log probabilities of a prompt's tokens from the second on, in chunks, some perhaps twice."""

    def __init__(self, prompt: Sequence[int], top: int | None) -> None:
        """Without `top` none are requested."""
        self._prompt = prompt
        self.top = top
        self._logprobs: list[TokenLogprob] = []

    def rows(self, start: int, count: int) -> range:
        """Positions among `count` tokens from `start` whose logits predict a new token of the prompt."""
        if self.top is None:
            return range(0)
        begin = max(start, len(self._logprobs))
        return range(begin, max(begin, min(start + count, len(self._prompt) - 1)))

    def tokens(self, positions: range) -> Sequence[int]:
        """Return the tokens that the rows of those positions predict."""
        return self._prompt[positions.start + 1 : positions.stop + 1]

    def read(self, logprobs: Sequence[TokenLogprob], positions: range) -> None:
        """Take those of the tokens after these positions."""
        if positions and positions.start != len(self._logprobs):
            raise ValueError(f"prompt rows from {positions.start} on came, {len(self._logprobs)} were due")
        self._logprobs += logprobs

    def take(self) -> tuple[TokenLogprob, ...] | None:
        """Return all of them once, when the prompt is complete; else None."""
        if self.top is None or len(self._logprobs) < len(self._prompt) - 1:
            return None
        self.top = None
        return tuple(self._logprobs)
