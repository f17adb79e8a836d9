"""The start-up micro-benchmark: how long a model's passes take on this machine."""

from __future__ import annotations

import logging
import statistics
import time
from operator import methodcaller

from turbo_runtime.contract.config import BatchLimits
from turbo_runtime.contract.documents import StepTime
from turbo_runtime.engine.startup.invariance_check import probe_tokens
from turbo_runtime.kv_cache.block_pool import BlockPool, blocks_for
from turbo_runtime.models.matmul import COUNTS
from turbo_runtime.models.runner import ModelRunner
from turbo_runtime.models.step_batch import Chunk

log = logging.getLogger(__name__)

BENCHMARK_SECONDS = 2.6  # of all passes
REPEATS = 5  # passes of one point at most
CONTEXT = 256  # cached tokens of a decoded row
ROWS = 8  # requests of the point of several
DRAFTED = 16  # tokens of the point of drafts
# Drafted tokens around which products that keep a few rows in registers grow dear, most telling first
BETWEEN = (5, 6, 8, 11)


def measure_steps(
    model: ModelRunner,
    block_pool: BlockPool,
    limits: BatchLimits,
    max_draft_tokens: int,
    limit_seconds: float = BENCHMARK_SECONDS,
) -> tuple[StepTime, ...] | None:
    """Measure the points by which the planner scales its step-time model and the engine prices drafts, with
    passes as in serving: median times of one that decodes one row, one that verifies `DRAFTED` tokens, one
    that decodes up to `ROWS` rows (both left out if they do not fit), and one over the longest chunk of a
    prompt that the time allows; in the time that is left, of some that verify fewer tokens. Ends at a pass
    that takes longer than its point's share of `limit_seconds`, and logs it; None if that is the first.
    Borrows blocks of `block_pool`.
    """
    start_time = time.perf_counter()
    context = min(CONTEXT, model.max_length - 1)
    blocks_per_row = block_pool.blocks_for(context + 1)
    max_tokens = limits.max_num_batched_tokens
    several = min(ROWS, limits.max_num_seqs, max_tokens, block_pool.num_available // blocks_per_row)
    chunk = min(max_tokens, model.max_length)
    drafts = min(DRAFTED, max_draft_tokens)
    if context + 1 + drafts > model.max_length or 1 + drafts > max_tokens:
        drafts = 0
    longest = max(context + 1 + drafts, chunk)
    blocks = block_pool.take(max(several * blocks_per_row, block_pool.blocks_for(longest)))
    share = limit_seconds / 4  # of each point
    points: list[StepTime] = []
    try:
        model.everywhere(methodcaller("commit", blocks))
        decoded = sorted({(1, 1), (1, 1 + drafts), (several, 1)})
        for rows, tokens in decoded:
            points.append(_measure(model, blocks, share, rows, tokens, context))
        tokens = min(COUNTS[-1], chunk)  # doubled while there is time for three passes over the double
        while tokens < chunk and 3 * 2 * _time_pass(model, blocks, 1, tokens, 0) < share:
            tokens = min(2 * tokens, chunk)
        points.append(_measure(model, blocks, share, 1, tokens, 0))
        between = _between(model, drafts)
        for place, count in enumerate(between):
            left = limit_seconds - (time.perf_counter() - start_time)
            if left < 2 * points[1].seconds * (len(between) - place):
                break
            points.append(_measure(model, blocks, left / (len(between) - place), 1, 1 + count, context))
    except TimeoutError as outcome:
        log.warning("Micro-benchmark left out from here on: %s", outcome)
    finally:
        block_pool.release(blocks)
    return tuple(points) or None


def _between(model: ModelRunner, drafts: int) -> list[int]:
    """Of BETWEEN those with a size of pass of their own."""
    sizes = {model.padded_rows(1 + count): count for count in reversed(BETWEEN)}
    for known in (1, 1 + drafts):
        sizes.pop(model.padded_rows(known), None)
    return [count for count in BETWEEN if count in sizes.values() and count < drafts]


def _measure(
    model: ModelRunner, blocks: list[int], share: float, rows: int, tokens: int, context: int
) -> StepTime:
    """Measure the median of as many passes as `share` seconds allow after a warm-up, at least one."""
    start_time = time.perf_counter()
    warm_up = _time_pass(model, blocks, rows, tokens, context)
    if warm_up > share:
        raise TimeoutError(
            f"a pass over {rows} x {tokens} tokens took {warm_up:.2f} s, "
            f"and {share:.2f} s are there for it and its repetitions"
        )
    times = [_time_pass(model, blocks, rows, tokens, context)]
    while len(times) < REPEATS and time.perf_counter() - start_time + min(times) < share:
        times.append(_time_pass(model, blocks, rows, tokens, context))
    return StepTime(rows, tokens, context, statistics.median(times))


def _time_pass(model: ModelRunner, blocks: list[int], rows: int, tokens: int, context: int) -> float:
    """Seconds of one pass with its greedy tokens, as in serving: then a GPU has finished too."""
    size = blocks_for(context + tokens, model.pool.block_size)
    prompt = context or tokens  # decoded rows follow a prompt
    new = probe_tokens(model, tokens)
    tables = [blocks[row * size : (row + 1) * size] for row in range(rows)]
    yielding = tokens if context else 1  # rows of drafts all give a token
    chunks = [Chunk(new, context, table, yielding, prompt) for table in tables]
    start_time = time.perf_counter()
    model.forward(chunks).logits.argmax(1).tolist()
    return time.perf_counter() - start_time
