"""The start-up check: which product form keeps rows bit-equal here, and so which guarantee holds.

`bytes`: a request's text is the same with and without speculation, in any batch. `law`: it is a draw from the
same law. The check tries, on this machine and with this number of threads, a fixed row at every position of
every row count in use: for each distinct weight shape and for every norm; then the whole model, one token at
a time against many at once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from turbo_runtime.contract import Guarantee
from turbo_runtime.engine.arithmetic import FORMS, SLAB, Form, RowLinear
from turbo_runtime.engine.blocks import BLOCK_SIZE, blocks_for
from turbo_runtime.engine.model import Chunk, PagedModel

log = logging.getLogger(__name__)

LIMIT_SECONDS = 20.0  # what is not proven by then is not promised
PROBE_TOKENS = 72  # of the whole-model probe: more than a slab of rows and than four blocks


@dataclass(frozen=True, slots=True)
class ArithmeticReport:
    """What was found."""

    guarantee: Guarantee
    forms: dict[str, str] = field(default_factory=dict)  # weight shape "out x in" -> name of the form
    reason: str = ""  # why only `law`


class _NotProven(Exception):  # noqa: N818  an outcome
    pass


def check_arithmetic(
    model: PagedModel, max_step_tokens: int, limit_seconds: float = LIMIT_SECONDS
) -> ArithmeticReport:
    """Choose and set the form of every linear layer; at most about `limit_seconds`."""
    deadline = time.monotonic() + limit_seconds
    if model.device.type != "cpu":
        return ArithmeticReport("law", reason=f"products on {model.device.type} depend on the row count")
    forms: dict[str, str] = {}
    try:
        with torch.inference_mode():
            _choose_forms(model.linears, forms, deadline)
            _check_row_wise(model, range(1, max_step_tokens + 1), deadline)
            _probe(model, deadline)
    except _NotProven as outcome:
        log.warning("guarantee law: %s", outcome)
        return ArithmeticReport("law", forms, str(outcome))
    return ArithmeticReport("bytes", forms)


def rows_hold(
    product: Callable[[Tensor], Tensor], row: Tensor, counts: Iterable[int], deadline: float
) -> bool:
    """Whether `product` gives the row (1, in) the same bits at every position of every row count."""
    reference = product(row)
    for count in counts:
        if time.monotonic() > deadline:
            raise _NotProven("the start-up check took too long")
        if not torch.equal(product(row.expand(count, -1).contiguous()), reference.expand(count, -1)):
            return False
    return True


def _choose_forms(linears: list[RowLinear], forms: dict[str, str], deadline: float) -> None:
    by_shape: dict[tuple[int, int], list[RowLinear]] = {}
    for layer in linears:
        by_shape.setdefault(layer.shape, []).append(layer)
    for (out, width), layers in by_shape.items():
        weight, row = cancelling(out, width, layers[0].weight.dtype)
        probe = nn.Linear(width, out, bias=False, device="meta")
        probe.weight = nn.Parameter(weight, requires_grad=False)
        form = first_that_holds(RowLinear(probe), row, deadline)
        for layer in layers:
            layer.use(form)
        forms[f"{out}x{width}"] = form.name


def first_that_holds(layer: RowLinear, row: Tensor, deadline: float) -> Form:
    """The first form that keeps `row` (1, in) equal at every position of 1 to SLAB rows; leaves the layer in
    it.
    """
    for form in FORMS:
        layer.use(form)
        # other numbers of rows are padded to these, or cut into them: the same products
        counts = list(range(form.multiple, (form.tile or SLAB) + 1, form.multiple))
        counts += [2 * form.tile] if form.tile else []
        if rows_hold(layer, row, counts, deadline):
            return form
    raise _NotProven("no product form keeps the rows of a {} x {} weight equal".format(*layer.shape))


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


def _check_row_wise(model: PagedModel, counts: range, deadline: float) -> None:
    """Norms and activations work row by row, but a library may cut the rows up among threads its own way."""
    seen: set[tuple[str, int]] = set()
    hidden = int(model.config.intermediate_size)
    for name, module in model.body.named_modules():
        width = hidden if name.endswith("act_fn") else _width_of(module)
        key = (type(module).__name__, width)
        if not width or key in seen:
            continue
        seen.add(key)
        if not rows_hold(module, _fixed_row(width, model.pool.dtype), counts, deadline):
            raise _NotProven(f"{key[0]} over {width} values depends on the number of rows")


def _width_of(module: nn.Module) -> int:
    """Row width of a norm, 0 for every other module."""
    weight = getattr(module, "weight", None)
    is_vector = isinstance(weight, Tensor) and weight.dim() == 1
    return int(weight.shape[0]) if is_vector and isinstance(weight, Tensor) else 0


def _probe(model: PagedModel, deadline: float) -> None:
    """The whole model: a prompt at once, against runs of five beside a mate, against one token at a time at
    its end.
    """
    half = model.pool.blocks // 2 * BLOCK_SIZE
    count = min(PROBE_TOKENS, model.pool.max_length, half)
    if count == 0:
        raise _NotProven("a cache of one block leaves no room to compare two computations")
    tokens = [(17 + 31 * i) % model.vocabulary for i in range(count)]
    blocks = blocks_for(count)
    table, other = list(range(blocks)), list(range(blocks, 2 * blocks))
    at_once = model.forward([Chunk(tokens, 0, table, count)])

    def again(first: int, length: int, mates: list[Chunk]) -> None:
        for start in range(first, count, length):
            if time.monotonic() > deadline:
                raise _NotProven("the start-up check took too long")
            run = tokens[start : start + length]
            logits = model.forward([*mates, Chunk(run, start, other, len(run))])
            if not torch.equal(logits, at_once[start : start + len(run)]):
                raise _NotProven("the model's logits depend on the number of rows")

    again(0, 5, [Chunk(tokens[:3], 0, table, 0)])
    again(max(0, count - 20), 1, [])  # over the edges of a tile and of a block


def _fixed_row(width: int, dtype: torch.dtype) -> Tensor:
    """(1, width): no two values alike, none special, the same at every start."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, width, generator=generator).to(dtype)
