"""The start-up check: which product form and which attention shapes keep rows bit-equal here, and so which
guarantee holds.

`bytes`: a request's text is the same with and without speculation, in any batch. `law`: it is a draw from the
same law. The check tries, on this machine and with this number of threads, a fixed row at every position of
every row count in use: for each distinct weight shape, for norms and activations; then items of attention of
several lengths, with others beside them and alone; then the whole model, many rows at once against few and
one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from turbo_runtime.contract.load import Guarantee
from turbo_runtime.kv_cache.block_pool import blocks_for
from turbo_runtime.models.attention import Rule
from turbo_runtime.models.attention.check import row_counts_that_hold, tiles_are_rows, tiles_hold
from turbo_runtime.models.matmul import BatchInvariantLinear, MatmulKernel, padded_rows
from turbo_runtime.models.runner import Chunk, ModelRunner

log = logging.getLogger(__name__)

LIMIT_SECONDS = 20.0  # what is not proven by then is not promised
FURTHER_SHARE = 0.6  # of the limit, until which is tried what only makes it faster
PROBE_PROMPT, PROBE_TOKENS = 72, 136  # beyond a whole tile, and beyond a chunk of keys
# Its tokens once more: parts of a tile, the edge of the prompt, a row by itself, the edge of a chunk of keys;
# then one by one.
PROBE_RUNS = (59, 5, 5, 5, 17, 1, 32, 5)


@dataclass(frozen=True, slots=True)
class ArithmeticReport:
    """What was found."""

    guarantee: Guarantee
    forms: dict[str, str] = field(default_factory=dict)  # product's name -> that of its form
    reason: str = ""  # why only `law`


class NotProvenError(Exception):
    """Rows depend on their number, or time is up; the text says which."""


def check_batch_invariance(
    model: ModelRunner, max_step_tokens: int, limit_seconds: float = LIMIT_SECONDS
) -> ArithmeticReport:
    """Choose and set the form of every product and the model's rule; at most about `limit_seconds`."""
    deadline = time.monotonic() + limit_seconds
    forms: dict[str, str] = {}
    try:
        if model.device.type != "cpu":
            raise NotProvenError(f"products on {model.device.type} depend on the row count")
        with torch.inference_mode():
            _choose_forms(model, forms, deadline)
            _check_row_wise(model, max_step_tokens, deadline)
            further = deadline - (1 - FURTHER_SHARE) * limit_seconds
            counts = _row_counts(model, deadline, further)
            model.rule = Rule(row_counts=counts, uniform=tiles_are_rows(model.pool, further))
            _probe(model, deadline)
    except NotProvenError as outcome:
        log.info("guarantee law: %s", outcome)
        set_free(model)
        return ArithmeticReport("law", forms, str(outcome))
    return ArithmeticReport("bytes", forms)


def set_free(model: ModelRunner) -> None:
    """Let every row be computed in the cheapest way."""
    model.rule = Rule(exact=False)
    for product in model.decoder.products():
        for form in product.free_forms:
            if _adopts(product, form):
                break


def is_batch_invariant(
    product: Callable[[Tensor], Tensor], row: Tensor, counts: Iterable[int], deadline: float
) -> bool:
    """Whether `product` gives the row (1, in) the same bits at every position of every row count."""
    reference: Tensor | None = None
    for count in counts:
        if time.monotonic() > deadline:
            raise NotProvenError("the start-up check took too long")
        out = product(row.expand(count, -1).contiguous())
        reference = out[:1].clone() if reference is None else reference
        if not torch.equal(out, reference.expand(count, -1)):
            return False
    return True


def _choose_forms(model: ModelRunner, forms: dict[str, str], deadline: float) -> None:
    for name, products in alike(model):
        form = first_that_holds(products[0], deadline)
        for product in products:
            product.use(form)
        forms[name] = form.name


def alike(model: ModelRunner) -> list[tuple[str, list[BatchInvariantLinear]]]:
    """The model's products by name, those together whose rows hold together."""
    found: dict[tuple[str, torch.dtype, bool], list[BatchInvariantLinear]] = {}
    for product in model.decoder.products():
        found.setdefault((product.name, product.dtype, product.bias is None), []).append(product)
    return [(name, products) for (name, _, _), products in found.items()]


def first_that_holds(product: BatchInvariantLinear, deadline: float) -> MatmulKernel:
    """The first form that keeps a row equal at every position of its row counts, with weights of the shape
    and type of `product`.
    """
    weight, row = cancelling(*product.shape, product.dtype)
    row = row.repeat(1, product.heads)
    for form in product.forms:
        probe = product.like(weight)
        assert form.counts is not None
        counts = (*form.counts, form.counts[-1] + 1)  # and once where rows must be cut
        if _adopts(probe, form) and is_batch_invariant(probe, row, counts, deadline):
            return form
    raise NotProvenError(f"no product form keeps the rows of a {product.name} weight equal")


def _adopts(product: BatchInvariantLinear, form: MatmulKernel) -> bool:
    """Whether the form works for it here; it is in that form then."""
    before = product.form
    try:
        product.use(form)
        product(torch.zeros(4, product.heads * product.shape[1], dtype=product.dtype))
    except (AttributeError, RuntimeError) as error:  # an operator that this build or processor has not
        log.info("products are not computed %s: %s", form.name, error)
        product.use(before)
        return False
    return True


def cancelling(out: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Weights (out, width) and a row (1, width) whose exact product is zero, term against term, at scattered
    places.

    What a product gives is then nothing but the rounding of its partial sums, so that another order of
    summation shows in nearly every output. With plain random numbers it would hide behind the rounding of the
    output, in bfloat16 most of all.
    """
    generator = torch.Generator().manual_seed(0)
    half = width // 2
    places = torch.randperm(width, generator=generator)
    scale = torch.exp2(torch.randint(0, 12, (1, half), generator=generator).float())
    terms = torch.randn(1, half, generator=generator) * scale
    few = torch.randn(
        min(out, 64), half, generator=generator
    )  # repeated: their values do not matter, their number does
    row, weight = torch.zeros(1, width), torch.zeros(len(few), width)
    row[:, places[:half]], row[:, places[half : 2 * half]] = terms, terms
    weight[:, places[:half]], weight[:, places[half : 2 * half]] = few, -few
    return weight.to(dtype).repeat(-(-out // len(few)), 1)[:out].contiguous(), row.to(dtype)


def _check_row_wise(model: ModelRunner, max_step_tokens: int, deadline: float) -> None:
    """Norms and activations work row by row, but a library may cut the rows up among threads its own way."""
    counts = sorted({padded_rows(rows) for rows in range(1, max_step_tokens + 1)})
    for operation in model.decoder.row_wise():
        row = _fixed_row(operation.width, model.pool.dtype)
        if not is_batch_invariant(operation.apply, row, counts, deadline):
            raise NotProvenError(
                f"{operation.name} over {operation.width} values depends on the number of rows"
            )


def _row_counts(model: ModelRunner, deadline: float, further: float) -> tuple[int, ...]:
    try:
        counts = row_counts_that_hold(model.pool, deadline, further)
    except TimeoutError as error:
        raise NotProvenError("the start-up check took too long") from error
    if not counts:
        raise NotProvenError("a row's attention depends on how many others there are")
    if not tiles_hold(model.pool):
        raise NotProvenError("attention in a prompt depends on how the prompt is cut")
    return counts


def _probe(model: ModelRunner, deadline: float) -> None:
    """The whole model: a prompt and what follows at once, against a few rows at a time beside a mate, against
    one.
    """
    count = min(PROBE_TOKENS, model.max_length)
    blocks = blocks_for(count)
    if 2 * blocks > model.pool.blocks:
        raise NotProvenError("a cache of one sequence leaves no room to compare two computations")
    tokens = [(17 + 31 * i) % model.vocabulary for i in range(count)]
    table, other = list(range(blocks)), list(range(blocks, 2 * blocks))
    at_once = model.forward([Chunk(tokens, 0, table, count, PROBE_PROMPT)]).logits
    mate = Chunk(tokens[:3], 0, table, 0, PROBE_PROMPT)
    start = 0
    for length in (*PROBE_RUNS, *[1] * count):
        if start >= count:
            return
        if time.monotonic() > deadline:
            raise NotProvenError("the start-up check took too long")
        chunk = Chunk(tokens[start : start + length], start, other, min(length, count - start), PROBE_PROMPT)
        logits = model.forward([mate, chunk] if length > 1 else [chunk]).logits
        if not torch.equal(logits, at_once[start : start + length]):
            raise NotProvenError("the model's logits depend on the number of rows")
        start += length


def _fixed_row(width: int, dtype: torch.dtype) -> Tensor:
    """(1, width): no two values alike, none special, the same at every start."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, width, generator=generator).to(dtype)
