"""Matrix products whose rows do not depend on how many rows there are, nor on where a row stands among them.

A library picks another kernel for another row count, and another kernel adds in another order: the last bits
of every row change with the batch. So a *kernel* computes a product: a layout of the weights and the few row
counts that are ever multiplied (rows are cut at the largest and padded with zeros up to the next). The
start-up check finds the kernel that keeps rows bit-equal on this machine, with this number of threads.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from turbo_runtime.models.compiled import panels

log = logging.getLogger(__name__)

Layout = Literal["panels", "packed", "rows", "columns", "batched"]

# Each where a request and its drafts lie: oneDNN computes as many rows at a time as its registers take, so
# that 6 rows may cost no more than 4, and 7 a fifth more. Wider steps above.
COUNTS: tuple[int, ...] = (*range(4, 19), *range(20, 33, 4), *range(40, 65, 8), *range(80, 129, 16))
BULK = (256, 512)  # of a long prompt: full pieces, whose results need not be put together
_ANY = (1, 2, 3, *COUNTS, BULK[-1])  # tried of a kernel that takes any number of rows


@dataclass(frozen=True)
class MatmulKernel:
    """One way to compute X @ W.T, X (rows, in).

    panels: W and biases as Turbo's own kernel reads them. packed: W in the blocks that oneDNN's kernel reads,
    twice as fast as the following at 4 to 16 rows. rows: W as it is. columns: X times a contiguous W.T.
    batched: a W for each head (`HeadProduct`).
    """

    name: str
    layout: Layout
    counts: tuple[int, ...] | None  # rows of one product, ascending; None: any
    bulk: tuple[int, ...] = ()  # more, each a multiple of the one before: nothing is padded up to them

    def in_bulk(self) -> MatmulKernel:
        """Add full pieces of hundreds of rows."""
        return replace(self, name=f"{self.name}, in bulk", bulk=BULK)

    def in_pieces(self) -> MatmulKernel:
        """Undo `in_bulk`."""
        return replace(self, name=self.name.removesuffix(", in bulk"), bulk=())

    @property
    def tried(self) -> tuple[int, ...]:
        """Numbers of rows by which the start-up check tries it."""
        return _ANY if self.counts is None else (*self.counts, self.counts[-1] + 1)  # once rows are cut

    def takes(self, rows: int) -> bool:
        """Whether `rows` are one product, without padding."""
        return self.counts is None or rows in self.counts or rows in self.bulk

    def pieces(self, rows: int) -> list[tuple[int, int]]:
        """(rows, padded rows) of each product that together make `rows`."""
        assert self.counts is not None
        cut: list[tuple[int, int]] = []
        for full in (*reversed(self.bulk), self.counts[-1]):
            cut += [(full, full)] * (rows // full)
            rows %= full
        return cut + ([(rows, next(count for count in self.counts if count >= rows))] if rows else [])


PANELS = MatmulKernel("panels", "panels", None)
# In the order of the trial; the first that holds wins. Tiles read the weights once each.
FORMS = (
    PANELS,
    MatmulKernel("packed", "packed", COUNTS),
    MatmulKernel("linear", "rows", COUNTS),
    MatmulKernel("transposed", "columns", COUNTS),
    MatmulKernel("transposed, tiles of 4", "columns", (4,)),
    MatmulKernel("transposed, tiles of 16", "columns", (16,)),
    MatmulKernel("linear, one row at a time", "rows", (1,)),
)
# On a GPU. Up to some hundred rows a product is bound by reading the weights, so that 64 rows cost little
# more than one; and one shape is one algorithm.
DEVICE_FORMS = (
    MatmulKernel("linear, tiles of 64", "rows", (64,)),
    MatmulKernel("linear, tiles of 16", "rows", (16,)),
)
# Where rows may depend on their number.
FREE_FORMS = (
    PANELS,
    MatmulKernel("packed, any rows", "packed", None),
    MatmulKernel("linear, any rows", "rows", None),
)


def padded_rows(rows: int, unit: int = 1) -> int:
    """Round up to a multiple of `unit`, 1 or 4, that products take without padding."""
    rows = -(-rows // unit) * unit
    rest = rows % COUNTS[-1]
    padded = next(count for count in (0, *COUNTS) if count >= rest)
    return rows - rest + padded


class BatchInvariantLinear:
    """x (rows, in) -> x @ weight.T + bias (rows, out), by one kernel."""

    host_forms: ClassVar[tuple[MatmulKernel, ...]] = FORMS
    device_forms: ClassVar[tuple[MatmulKernel, ...]] = DEVICE_FORMS
    free_forms: ClassVar[tuple[MatmulKernel, ...]] = FREE_FORMS
    heads = 1  # matrices of this shape side by side

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """`weight` (out, in) stays as it is until a kernel needs another layout."""
        self.shape = (int(weight.shape[-2]), int(weight.shape[-1]))  # (out, in)
        self.dtype, self.device = weight.dtype, weight.device
        self.bias = bias
        self.form = self.free_forms[-1]
        self._stored = weight

    @property
    def forms(self) -> tuple[MatmulKernel, ...]:
        """What the start-up check tries."""
        return self.host_forms if self.device.type == "cpu" else self.device_forms

    @property
    def name(self) -> str:
        """out x in."""
        return "{}x{}".format(*self.shape)

    def like(self, weight: Tensor) -> BatchInvariantLinear:
        """Build the same product with another weight (out, in); a bias, if there is one, is zero."""
        return BatchInvariantLinear(weight, None if self.bias is None else torch.zeros_like(self.bias))

    def use(self, form: MatmulKernel) -> None:
        """Change kernel and layout; raises RuntimeError or AttributeError where torch or the CPU lacks it."""
        if form.layout != self.form.layout:
            self._stored = _laid_out(self._as_rows(), self.bias, form.layout)
        self.form = form

    def adopt(self, form: MatmulKernel) -> bool:
        """Use the form if it works here; whether it does."""
        before = self.form
        try:
            self.use(form)
            self(torch.zeros(4, self.heads * self.shape[1], dtype=self.dtype, device=self.device))
        except (AttributeError, RuntimeError) as error:  # this build or processor lacks an operator
            log.info("products are not computed %s: %s", form.name, error)
            self.use(before)
            return False
        return True

    def adopt_first(self, forms: Iterable[MatmulKernel]) -> None:
        """Use the first of the forms that works here, if any does."""
        any(map(self.adopt, forms))

    def output_rows(self, ids: Tensor) -> Tensor:
        """Copy rows (n, in) of the weight for ids (n); expensive, since a packed one is unpacked."""
        return self._as_rows().index_select(0, ids)

    def __call__(self, x: Tensor) -> Tensor:
        """x (rows, in) -> (rows, out)."""
        if self.form.takes(x.shape[0]):
            return self._multiply(x)
        result = x.new_empty(x.shape[0], self.heads * self.shape[0])
        start = 0
        for rows, padded in self.form.pieces(x.shape[0]):
            piece = x[start : start + rows]
            out = self._multiply(piece if rows == padded else F.pad(piece, (0, 0, 0, padded - rows)))
            result[start : start + rows] = out[:rows]  # while it is in the cache
            start += rows
        return result

    def _multiply(self, x: Tensor) -> Tensor:
        if self.form.layout == "packed":
            out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._stored, self.bias, "none", [], "")
            return out
        if self.form.layout == "panels":
            return panels.multiply(x, self._stored, self.shape[0])
        # F.linear and the product with the transposed copy reach different kernels, with different bits
        out = F.linear(x, self._stored) if self.form.layout == "rows" else x @ self._stored
        return out if self.bias is None else out + self.bias

    def _as_rows(self) -> Tensor:
        """The weights (out, in)."""
        match self.form.layout:
            case "panels":
                return panels.to_rows(self._stored, self.shape[0], self.dtype)
            case "packed":
                return self._stored.to_dense()
            case "columns":
                return self._stored.t().contiguous()
        return self._stored


def _laid_out(rows: Tensor, bias: Tensor | None, layout: Layout) -> Tensor:
    """Weights (out, in) in another layout; a tied embedding keeps the old one for itself."""
    if layout == "packed":
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(rows.detach().contiguous())
        return packed
    if layout == "panels":
        return panels.to_panels(rows.detach(), bias)
    return rows.t().contiguous() if layout == "columns" else rows


class HeadProduct(BatchInvariantLinear):
    """x (rows, heads * in) -> (rows, heads * out), all heads in one batched product."""

    host_forms: ClassVar[tuple[MatmulKernel, ...]] = (
        MatmulKernel("batched", "batched", COUNTS),
        MatmulKernel("batched, tiles of 4", "batched", (4,)),
        MatmulKernel("batched, tiles of 16", "batched", (16,)),
    )
    device_forms: ClassVar[tuple[MatmulKernel, ...]] = (
        MatmulKernel("batched, tiles of 64", "batched", (64,)),
    )
    free_forms: ClassVar[tuple[MatmulKernel, ...]] = (MatmulKernel("batched, any rows", "batched", None),)

    def __init__(self, weight: Tensor) -> None:
        """`weight` (heads, out, in); copied."""
        super().__init__(weight)
        self.heads = len(weight)
        self._stored = weight.transpose(1, 2).contiguous()

    @property
    def name(self) -> str:
        """heads x out x in."""
        return f"{self.heads}x{super().name}"

    def like(self, weight: Tensor) -> HeadProduct:
        """Build the same number of heads, each with `weight` (out, in)."""
        return HeadProduct(weight.expand(self.heads, -1, -1))

    def _multiply(self, x: Tensor) -> Tensor:
        # a copy, so that the kernel sees the same strides whatever `x` was cut from
        by_head = x.reshape(x.shape[0], self.heads, -1).transpose(0, 1).contiguous()
        return torch.bmm(by_head, self._stored).transpose(0, 1).reshape(x.shape[0], -1)
