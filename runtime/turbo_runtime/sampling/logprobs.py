"""Log probabilities under the model's own law: of logits as they came, at temperature 1."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from turbo_runtime.messages import TokenLogprob
from turbo_runtime.sampling.ranking import head

_ROWS = 8  # at once: a vocabulary of float64 is a megabyte


@torch.inference_mode()
def token_logprobs(logits: Tensor, tokens: Sequence[int], top: int) -> list[TokenLogprob]:
    """Of one of `tokens` for each row of unprocessed `logits` (rows, vocabulary), and of the `top` likeliest;
    ranks count equal logits by lower id first. The bits of a row do not depend on the others.
    """
    found: list[TokenLogprob] = []
    for begin in range(0, len(tokens), _ROWS):
        found += _told(logits[begin : begin + _ROWS], tokens[begin : begin + _ROWS], top)
    return found


def _told(rows: Tensor, tokens: Sequence[int], top: int) -> list[TokenLogprob]:
    wanted = torch.tensor(tokens, device=rows.device)[:, None]
    peaks = rows.amax(1, keepdim=True).double()
    totals = peaks + _sum(rows.double().sub_(peaks).exp_()).log_()
    own = rows.gather(1, wanted)
    before = torch.arange(rows.shape[1], device=rows.device) < wanted
    ranks = 1 + ((rows > own) | ((rows == own) & before)).sum(1)
    logprobs = own.double() - totals
    best: list[tuple[tuple[int, float], ...]] = [()] * len(tokens)
    if top:
        ids = [head(row, top) for row in rows]
        best = [
            tuple(zip(each.tolist(), (row[each].double() - total).tolist(), strict=True))
            for each, row, total in zip(ids, rows, totals, strict=True)
        ]
    told = zip(tokens, logprobs[:, 0].tolist(), ranks.tolist(), best, strict=True)
    return [TokenLogprob(*each) for each in told]


def _sum(values: Tensor) -> Tensor:
    """(rows, 1): sums of rows, halved again and again, so that their order does not depend on how many rows
    there are, as a library's may.
    """
    while (count := values.shape[1]) > 1:
        half = count // 2
        pairs = values[:, :half] + values[:, half : 2 * half]
        values = torch.cat([pairs, values[:, -1:]], 1) if count % 2 else pairs
    return values


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
        told = self._prompt[positions.start + 1 : positions.stop + 1]
        self._found += token_logprobs(logits, told, self._top)

    def take(self) -> tuple[TokenLogprob, ...] | None:
        """All of them, once the prompt is through; None before."""
        return tuple(self._found) if len(self._found) == len(self._prompt) - 1 else None
