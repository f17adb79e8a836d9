"""The start-up check: which product form keeps rows bit-equal here, and so which guarantee holds.

`bytes`: a request's text is the same with and without speculation, in any batch. `law`: it is a draw from the same law. The check tries, on this
machine and with this number of threads, a fixed row at every position of every row count in use: for each distinct weight shape, for
norms and activations; then the whole model, one token at a time against many at once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from turbo_runtime.contract import Guarantee
from turbo_runtime.engine.arithmetic import FORMS, PLAIN, SLAB, RowLinear
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


def check_arithmetic(model: PagedModel, max_step_tokens: int, limit_seconds: float = LIMIT_SECONDS) -> ArithmeticReport:
    """Choose and set the form of every linear layer; at most about `limit_seconds`."""
    deadline = time.monotonic() + limit_seconds
    if model.device.type != "cpu":
        return ArithmeticReport("law", reason=f"products on {model.device.type} depend on the row count")
    forms: dict[str, str] = {}
    try:
        with torch.inference_mode():
            _choose_forms(model.linears, forms, deadline)
            _check_row_wise(model.body, range(1, max_step_tokens + 1), deadline)
            _probe(model, deadline)
    except _NotProven as outcome:
        log.warning("guarantee law: %s", outcome)
        return ArithmeticReport("law", forms, str(outcome))
    return ArithmeticReport("bytes", forms)


def rows_hold(product: Callable[[Tensor], Tensor], row: Tensor, counts: Iterable[int], deadline: float) -> bool:
    """Whether `product` gives the row (1, in) the same bits at every position of every row count."""
    reference = product(row)
    for count in counts:
        if time.monotonic() > deadline:
            raise _NotProven("the start-up check took too long")
        if not torch.equal(product(row.expand(count, -1).contiguous()), reference.expand(count, -1)):
            return False
    return True


def _choose_forms(linears: list[RowLinear], forms: dict[str, str], deadline: float) -> None:
    by_shape: dict[tuple[int, int, bool], list[RowLinear]] = {}
    for layer in linears:
        by_shape.setdefault((*layer.shape, layer.bias is not None), []).append(layer)
    for (out, width, _), layers in by_shape.items():
        first = layers[0]
        row = _fixed_row(width, first.weight.dtype)
        for form in FORMS:
            first.use(form)
            if rows_hold(first, row, range(1, SLAB + 1), deadline):
                break
        else:
            first.use(PLAIN)
            raise _NotProven(f"no product form keeps the rows of a {out} x {width} weight equal")
        for layer in layers[1:]:
            layer.use(first.form)
        forms[f"{out}x{width}"] = first.form.name


def _check_row_wise(body: nn.Module, counts: Iterable[int], deadline: float) -> None:
    """Norms and activations work row by row, but a library may cut their rows up among threads."""
    seen: set[tuple[str, int]] = set()
    for module in body.modules():
        width = _width_of(module)
        key = (type(module).__name__, width)
        if not width or key in seen:
            continue
        seen.add(key)
        if not rows_hold(module, _fixed_row(width, torch.get_default_dtype()), counts, deadline):
            raise _NotProven(f"{key[0]} over {width} values depends on the number of rows")


def _width_of(module: nn.Module) -> int:
    """Row width of a norm, 0 for every other module."""
    weight = getattr(module, "weight", None)
    is_vector = isinstance(weight, Tensor) and weight.dim() == 1
    return int(weight.shape[0]) if is_vector and isinstance(weight, Tensor) else 0


def _probe(model: PagedModel, deadline: float) -> None:
    """The whole model: logits one token at a time against a prompt at once, and against runs of five beside a mate."""
    tokens = [(17 + 31 * i) % model.vocabulary for i in range(min(PROBE_TOKENS, model.max_length))]
    count = len(tokens)
    table, other = list(range(blocks_for(count))), list(range(blocks_for(count), 2 * blocks_for(count)))
    if len(other) * 2 * BLOCK_SIZE > model.pool.slots:
        other = table
    at_once = model.forward([Chunk(tokens, 0, table, count)])
    for start in range(0, count, 5):
        run = tokens[start : start + 5]
        mate = Chunk(tokens[:3], 0, table, 1)
        together = model.forward([mate, Chunk(run, start, other, len(run))])[1:]
        if not torch.equal(together, at_once[start : start + len(run)]):
            raise _NotProven("the model's logits depend on the number of rows")
        if time.monotonic() > deadline:
            raise _NotProven("the start-up check took too long")
    for position, token in enumerate(tokens):
        alone = model.forward([Chunk([token], position, other, 1)])
        if not torch.equal(alone[0], at_once[position]):
            raise _NotProven("the model's logits depend on the number of rows")
        if time.monotonic() > deadline:
            raise _NotProven("the start-up check took too long")


def _fixed_row(width: int, dtype: torch.dtype) -> Tensor:
    """(1, width): no two values alike, none special, the same at every start."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, width, generator=generator).to(dtype)
