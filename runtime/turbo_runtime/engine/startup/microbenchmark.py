"""The start-up micro-benchmark: the time of a forward pass on this machine, at three points.

The planner scales its step-time model by them: decoding one row, decoding several, and a chunk of a prompt.
The passes are those of serving: the same model, kernels, threads and paged pool.
"""

from __future__ import annotations

import logging
import statistics
import time

from turbo_runtime.contract.model import StepTime
from turbo_runtime.engine.startup.invariance_check import probe_tokens
from turbo_runtime.kv_cache.block_pool import BlockPool, blocks_for
from turbo_runtime.models.matmul import COUNTS
from turbo_runtime.models.runner import Chunk, ModelRunner
from turbo_runtime.sampling.draw import greedy_tokens

log = logging.getLogger(__name__)

LIMIT_SECONDS = 2.0  # of all passes
REPEATS = 9  # passes of one point at most
CONTEXT = 256  # cached tokens of a decoded row
ROWS = 8  # of the second point


def measure_steps(
    model: ModelRunner,
    ledger: BlockPool,
    *,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    limit_seconds: float = LIMIT_SECONDS,
) -> tuple[StepTime, ...] | None:
    """Measure median times of a pass that decodes one row, one that decodes up to `ROWS` rows (left out if
    only one fits), and one over the longest chunk of a prompt that the time allows. Logs and returns None if
    a pass takes longer than its point's share of `limit_seconds`. Borrows blocks of `ledger`.
    """
    context = min(CONTEXT, model.max_length - 1)
    blocks_per_row = blocks_for(context + 1)
    several = min(ROWS, max_num_seqs, max_num_batched_tokens, ledger.num_available // blocks_per_row)
    chunk = min(max_num_batched_tokens, model.max_length)
    blocks = ledger.take(max(several * blocks_per_row, blocks_for(chunk)))
    share = limit_seconds / 3  # of each point
    try:
        model.pool.clear(blocks)
        points = [_measure(model, blocks, share, rows, 1, context) for rows in sorted({1, several})]
        tokens = min(COUNTS[-1], chunk)  # doubled while there is time for three passes over the double
        while tokens < chunk and 3 * 2 * _time_pass(model, blocks, 1, tokens, 0) < share:
            tokens = min(2 * tokens, chunk)
        return (*points, _measure(model, blocks, share, 1, tokens, 0))
    except TimeoutError as outcome:
        log.warning("Micro-benchmark left out: %s", outcome)
        return None
    finally:
        ledger.release(blocks)


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
    size = blocks_for(context + tokens)
    prompt = context or tokens  # decoded rows follow a prompt
    new = probe_tokens(model, tokens)
    tables = [blocks[row * size : (row + 1) * size] for row in range(rows)]
    chunks = [Chunk(new, context, table, 1, prompt) for table in tables]
    start_time = time.perf_counter()
    greedy_tokens(model.forward(chunks).logits).tolist()
    return time.perf_counter() - start_time
