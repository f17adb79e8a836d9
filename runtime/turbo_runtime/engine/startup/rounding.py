"""How much rounding does to the logits of this model on this machine: the audit's margin where rows are not
proven equal. It grows with the depth of a model and differs between models of one depth.
"""

from __future__ import annotations

import logging
import time

from turbo_runtime.engine.startup.invariance_check import PROBE_TOKENS, probe_tokens
from turbo_runtime.kv_cache.block_pool import PROMPT_TILE, blocks_for
from turbo_runtime.models.runner import ModelRunner
from turbo_runtime.models.step_batch import Chunk

log = logging.getLogger(__name__)

LIMIT_SECONDS = 2.0
MIN_ROWS = 8  # however long they take


def measure_rounding(model: ModelRunner, limit_seconds: float = LIMIT_SECONDS) -> float:
    """Return by how much logits differ at most between rows computed at once, as drafts are, and one at a
    time, as the audit does; as a share of the row's greatest, without what all of a row have in common, since
    that changes no token. Overwrites the first blocks of the cache.
    """
    count = min(PROBE_TOKENS, model.max_length, model.pool.blocks * model.pool.block_size)
    tokens, table = probe_tokens(model, count), list(range(blocks_for(count, model.pool.block_size)))
    times = []
    for _ in range(2):  # the first is a warm-up
        start_time = time.monotonic()
        model.forward([Chunk(tokens[:1], 0, table, 1, 1)])
        times.append(time.monotonic() - start_time)
    # the last ones: they see whole chunks of keys, and most of what differs before them
    rows = min(max(int(limit_seconds / max(times[-1], 1e-6)), MIN_ROWS), count // 2)
    prompt = count - rows
    at_once = model.forward([Chunk(tokens, 0, table, rows, prompt)]).logits.clone()
    for start in range(0, prompt, PROMPT_TILE):
        model.forward([Chunk(tokens[start : min(start + PROMPT_TILE, prompt)], start, table, 0, prompt)])
    greatest = 0.0
    for row in range(rows):
        place = prompt + row
        alone = model.forward([Chunk(tokens[place : place + 1], place, table, 1, prompt)]).logits[0]
        off = alone - at_once[row]
        share = float((off.max() - off.min()) / (2 * alone.abs().max()))
        greatest = max(greatest, share)  # of NaN, which has no margin, nothing is taken
    log.info("rounding moves logits by up to %.2g of the greatest", greatest)
    return greatest
