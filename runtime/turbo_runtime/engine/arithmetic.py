"""Matrix products whose rows do not depend on how many rows there are, nor on where a row stands among them.

A library picks another kernel for another row count, and another kernel adds in another order: the last bits
of every row change with the batch. So a linear layer computes by a *form*, and which form keeps rows
bit-equal is found out on this machine, with this number of threads (`check.py`). A product has at most `SLAB`
rows at a time, so that the row counts in use are few enough to be tried one by one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLAB = 64  # rows of one product; enough for a CPU's caches, few enough to check every count


@dataclass(frozen=True, slots=True)
class Form:
    """One way to compute X @ W.T, X (rows, in)."""

    name: str
    transposed: bool  # on weights kept as W.t().contiguous()
    multiple: int = 1  # the rows are padded with zeros to a multiple of this
    tile: int | None = None  # rows of one product, where that is less than all


# In the order they are tried; the first that holds is used. Whole products come before tiles, which read the
# weights once per tile.
FORMS = (
    Form("linear", transposed=False),
    Form("linear, rows padded to 2", transposed=False, multiple=2),
    Form("transposed, rows padded to 2", transposed=True, multiple=2),
    Form("transposed, rows padded to multiples of 4", transposed=True, multiple=4),
    Form("transposed, tiles of 4", transposed=True, multiple=4, tile=4),
    Form("transposed, tiles of 16", transposed=True, multiple=16, tile=16),
    Form("linear, one row at a time", transposed=False, tile=1),
)
PLAIN = FORMS[0]


class RowLinear(nn.Module):
    """Stands in for an `nn.Linear` of a model, with the same weights, computing by one form."""

    def __init__(self, linear: nn.Linear, form: Form = PLAIN) -> None:
        super().__init__()
        self.weight = linear.weight  # (out, in), or a view of that shape on the transposed copy
        self.bias = linear.bias
        self.form = form
        self.use(form)

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return int(self.weight.shape[0]), int(self.weight.shape[1])

    def use(self, form: Form) -> None:
        """Change the form; the weights are laid out anew where it wants another layout."""
        stored = self.weight.data
        if form.transposed == stored.is_contiguous() and min(self.shape) > 1:
            # a tied embedding keeps the old layout for itself
            laid_out = stored.t().contiguous().t() if form.transposed else stored.contiguous()
            self.weight = nn.Parameter(laid_out, requires_grad=False)
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        """X (..., rows, in) -> (..., rows, out); leading dimensions are 1."""
        rows = x.reshape(-1, x.shape[-1])
        parts = [self._slab(rows[start : start + SLAB]) for start in range(0, rows.shape[0], SLAB)]
        out = parts[0] if len(parts) == 1 else torch.cat(parts)
        return out.view(*x.shape[:-1], -1)

    def _slab(self, x: Tensor) -> Tensor:
        form = self.form
        rows = x.shape[0]
        surplus = -rows % form.multiple
        if surplus:
            x = F.pad(x, (0, 0, 0, surplus))
        if form.tile is None:
            out = self._product(x)
        else:
            out = torch.cat([self._product(x[i : i + form.tile]) for i in range(0, x.shape[0], form.tile)])
        if surplus:
            out = out[:rows]
        return out if self.bias is None else out + self.bias

    def _product(self, x: Tensor) -> Tensor:
        # F.linear and the product with the transposed copy reach different kernels, with different bits
        return x @ self.weight.t() if self.form.transposed else F.linear(x, self.weight)


def replace_linears(model: nn.Module) -> list[RowLinear]:
    """Put a `RowLinear` in the place of every `nn.Linear` of the model, the LM head included, and return them
    all.
    """
    replaced: list[RowLinear] = []
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                layer = RowLinear(child)
                setattr(parent, name, layer)
                replaced.append(layer)
    return replaced
