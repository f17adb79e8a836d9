"""The start-up check: which product kernels and which attention shapes keep rows bit-equal here, and so which
guarantee holds.

`bitwise`: a request's text is the same with and without speculation, in any batch. `distribution`: it is a
draw from the same distribution. The check tries, on this machine and with this number of threads, a fixed
row at every position of every row count in use: for each distinct weight shape, for norms and activations;
then attention of several lengths, alone and in a batch; then the whole model, many rows at once against few
and one.

Afterwards it tries full pieces of hundreds of rows. They only gain speed: what is not proven in time leaves
everything as it was proven before.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import pairwise
from math import inf

import torch
from torch import Tensor

from turbo_runtime.contract.documents import Guarantee
from turbo_runtime.kv_cache.block_pool import PROMPT_TILE, blocks_for
from turbo_runtime.models.attention.metadata import Rule
from turbo_runtime.models.attention.pool import KVPool
from turbo_runtime.models.attention.rows import ROW_COUNTS, RowAttention, is_fused, items_together
from turbo_runtime.models.attention.spans import Span, Spans, padded_queries
from turbo_runtime.models.attention.tiles import TileAttention
from turbo_runtime.models.matmul import BULK, COUNTS, BatchInvariantLinear, MatmulKernel, padded_rows
from turbo_runtime.models.runner import Chunk, ModelRunner

log = logging.getLogger(__name__)

LIMIT_SECONDS = 20.0  # of the whole check: what is not proven by then is not promised
BULK_LIMIT_SECONDS = 5.0  # of it, at most, for what only gains speed
OPTIONAL_FRACTION = 0.6  # of the limit, until which the check tries what only gains speed
PROBE_PROMPT, PROBE_TOKENS = 72, 136  # beyond a whole tile, and beyond a chunk of keys
# The same tokens again: parts of a tile, the edge of the prompt, a single row, the edge of a chunk of keys;
# then one by one.
PROBE_RUNS = (59, 5, 5, 5, 17, 1, 32, 5)
BULK_PIECE = 100  # rows: fewer than a full piece
# Tokens of attention's probes: one chunk of keys and three, partly filled. For the fused kernel: in a batch,
# all numbers of keys within its block of 512 and one beyond; alone, a second and a third block.
SPLIT_LENGTHS = (100, 300)
FUSED_LENGTHS = tuple(PROMPT_TILE * tiles for tiles in range(1, 10))
FAR_LENGTHS = (832, 1024, 1088)
# The rest of the batch: (sequences, whether they are as long, so that they are computed together)
BATCHES = ((0, False), (1, False), (30, False), (1, True), (6, True), (30, True))
TILES = 8  # whole tiles of the probe prompt
FIRST_BLOCK = 3  # of the probes: it does not begin where the cache does


class NotProvenError(Exception):
    """Rows depend on their number, or time is up; the text says which."""


def require_time(deadline: float) -> None:
    """Raise NotProvenError after `deadline` (monotonic)."""
    if time.monotonic() > deadline:
        raise NotProvenError("the start-up check took too long")


@dataclass(frozen=True, slots=True)
class ArithmeticReport:
    """The outcome of the check."""

    guarantee: Guarantee
    forms: dict[str, str] = field(default_factory=dict)  # product's name -> that of its kernel
    reason: str = ""  # why only `distribution`


def check_batch_invariance(
    model: ModelRunner, max_num_batched_tokens: int, limit_seconds: float = LIMIT_SECONDS
) -> ArithmeticReport:
    """Choose and set the kernel of every product and the model's rule; at most about `limit_seconds`."""
    deadline = time.monotonic() + limit_seconds
    forms: dict[str, str] = {}
    try:
        if model.device.type != "cpu":
            raise NotProvenError(f"products on {model.device.type} depend on the row count")
        with torch.inference_mode():
            for name, products in _group_products(model):
                kernel = find_invariant_kernel(products[0], deadline)
                for product in products:
                    product.use(kernel)
                forms[name] = kernel.name
            _check_row_wise(model, max_num_batched_tokens, deadline)
            optional_deadline = deadline - (1 - OPTIONAL_FRACTION) * limit_seconds
            row_counts = find_invariant_row_counts(model.pool, deadline, optional_deadline)
            if not row_counts:
                raise NotProvenError("a row's attention depends on how many others there are")
            if not are_tiles_invariant(model.pool):
                raise NotProvenError("attention in a prompt depends on how the prompt is cut")
            model.rule = Rule(row_counts=row_counts, uniform=are_tiles_rows(model.pool, optional_deadline))
            _check_model(model, deadline)
            forms |= adopt_bulk(
                model, max_num_batched_tokens, min(BULK_LIMIT_SECONDS, deadline - time.monotonic())
            )
    except NotProvenError as outcome:
        log.info("guarantee distribution: %s", outcome)
        set_free(model)
        return ArithmeticReport("distribution", forms, str(outcome))
    return ArithmeticReport("bitwise", forms)


def set_free(model: ModelRunner) -> None:
    """Let every row be computed in the cheapest way."""
    model.rule = Rule(exact=False)
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
        assert kernel.counts is not None
        if _holds(product, kernel, (*kernel.counts, kernel.counts[-1] + 1), deadline):  # once rows are cut
            return kernel
    raise NotProvenError(f"no product form keeps the rows of a {product.name} weight equal")


def _holds(
    product: BatchInvariantLinear, kernel: MatmulKernel, counts: Iterable[int], deadline: float
) -> bool:
    """Whether the kernel works here and keeps rows, for weights of the shape and type of `product`."""
    weight, row = build_cancelling(*product.shape, product.dtype)
    probe = product.like(weight)
    return probe.adopt(kernel) and is_batch_invariant(probe, row.repeat(1, product.heads), counts, deadline)


def _check_row_wise(model: ModelRunner, max_num_batched_tokens: int, deadline: float) -> None:
    """Norms and activations work row by row, but a library may cut the rows up among threads its own way."""
    counts = sorted({padded_rows(rows) for rows in range(1, max_num_batched_tokens + 1)})
    kinds = {(operation.name, operation.width): operation for operation in model.decoder.row_wise()}
    for operation in kinds.values():
        row = torch.randn(1, operation.width, generator=torch.Generator().manual_seed(0))
        if not is_batch_invariant(operation.apply, row.to(model.pool.dtype), counts, deadline):
            raise NotProvenError(f"{operation.name} over {operation.width} values depends on the row count")


def _check_model(model: ModelRunner, deadline: float) -> None:
    """Compute a prompt and an answer at once, then a few rows at a time in a batch, then one by one."""
    count = min(PROBE_TOKENS, model.max_length)
    if 2 * blocks_for(count) > model.pool.blocks:
        raise NotProvenError("a cache of one sequence leaves no room to compare two computations")
    chunk = partial(_chunk, model, count, PROBE_PROMPT)
    at_once = model.forward([chunk(0, count, count, 0)]).logits
    start = 0
    for length in (*PROBE_RUNS, *[1] * count):
        if start >= count:
            return
        require_time(deadline)
        tried = chunk(start, length, min(length, count - start), 1)
        batch = [chunk(0, 3, 0, 0), tried] if length > 1 else [tried]
        _require_equal(model.forward(batch).logits, at_once[start : start + length])
        start += length


def _chunk(
    model: ModelRunner, total: int, prompt_length: int, start: int, count: int, rows: int, place: int
) -> Chunk:
    """Part of a fixed sequence of `total` tokens in one of two places of the cache, with `rows` logits."""
    blocks = blocks_for(total)
    table = list(range(place * blocks, (place + 1) * blocks))
    return Chunk(probe_tokens(model, total)[start : start + count], start, table, rows, prompt_length)


def _require_equal(logits: Tensor, expected: Tensor) -> None:
    if not torch.equal(logits, expected):
        raise NotProvenError("the model's logits depend on the number of rows")


@torch.inference_mode()
def adopt_bulk(model: ModelRunner, max_num_batched_tokens: int, limit_seconds: float) -> dict[str, str]:
    """Use full pieces of hundreds of rows where they hold; the products that do, and their new kernels."""
    if max_num_batched_tokens < BULK[0]:
        return {}
    deadline = time.monotonic() + limit_seconds
    before = [(product, product.form) for product in model.decoder.products()]
    forms: dict[str, str] = {}
    try:
        for name, products in _group_products(model):
            kernel, counts = products[0].form, products[0].form.counts or (0,)
            # logits of hundreds of rows are rare, and the check of so large a product takes long
            tried = products[0].shape[0] < model.vocabulary and counts[-1] == COUNTS[-1]
            if tried and _holds(products[0], kernel.in_bulk(), (counts[0], *BULK), deadline):
                forms[name] = kernel.in_bulk().name
                for product in products:
                    product.use(kernel.in_bulk())
        _check_bulk_model(model, deadline)
    except NotProvenError as outcome:
        log.info("prompts are computed in pieces of %d rows: %s", COUNTS[-1], outcome)
        for product, kernel in before:
            product.use(kernel)
        return {}
    return forms


def _check_bulk_model(model: ModelRunner, deadline: float) -> None:
    """Compute a prompt in small pieces and in full ones; skipped where the cache has no room for both."""
    count = BULK[-1] + COUNTS[0]
    if count > model.max_length or 2 * blocks_for(count) > model.pool.blocks:
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


def find_invariant_row_counts(
    pool: KVPool, deadline: float = inf, optional_deadline: float = inf
) -> tuple[int, ...]:
    """Of ROW_COUNTS those at which every row gets the bits that it gets alone, in any batch; empty where even
    a single row does not. Raises NotProvenError if single rows are not tried by `deadline`; leaves out counts
    that are not tried by `optional_deadline`.
    """
    lengths = (*FUSED_LENGTHS, *FAR_LENGTHS) if is_fused(pool) else SPLIT_LENGTHS
    probes = [_Probe(pool, length) for length in lengths]
    for probe in probes:
        require_time(deadline)
        if not probe.is_invariant(1):
            return ()
    return 1, *(
        rows
        for rows in ROW_COUNTS
        if rows > 1
        and all(time.monotonic() <= optional_deadline and probe.is_invariant(rows) for probe in probes)
    )


def are_tiles_invariant(pool: KVPool) -> bool:
    """Whether the last tile of a prompt gets the same bits at once and in parts, alone and after another."""
    probe = _Probe(pool, TILES * PROMPT_TILE)
    at_once = probe.tile([0, PROMPT_TILE], preceded=False)
    return all(
        torch.equal(probe.tile(cuts, preceded), at_once)
        for cuts, preceded in (([0, PROMPT_TILE], True), ([0, 1, PROMPT_TILE - 5, PROMPT_TILE], False))
    )


def are_tiles_rows(pool: KVPool, deadline: float = inf) -> bool:
    """Whether tiles have the bits of rows, as the fused kernel's may; False if not proven by `deadline`."""
    return is_fused(pool) and all(
        time.monotonic() <= deadline
        and torch.equal(probe.tile([0, PROMPT_TILE], preceded=False), probe.rows(1, PROMPT_TILE))
        for probe in (_Probe(pool, length) for length in (*FUSED_LENGTHS, *FAR_LENGTHS))
    )


class _Probe:
    """The last positions of one sequence, computed in several ways on a pool of the shape of the model's."""

    def __init__(self, pool: KVPool, length: int) -> None:
        blocks = FIRST_BLOCK + blocks_for(length)
        self._pool = KVPool(pool.shape, layers=1, blocks=blocks, dtype=pool.dtype, device=pool.device)
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> Tensor:
            # numbers of many sizes and both signs: another order of summation shows in the last bits
            sizes = torch.exp2(torch.randint(-4, 4, shape, generator=generator).float())
            return (torch.randn(shape, generator=generator) * sizes).to(pool.dtype)

        self._pool.keys[0].copy_(draw(*self._pool.keys[0].shape))
        if not pool.shape.latent:
            self._pool.values[0].copy_(draw(*self._pool.values[0].shape))
        self._queries = draw(pool.kv_heads, PROMPT_TILE * pool.group, pool.key_width)
        self._length = length
        self._table = list(range(FIRST_BLOCK, blocks))

    @cached_property
    def alone(self) -> Tensor:
        """(KV heads, rows * group, width) of the last rows, one an item: more than an item of any count."""
        return self.rows(1, max(ROW_COUNTS) + 1)

    def is_invariant(self, rows_each: int) -> bool:
        """Whether the last rows, `rows_each` an item, equal those `alone`."""
        group, step = self._pool.group, padded_queries(rows_each, 1)
        expected = self.alone[:, -(rows_each + 1) * group :]
        return all(
            torch.equal(self.rows(rows_each, rows_each + 1, *rest), expected) for rest in self.batches()
        ) and all(
            torch.equal(self.rows(rows_each, rows_each, step_rows=rows), expected[:, group:])
            for rows in (step, step + 4)
        )

    def batches(self) -> set[tuple[int, bool]]:
        """Those of BATCHES that teach something: no more long sequences than a call has room for."""
        if self._length in FAR_LENGTHS:
            return {(0, False)}
        together = items_together(self._pool, self._length)
        return {(min(number, together) if long else number, long) for number, long in BATCHES}

    def rows(
        self, rows_each: int, count: int, others: int = 0, long: bool = False, step_rows: int = 0
    ) -> Tensor:
        """(KV heads, count * group, value width) of the last rows, between `others` other sequences; or, with
        `step_rows`, as all of a step, which is padded up to them.
        """
        other = Span(self._length - 1 if long else 0, 1, self._table, 0)
        probed = Span(self._length - count, count, self._table, 0)
        before = others // 2
        spans = Spans.join([other] * before + [probed] + [other] * (others - before))
        attention = RowAttention(self._pool, spans, (rows_each,), step_rows)
        group = self._pool.group
        idle, own = self._queries[:, :group], self._queries[:, -count * group :]
        padding = self._queries[:, : max(0, step_rows - count) * group]
        queries = torch.cat([*[idle] * before, own, *[idle] * (others - before), padding], 1)
        return self._attend(attention, queries, before, before + count)

    def tile(self, cuts: list[int], preceded: bool) -> Tensor:
        """(KV heads, PROMPT_TILE * group, value width) of the last tile, a step between any two `cuts`."""
        group, first = self._pool.group, self._length - PROMPT_TILE
        before = [Span(0, PROMPT_TILE, self._table, PROMPT_TILE)] if preceded else []
        own = self._queries[:, -PROMPT_TILE * group :]
        parts = []
        for start, end in pairwise(cuts):
            spans = Spans.join([*before, Span(first + start, end - start, self._table, self._length)])
            attention = TileAttention(self._pool, spans, aligned=True)
            queries = own[:, start * group : end * group]
            if preceded:
                queries = torch.cat([own, queries], 1)
            parts.append(self._attend(attention, queries, len(before) * PROMPT_TILE, None))
        return torch.cat(parts, 1)

    def _attend(
        self, attention: RowAttention | TileAttention, queries: Tensor, start: int, end: int | None
    ) -> Tensor:
        """The outputs of the tokens from `start` to before `end` of the step."""
        outputs = attention.attend(0, queries, self._pool.key_width**-0.5)
        return outputs.index_select(1, torch.from_numpy(attention.output_rows[start:end].ravel()))
