"""After the start-up check: full pieces of hundreds of rows, for the products whose rows hold in them too.

They are a gain in speed alone: what is not shown within the time leaves everything as it was proven before.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace

import torch

from turbo_runtime.engine.startup.invariance_check import (
    ArithmeticReport,
    NotProvenError,
    alike,
    cancelling,
    is_batch_invariant,
)
from turbo_runtime.kv_cache.block_pool import blocks_for
from turbo_runtime.models.matmul import BULK, COUNTS, BatchInvariantLinear, MatmulKernel
from turbo_runtime.models.runner import Chunk, ModelRunner

log = logging.getLogger(__name__)

LIMIT_SECONDS = 5.0
PIECE = 100  # rows: fewer than a full piece


def take_up_bulk(
    model: ModelRunner,
    report: ArithmeticReport,
    max_step_tokens: int,
    limit_seconds: float = LIMIT_SECONDS,
) -> ArithmeticReport:
    """The report with the forms in use then; at most about `limit_seconds`."""
    if report.guarantee != "bytes" or max_step_tokens < BULK[0]:
        return report
    deadline = time.monotonic() + limit_seconds
    proven: list[tuple[BatchInvariantLinear, MatmulKernel]] = []
    forms = dict(report.forms)
    try:
        with torch.inference_mode():
            for name, products in alike(model):
                # logits of hundreds of rows are seldom wanted, and the check of so large a product takes long
                if products[0].shape[0] < model.vocabulary and _holds(products[0], deadline):
                    proven += [(product, product.form) for product in products]
                    forms[name] = products[0].form.in_bulk().name
            for product, form in proven:
                product.use(form.in_bulk())
            _probe(model, deadline)
    except NotProvenError as outcome:
        log.info("prompts are computed in pieces of %d rows: %s", COUNTS[-1], outcome)
        for product, form in proven:
            product.use(form)
        return report
    return replace(report, forms=forms)


def _holds(product: BatchInvariantLinear, deadline: float) -> bool:
    form = product.form
    if form.counts is None or form.counts[-1] != COUNTS[-1]:
        return False
    weight, row = cancelling(*product.shape, product.dtype)
    probe = product.like(weight)
    probe.use(form.in_bulk())
    return is_batch_invariant(probe, row.repeat(1, product.heads), (form.counts[0], *BULK), deadline)


def _probe(model: ModelRunner, deadline: float) -> None:
    """The whole model, a prompt in full pieces and in small ones; passed over where no room is for it."""
    count = BULK[-1] + COUNTS[0]
    blocks = blocks_for(count)
    if count > model.max_length or 2 * blocks > model.pool.blocks:
        return
    tokens = [(17 + 31 * i) % model.vocabulary for i in range(count)]
    tables = list(range(blocks)), list(range(blocks, 2 * blocks))
    began, start = time.monotonic(), 0
    while start < count:
        piece = tokens[start : start + PIECE]
        small = model.forward([Chunk(piece, start, tables[0], 1, count)]).logits
        start += len(piece)
        left = (time.monotonic() - began) / start * (2 * count - start)
        if time.monotonic() + left > deadline:
            raise NotProvenError("the check takes too long")
    at_once = model.forward([Chunk(tokens, 0, tables[1], 1, count)]).logits
    if not torch.equal(at_once, small):
        raise NotProvenError("the model's logits depend on the number of rows")
