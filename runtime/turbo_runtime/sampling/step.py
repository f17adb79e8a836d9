"""All rows of a step: what can be drawn for many answers at once is, everything else row by row when asked
for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from turbo_runtime.sampling.draw import greedy_tokens, sampled_tokens
from turbo_runtime.sampling.noise import Noise, position_key
from turbo_runtime.sampling.sampler import Sampler

TokenAt = Callable[[int], int]


@dataclass(frozen=True, slots=True)
class AnswerRows:
    """One answer's rows of a step: one after its tokens, and one after each draft."""

    law: Sampler
    tokens: Sequence[int]  # prompt and answer so far
    drafts: Sequence[int]
    first: int  # of its len(drafts) + 1 rows among the step's


def tokens_of_step(logits: Tensor, parts: Sequence[AnswerRows], noise: Noise) -> list[TokenAt]:
    """For each part the engine's token at its row i, as `verify` asks for it; `logits` are
    (rows, vocabulary) float32. A row's token is the one that `AnswerLaw.token` gives for it alone.
    """
    drawn: dict[int, int] = {}
    greedy = [row for part in parts if part.law.plain and part.law.greedy for row in _rows(part)]
    if greedy:
        drawn.update(zip(greedy, greedy_tokens(_picked(logits, greedy)).tolist(), strict=True))
    sampled = [
        (row, part.law.params.temperature, position_key(part.law.key, len(part.tokens) + i))
        for part in parts
        if part.law.plain and not part.law.greedy
        for i, row in enumerate(_rows(part))
    ]
    if sampled:
        rows, temperatures, keys = zip(*sampled, strict=True)
        tokens = sampled_tokens(
            _picked(logits, rows),
            torch.tensor(temperatures, dtype=torch.float64, device=logits.device),
            torch.tensor(keys, device=logits.device),
            noise,
        )
        drawn.update(zip(rows, tokens.tolist(), strict=True))
    return [_token_at(logits, part, drawn) for part in parts]


def _token_at(logits: Tensor, part: AnswerRows, drawn: dict[int, int]) -> TokenAt:
    if part.law.plain:
        return lambda i: part.law.known(drawn[part.first + i])
    return lambda i: part.law.token(logits[part.first + i], part.tokens, part.drafts[:i])


def _rows(part: AnswerRows) -> range:
    return range(part.first, part.first + len(part.drafts) + 1)


def _picked(logits: Tensor, rows: Sequence[int]) -> Tensor:
    return logits if len(rows) == len(logits) else logits[torch.tensor(rows, device=logits.device)]
