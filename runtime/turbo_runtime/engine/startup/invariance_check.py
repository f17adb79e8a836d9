"""The start-up check: which product kernels and which attention shapes keep rows bit-equal here, and so which
guarantee holds.

`bitwise`: a request's text is the same with and without speculation, in any batch. `distribution`: it is a
draw from the same distribution. The check tries, on this machine and with this number of threads, a fixed
row at every position of every row count in use: for each distinct weight shape, for norms and activations;
then attention of several lengths, alone and in a batch; then the whole model, many rows at once against few
and one. On a GPU steps are captured before, so that the model is tried through the graphs that serve.

Afterwards it tries full pieces of hundreds of rows. They only gain speed: what is not proven in time leaves
everything as it was proven before.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from operator import methodcaller

import torch
from torch import Tensor

from turbo_runtime.contract.config import GuaranteeChoice
from turbo_runtime.contract.documents import Guarantee
from turbo_runtime.engine.startup.attention_probes import (
    NotProvenError,
    find_host_rule,
    find_rule,
    require_time,
)
from turbo_runtime.kv_cache.block_pool import blocks_for
from turbo_runtime.models.attention.host import HostKVPool
from turbo_runtime.models.attention.metadata import Rule
from turbo_runtime.models.cuda_runner import CudaModelRunner
from turbo_runtime.models.matmul import BULK, COUNTS, BatchInvariantLinear, MatmulKernel, padded_rows
from turbo_runtime.models.runner import ModelRunner
from turbo_runtime.models.step_batch import Chunk

log = logging.getLogger(__name__)

LIMIT_SECONDS = 20.0  # of the whole check: what is not proven by then is not promised
BULK_LIMIT_SECONDS = 5.0  # of it, at most, for what only gains speed
OPTIONAL_FRACTION = 0.6  # of the limit, until which the check tries what only gains speed
PROBE_PROMPT, PROBE_TOKENS = 72, 136  # beyond a whole tile, and beyond a chunk of keys
# The same tokens again: parts of a tile, the edge of the prompt, a single row, the edge of a chunk of keys,
# and in numbers of rows that fill no registers; then one by one.
PROBE_RUNS = (59, 5, 6, 7, 10, 1, 32, 15)
PROBE_ALONE = 7  # rows that are a step by themselves, as a request and its drafts; more have company
PROBE_GRAPH_ROWS = 5  # of the probe in a full graph: a row and its drafts
BULK_PIECE = 100  # rows: fewer than a full piece


@dataclass(frozen=True, slots=True)
class ArithmeticReport:
    """The outcome of the check."""

    guarantee: Guarantee
    forms: dict[str, str] = field(default_factory=dict)  # product's name -> that of its kernel
    reason: str = ""  # why only `distribution`


def check_batch_invariance(
    model: ModelRunner,
    max_num_batched_tokens: int,
    limit_seconds: float = LIMIT_SECONDS,
    wanted: GuaranteeChoice = "auto",
) -> ArithmeticReport:
    """Choose and set the kernel of every product and the model's rule, and capture steps where the model can
    be; at most about `limit_seconds` beside the captures. `auto` wants `bitwise` on CPUs, where it costs
    nothing; what it costs on a GPU is not known.
    """
    deadline = time.monotonic() + limit_seconds
    forms: dict[str, str] = {}
    try:
        if wanted == "distribution":
            raise NotProvenError("--guarantee=distribution was requested")
        if wanted == "auto" and model.device.type != "cpu":
            raise NotProvenError("on this device bitwise has to be requested: --guarantee=bitwise")
        with torch.inference_mode():
            operations = partial(_settle_operations, rows=max_num_batched_tokens, deadline=deadline)
            for settled in model.everywhere(operations):
                forms |= settled
            if isinstance(model, CudaModelRunner):
                deadline += _capture(model, max_num_batched_tokens)
                runs = _runs_over_pages(model.pool.block_size)
                _check_graphs(model, deadline, _check_model(model, deadline, sum(runs), runs, (0,)))
                _check_long_prompt(model, deadline, max_num_batched_tokens)
                check_adapters(model, deadline, sum(runs), runs)
            else:
                optional_deadline = deadline - (1 - OPTIONAL_FRACTION) * limit_seconds
                rules = model.everywhere(partial(_find_rule, limits=(deadline, optional_deadline)))
                model.everywhere(methodcaller("use_rule", Rule.common(rules)))
                _check_model(model, deadline, PROBE_TOKENS, (*PROBE_RUNS, *[1] * PROBE_TOKENS))
                check_adapters(model, deadline, PROBE_TOKENS, PROBE_RUNS)
            forms |= adopt_bulk(
                model, max_num_batched_tokens, min(BULK_LIMIT_SECONDS, deadline - time.monotonic())
            )
    except NotProvenError as outcome:
        log.info("guarantee distribution: %s", outcome)
        model.everywhere(set_free)
        _capture(model, max_num_batched_tokens)
        return ArithmeticReport("distribution", forms, str(outcome))
    return ArithmeticReport("bitwise", forms)


def _capture(model: ModelRunner, max_rows: int) -> float:
    """Capture steps where the runner does; the seconds that it took."""
    start_time = time.monotonic()
    if isinstance(model, CudaModelRunner):
        model.everywhere(methodcaller("capture", max_rows))
    return time.monotonic() - start_time


def _settle_operations(model: ModelRunner, rows: int, deadline: float) -> dict[str, str]:
    """Choose a rank's kernels for steps of up to so many rows; the names of products and of their kernels."""
    forms = {}
    for name, products in _group_products(model):
        kernel = find_invariant_kernel(products[0], deadline)
        for product in products:
            product.use(kernel)
        forms[name] = kernel.name
    _check_row_wise(model, rows, deadline)
    return forms


def _find_rule(model: ModelRunner, limits: tuple[float, float]) -> Rule:
    if isinstance(model.pool, HostKVPool):
        return find_host_rule(model.pool, limits[0])
    return find_rule(model.pool, *limits)


def _runs_over_pages(page: int) -> tuple[int, ...]:
    """Tokens at a time, up to within the second page: single ones, drafts, pieces of prompts."""
    return page - 12, *[1] * 6, 5, 5, 9, *[1] * 3, 17


def set_free(model: ModelRunner) -> None:
    """Let every row be computed in the cheapest way; on one rank."""
    model.use_rule(Rule(exact=False))
    for product in model.decoder.products():
        product.adopt_first(product.free_forms)


def _group_products(model: ModelRunner) -> list[tuple[str, list[BatchInvariantLinear]]]:
    """The model's products by name, those together whose rows hold together."""
    groups: dict[tuple[str, torch.dtype, bool], list[BatchInvariantLinear]] = {}
    for product in model.decoder.products():
        groups.setdefault((product.name, product.dtype, product.bias is None), []).append(product)
    return [(name, products) for (name, _, _), products in groups.items()]


def is_batch_invariant(
    product: Callable[[Tensor], Tensor], row: Tensor, counts: Iterable[int], deadline: float
) -> bool:
    """Whether `product` gives the row (1, in) the same bits at every position of every row count."""
    reference: Tensor | None = None
    for count in counts:
        require_time(deadline)
        out = product(row.expand(count, -1).contiguous())
        reference = out[:1].clone() if reference is None else reference
        if not torch.equal(out, reference.expand(count, -1)):
            return False
    return True


def build_cancelling(out: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Weights (out, width) and a row (1, width) whose exact product is zero, at scattered places: what is
    computed is the rounding of partial sums, so another order of summation shows in nearly every output. With
    plain random numbers the rounding of the output would hide it, in bfloat16 most of all.
    """
    generator = torch.Generator().manual_seed(0)
    half = width // 2
    places = torch.randperm(width, generator=generator)
    scale = torch.exp2(torch.randint(0, 12, (1, half), generator=generator).float())
    terms = torch.randn(1, half, generator=generator) * scale
    # repeated below: only the number of the outputs matters, not their values
    few = torch.randn(min(out, 64), half, generator=generator)
    row, weight = torch.zeros(1, width), torch.zeros(len(few), width)
    row[:, places[:half]], row[:, places[half : 2 * half]] = terms, terms
    weight[:, places[:half]], weight[:, places[half : 2 * half]] = few, -few
    return weight.to(dtype).repeat(-(-out // len(few)), 1)[:out].contiguous(), row.to(dtype)


def probe_tokens(model: ModelRunner, count: int) -> list[int]:
    """Fixed token ids of the model's vocabulary."""
    return [(17 + 31 * i) % model.vocabulary for i in range(count)]


def find_invariant_kernel(product: BatchInvariantLinear, deadline: float) -> MatmulKernel:
    """Find the first kernel whose rows hold, for weights of the shape and type of `product`."""
    for kernel in product.forms:
        if _holds(product, kernel, kernel.tried, deadline):
            return kernel
    raise NotProvenError(f"no product form keeps the rows of a {product.name} weight equal")


def _holds(
    product: BatchInvariantLinear, kernel: MatmulKernel, counts: Iterable[int], deadline: float
) -> bool:
    """Whether the kernel works here and keeps rows, for weights of the shape and type of `product`."""
    weight, row = (each.to(product.device) for each in build_cancelling(*product.shape, product.dtype))
    probe = product.like(weight)
    return probe.adopt(kernel) and is_batch_invariant(probe, row.repeat(1, product.heads), counts, deadline)


def _check_row_wise(model: ModelRunner, max_num_batched_tokens: int, deadline: float) -> None:
    """Norms and activations work row by row, but a library may cut the rows up among threads its own way."""
    unit = model.decoder.row_unit
    counts = sorted({padded_rows(rows, unit) for rows in range(1, max_num_batched_tokens + 1)})
    kinds = {(operation.name, operation.width): operation for operation in model.decoder.row_wise()}
    for operation in kinds.values():
        row = torch.randn(1, operation.width, generator=torch.Generator().manual_seed(0))
        if not is_batch_invariant(operation.apply, row.to(model.device, model.dtype), counts, deadline):
            raise NotProvenError(f"{operation.name} over {operation.width} values depends on the row count")


def _check_model(
    model: ModelRunner,
    deadline: float,
    tokens: int,
    runs: tuple[int, ...],
    layers: tuple[int, ...] = (),
) -> Tensor:
    """Compute a prompt and an answer at once, then as many rows at a time as `runs` says, some in
    batches; the logits of the former. For the inputs of `layers` it is no graph.
    """
    count = min(tokens, model.max_length)
    if 2 * blocks_for(count, model.pool.block_size) > model.pool.blocks:
        raise NotProvenError("a cache of one sequence leaves no room to compare two computations")
    chunk = partial(_chunk, model, count, PROBE_PROMPT)
    at_once = model.forward([chunk(0, count, count, 0)], layers).logits
    start = 0
    for length in runs:
        if start >= count:
            break
        require_time(deadline)
        tried = chunk(start, length, min(length, count - start), 1)
        batch = [tried] if length <= PROBE_ALONE else [chunk(0, 3, 0, 0), tried]
        _require_equal(model.forward(batch).logits, at_once[start : start + length])
        start += length
    return at_once


def _check_graphs(model: CudaModelRunner, deadline: float, at_once: Tensor) -> None:
    """Compute the last rows of what was computed `at_once` in every graph, first and last in a full one."""
    count = len(at_once)
    chunk = partial(_chunk, model, count, PROBE_PROMPT)
    for graph in model.graphs:
        require_time(deadline)
        probed = min(PROBE_GRAPH_ROWS, graph.size.rows, count)
        tried = chunk(count - probed, probed, probed, 0)
        piece = min((graph.size.rows - probed) // 2, graph.size.queries, count)
        pieces = [chunk(0, piece, 0, 1)] if piece else []
        others = [*pieces, *[chunk(0, 1, 0, 1)] * (graph.size.rows - probed - piece)]
        for batch in ([tried, *others], [*others, tried]):
            _require_equal(model.forward(batch).logits, at_once[count - probed :])


def check_adapters(model: ModelRunner, deadline: float, tokens: int, runs: tuple[int, ...]) -> None:
    """Compute a sequence of an adapter at once, and then in steps that it shares with the same of the model
    itself, as many rows at a time as `runs` says; once for all adapters of the same shapes.
    """
    count = min(tokens, model.max_length)
    numbers = {shapes: number for number, shapes in enumerate(model.adapter_shapes, 1)}
    chunk = partial(_chunk, model, count, PROBE_PROMPT)
    for number in numbers.values():
        require_time(deadline)
        adapted = model.forward([chunk(0, count, count, 0, number)]).logits
        plain = model.forward([chunk(0, count, count, 1)]).logits
        start = 0
        for length in runs:
            if start == count:
                break
            require_time(deadline)
            rows = min(length, count - start)
            batch = [chunk(start, rows, rows, 1), chunk(start, rows, rows, 0, number)]
            expected = [each[start : start + rows] for each in (plain, adapted)]
            _require_equal(model.forward(batch).logits, torch.cat(expected))
            start += rows


def _chunk(
    model: ModelRunner,
    total: int,
    prompt_length: int,
    start: int,
    count: int,
    rows: int,
    place: int,
    lora_id: int = 0,
) -> Chunk:
    """Part of a fixed sequence of `total` tokens in one of two places of the cache, with `rows` logits."""
    blocks = blocks_for(total, model.pool.block_size)
    table = list(range(place * blocks, (place + 1) * blocks))
    tokens = probe_tokens(model, total)[start : start + count]
    return Chunk(tokens, start, table, rows, prompt_length, lora_id)


def _require_equal(logits: Tensor, expected: Tensor) -> None:
    if not torch.equal(logits, expected):
        raise NotProvenError("the model's logits depend on the number of rows")


@torch.inference_mode()
def adopt_bulk(model: ModelRunner, max_num_batched_tokens: int, limit_seconds: float) -> dict[str, str]:
    """Use full pieces of hundreds of rows where they hold; the products that do, and their new kernels."""
    if max_num_batched_tokens < BULK[0]:
        return {}
    deadline = time.monotonic() + limit_seconds
    forms: dict[str, str] = {}
    try:
        for settled in model.everywhere(partial(_use_bulk, deadline=deadline)):
            forms |= settled
        if not forms:
            return {}
        _check_long_prompt(model, deadline, BULK[-1] + COUNTS[0])
    except NotProvenError as outcome:
        log.info("prompts are computed in pieces of %d rows: %s", COUNTS[-1], outcome)
        model.everywhere(_leave_bulk)
        return {}
    return forms


def _use_bulk(model: ModelRunner, deadline: float) -> dict[str, str]:
    forms = {}
    for name, products in _group_products(model):
        kernel, counts = products[0].form, products[0].form.counts or (0,)
        # logits of hundreds of rows are rare, and the check of so large a product takes long
        tried = products[0].shape[0] * model.num_ranks < model.vocabulary and counts[-1] == COUNTS[-1]
        if tried and _holds(products[0], kernel.in_bulk(), (counts[0], *BULK), deadline):
            forms[name] = kernel.in_bulk().name
            for product in products:
                product.use(kernel.in_bulk())
    return forms


def _leave_bulk(model: ModelRunner) -> None:
    for product in model.decoder.products():
        product.use(product.form.in_pieces())


def _check_long_prompt(model: ModelRunner, deadline: float, tokens: int) -> None:
    """Compute a prompt of so many tokens in small pieces and at once; skipped where the cache has no room for
    both.
    """
    count = min(tokens, model.max_length)
    if 2 * blocks_for(count, model.pool.block_size) > model.pool.blocks:
        return
    chunk = partial(_chunk, model, count, count)
    start_time = time.monotonic()
    for start in range(0, count, BULK_PIECE):
        length = min(BULK_PIECE, count - start)
        in_pieces = model.forward([chunk(start, length, 1, 0)]).logits
        end = start + length
        remaining_seconds = (time.monotonic() - start_time) / end * (2 * count - end)
        if time.monotonic() + remaining_seconds > deadline:
            raise NotProvenError("the check takes too long")
    _require_equal(model.forward([chunk(0, count, 1, 1)]).logits, in_pieces)
