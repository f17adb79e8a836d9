"""Rows that are shared out among threads get what one thread gives them."""

from __future__ import annotations

import math
import threading
import time

import numpy as np
import pytest
import torch

from turbo_runtime.messages import SamplingParams
from turbo_runtime.sampling.noise import Noise
from turbo_runtime.sampling.row_threads import share_out
from turbo_runtime.sampling.rows import DrawnRows, Masks, SampledRows
from turbo_runtime.sampling.search import SEARCH

ROWS, VOCABULARY = 300, 1000
PATIENCE = 60.0


def sampled(rows: range, **params: float) -> SampledRows:
    return SampledRows(
        list(rows),
        [SamplingParams(temperature=0.7 + 0.01 * (row % 9), **params) for row in rows],
        [7919 * row for row in rows],
        [row % 50 for row in rows],
    )


def drawn(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens of rows that are drawn each way, and what masks left of them, some of which are equal."""
    left = logits.clone()
    masks: Masks = np.random.default_rng(0).integers(0, 256, (5, VOCABULARY // 8), np.uint8)
    SEARCH.forbid(left, range(0, ROWS, 2), masks[np.arange(ROWS // 2) % 5])
    rows = DrawnRows(list(range(100)), sampled(range(100, 200)), sampled(range(200, ROWS), top_p=0.8))
    return SEARCH.draw(left, rows, Noise(VOCABULARY)), left


@pytest.mark.usefixtures("three_threads")
def test_every_row_has_the_same_token_however_many_threads_draw() -> None:
    # of equal logits top_p leaves tokens that only a whole ranking tells
    logits = torch.randn(ROWS, VOCABULARY, generator=torch.Generator().manual_seed(1)).mul_(4).round_()
    logits[7] = math.nan
    among_three = drawn(logits)
    torch.set_num_threads(1)
    alone = drawn(logits)
    for one, other in zip(among_three, alone, strict=True):
        assert torch.equal(one.nan_to_num(99), other.nan_to_num(99))


@pytest.mark.usefixtures("three_threads")
def test_all_rows_are_worked_on_once_and_by_several_threads_if_there_are_many() -> None:
    seen, names = np.zeros(ROWS, np.int64), set[str]()

    together = threading.Barrier(3)

    def work(part: slice) -> None:
        seen[part] += 1
        names.add(threading.current_thread().name)

    def work_with_others(part: slice) -> None:
        together.wait(PATIENCE)
        work(part)

    share_out(ROWS, work_with_others)
    assert seen.tolist() == [1] * ROWS
    assert len(names) == 3
    names.clear()
    share_out(40, work)
    assert names == {threading.current_thread().name}


@pytest.mark.usefixtures("three_threads")
def test_there_are_never_more_threads_than_torch_has() -> None:
    before = threading.active_count()
    for count in (70, 100, 128, ROWS, 1000):
        share_out(count, lambda _: None)
    assert threading.active_count() <= before + 2


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("failing", [0, 2])
def test_a_failure_comes_up_once_no_thread_works_any_more(failing: int) -> None:
    ended = list[int]()

    def work(part: slice) -> None:
        number = part.start * 3 // ROWS
        if number == failing:
            raise ValueError(f"part {number}")
        time.sleep(0.05)
        ended.append(number)

    with pytest.raises(ValueError, match=f"part {failing}"):
        share_out(ROWS, work)
    assert sorted(ended) == [number for number in range(3) if number != failing]
