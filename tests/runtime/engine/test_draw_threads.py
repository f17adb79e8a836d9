"""Rows that are shared out among threads get what one thread gives them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from turbo_runtime.messages import SamplingParams
from turbo_runtime.models.compiled import threads
from turbo_runtime.sampling.noise import Noise
from turbo_runtime.sampling.rows import DrawnRows, Masks, rule_of
from turbo_runtime.sampling.search import SEARCH

ROWS, VOCABULARY = 300, 4000  # enough to wake threads for, half of the rows, too


def every_row() -> DrawnRows:
    rows = DrawnRows()
    for row in range(ROWS):
        params = SamplingParams(temperature=max(0.0, 0.01 * (row - 100)), top_p=0.8 if row > 200 else 1.0)
        rows.add(row, 1, rule_of(params), 7919 * row, row % 50)
    return rows


def drawn(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens of rows that are drawn each way, and what masks left of them, some of which are equal."""
    left = logits.clone()
    masks: Masks = np.random.default_rng(0).integers(0, 256, (5, VOCABULARY // 8), np.uint8)
    rows = every_row()
    for row in range(0, ROWS, 2):
        rows.keep(row, masks[row // 2 % 5])
    return SEARCH.draw(left, rows, Noise(VOCABULARY)), left


@pytest.mark.usefixtures("three_threads")
def test_every_row_has_the_same_token_however_many_threads_draw() -> None:
    # of equal logits top_p leaves tokens that only a whole ranking tells
    logits = torch.randn(ROWS, VOCABULARY, generator=torch.Generator().manual_seed(1)).mul_(4).round_()
    logits[7] = math.nan
    assert threads.count_for(ROWS // 2 * VOCABULARY) == 3
    among_three = drawn(logits)
    torch.set_num_threads(1)
    alone = drawn(logits)
    for one, other in zip(among_three, alone, strict=True):
        assert torch.equal(one.nan_to_num(99), other.nan_to_num(99))
