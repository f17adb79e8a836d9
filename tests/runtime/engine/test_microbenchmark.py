"""The start-up micro-benchmark on a tiny model: a few points, and no trace of it."""

from __future__ import annotations

import logging

import pytest
import torch

from turbo_dev.drafting import EveryDraft
from turbo_dev.tiny_engine import network
from turbo_runtime.contract.config import BatchLimits
from turbo_runtime.drafters.proposer import Proposer
from turbo_runtime.engine.loop import Engine
from turbo_runtime.engine.scheduler import Scheduler
from turbo_runtime.engine.startup import microbenchmark
from turbo_runtime.engine.startup.invariance_check import check_batch_invariance
from turbo_runtime.engine.startup.microbenchmark import (
    BETWEEN,
    CONTEXT,
    DRAFTED,
    REPEATS,
    ROWS,
    measure_steps,
)
from turbo_runtime.kv_cache.block_pool import BLOCK_SIZE, BlockPool
from turbo_runtime.messages import GenerationRequest, SamplingParams
from turbo_runtime.models.runner import ModelRunner
from turbo_runtime.models.step_batch import Chunk

LENGTH = 512
FEWER = [(1, 1 + drafted, CONTEXT) for drafted in BETWEEN]
PATIENCE_SECONDS = 60.0  # a machine that stands still for a second must not fail this


pytestmark = pytest.mark.usefixtures("one_thread")


def tiny(blocks: int = 256, max_length: int = LENGTH) -> ModelRunner:
    """The same random weights at every call."""
    return ModelRunner(network(vocabulary=61, positions=LENGTH), blocks=blocks, max_length=max_length)


def measured(
    model: ModelRunner,
    block_pool: BlockPool,
    *,
    running: int = 32,
    step_tokens: int = 512,
    drafts: int = 32,
) -> list[tuple[int, int, int]]:
    """(rows, tokens, context) of each point; all seconds are above 0."""
    limits = BatchLimits(running, step_tokens)
    points = measure_steps(model, block_pool, limits, drafts, PATIENCE_SECONDS)
    assert points is not None
    assert all(point.seconds > 0 for point in points)
    return [(point.rows, point.tokens, point.context) for point in points]


def test_one_row_drafts_several_rows_and_a_chunk_of_a_prompt_are_measured() -> None:
    points = [(1, 1, CONTEXT), (1, 1 + DRAFTED, CONTEXT), (ROWS, 1, CONTEXT), (1, 512, 0), *FEWER]
    assert measured(tiny(), BlockPool(256)) == points


@pytest.mark.parametrize(
    ("limits", "points"),
    [
        ({"running": 3}, [(1, 1, 256), (1, 17, 256), (3, 1, 256), (1, 512, 0), *FEWER]),
        ({"running": 1}, [(1, 1, 256), (1, 17, 256), (1, 512, 0), *FEWER]),
        ({"drafts": 4, "running": 1}, [(1, 1, 256), (1, 5, 256), (1, 512, 0)]),
        ({"drafts": 8, "running": 1}, [(1, 1, 256), (1, 9, 256), (1, 512, 0), (1, 6, 256), (1, 7, 256)]),
        ({"drafts": 0, "running": 1}, [(1, 1, 256), (1, 512, 0)]),
        ({"step_tokens": 5}, [(1, 1, 256), (5, 1, 256), (1, 5, 0)]),
    ],
)
def test_no_pass_is_larger_than_one_in_serving(
    limits: dict[str, int], points: list[tuple[int, int, int]]
) -> None:
    assert measured(tiny(), BlockPool(256), **limits) == points


@pytest.mark.parametrize(
    ("length", "blocks", "points"),
    [
        (512, 32, [(1, 1, 256), (1, 17, 256), (1, 512, 0), *FEWER]),
        (512, 34, [(1, 1, 256), (1, 17, 256), (2, 1, 256), (1, 512, 0), *FEWER]),
        (40, 3, [(1, 1, 39), (1, 40, 0)]),
        (1, 1, [(1, 1, 0), (1, 1, 0)]),
    ],
)
def test_a_small_cache_is_measured_with_what_fits(
    length: int, blocks: int, points: list[tuple[int, int, int]]
) -> None:
    block_pool = BlockPool(blocks)
    assert measured(tiny(blocks, length), block_pool) == points
    assert block_pool.num_used == 0


def test_sizes_that_are_computed_as_another_are_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    monkeypatch.setattr(model, "padded_rows", lambda rows: -(-rows // 8) * 8)
    assert measured(model, BlockPool(256))[4:] == [(1, 9, CONTEXT)]


def test_a_point_is_the_median_of_its_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = tiny(), []
    real = model.forward

    def counted(chunks: list[Chunk]) -> torch.Tensor:
        rows.append(len(chunks))
        return real(chunks)

    monkeypatch.setattr(model, "forward", counted)
    measured(model, BlockPool(256))
    assert rows.count(ROWS) == 1 + REPEATS  # a warm-up before them


def test_a_pass_that_takes_too_long_leaves_the_times_unknown_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    block_pool = BlockPool(256)
    with caplog.at_level(logging.WARNING):
        assert measure_steps(tiny(), block_pool, BatchLimits(8, 64), 0, limit_seconds=0.0) is None
    assert "Micro-benchmark left out from here on: a pass over 1 x 1 tokens took" in caplog.text
    assert block_pool.num_used == 0


def test_a_prompt_that_takes_too_long_takes_no_time_of_decoding_from_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = microbenchmark._time_pass

    def slow(model: ModelRunner, blocks: list[int], rows: int, tokens: int, context: int) -> float:
        return real(model, blocks, rows, tokens, context) if context else 2 * PATIENCE_SECONDS

    monkeypatch.setattr(microbenchmark, "_time_pass", slow)
    assert measured(tiny(), BlockPool(256)) == [
        (1, 1, CONTEXT),
        (1, 1 + DRAFTED, CONTEXT),
        (ROWS, 1, CONTEXT),
    ]


def test_answers_and_the_guarantee_are_the_same_after_it_as_without_it() -> None:
    untouched, model = tiny(), tiny()
    for each in (untouched, model):
        assert (
            check_batch_invariance(each, max_num_batched_tokens=64, limit_seconds=PATIENCE_SECONDS).guarantee
            == "bitwise"
        )
    block_pool = BlockPool(256)
    measured(model, block_pool)
    assert answers(model, block_pool) == answers(untouched, BlockPool(256))
    assert (
        check_batch_invariance(model, max_num_batched_tokens=64, limit_seconds=PATIENCE_SECONDS).guarantee
        == "bitwise"
    )


def test_the_slots_of_cleared_blocks_are_zero_and_no_others() -> None:
    pool = tiny(4, 64).pool
    for tensor in (*pool.keys, *pool.values):
        tensor.fill_(7)
    pool.clear(torch.tensor([[2 * BLOCK_SIZE], [0]]).add(torch.arange(BLOCK_SIZE)).ravel())
    for tensor in (*pool.keys, *pool.values):
        cleared = [bool((tensor[:, b * BLOCK_SIZE : (b + 1) * BLOCK_SIZE] == 0).all()) for b in range(4)]
        kept = [bool((tensor[:, b * BLOCK_SIZE : (b + 1) * BLOCK_SIZE] == 7).all()) for b in range(4)]
        assert (cleared, kept) == ([True, False, True, False], [False, True, False, True])


def answers(model: ModelRunner, block_pool: BlockPool) -> dict[str, list[int]]:
    """Of a few greedy and sampled requests together, with drafts."""
    scheduler = Scheduler(
        block_pool, max_num_seqs=8, max_num_batched_tokens=64, max_draft_tokens=4, max_length=LENGTH
    )
    engine = Engine(model, scheduler, Proposer(), control=EveryDraft())
    said: dict[str, list[int]] = {}
    for number in range(6):
        params = SamplingParams(temperature=number % 2, seed=number, max_tokens=40)
        engine.accept(GenerationRequest(f"r{number}", tuple(range(number, 50, number + 1)), params))
    while not engine.idle:
        for event in engine.step().events:
            assert event.error is None
            said.setdefault(event.request_id, []).extend(event.tokens)
    assert block_pool.num_used == 0
    return said
