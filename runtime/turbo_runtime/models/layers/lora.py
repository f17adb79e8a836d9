"""LoRA adapters beside a model's products (Hu et al., arXiv 2106.09685): W x + B A x for the rows of an
adapter, W x for all others.

Rows of an adapter are gathered, multiplied by its two small matrices, and added to what the model's own
product gave. Both products are under the row rule of `matmul`, so a row has the same bits whatever is beside
it; nothing is added to rows of the model itself, not even zero, which would turn a negative zero around.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from turbo_runtime.model_files.source import ModelError
from turbo_runtime.models.layers.primitives import Layer, Site
from turbo_runtime.models.matmul import BatchInvariantLinear
from turbo_runtime.models.step_batch import Ints
from turbo_runtime.models.transfer import upload


@dataclass(frozen=True, slots=True)
class Adapter:
    """The matrices of a LoRA adapter."""

    name: str
    # by module, such as layers.3.self_attn.q_proj: A (rank, in), and B (out, rank) times its scale
    modules: Mapping[str, tuple[Tensor, Tensor]]

    @property
    def shapes(self) -> frozenset[tuple[str, int]]:
        """Its modules with their ranks: adapters with the same are computed by the same kernels."""
        return frozenset((name, len(a)) for name, (a, _) in self.modules.items())


class AdapterRows:
    """Which rows of the step in progress are of which adapter."""

    def __init__(self) -> None:
        self.groups: list[tuple[int, Tensor]] = []  # number of an adapter, from 1, and its rows (n,)

    def select(self, token_lora_mapping: Ints, device: torch.device) -> None:
        """Begin a step, with the number of each token's adapter (tokens,); 0: none."""
        self.groups = []
        if not token_lora_mapping.any():
            return
        order = np.argsort(token_lora_mapping, kind="stable")
        numbers, starts = np.unique(token_lora_mapping[order], return_index=True)
        self.groups = [
            (number, upload(rows, device))
            for number, rows in zip(numbers.tolist(), np.split(order, starts[1:]), strict=True)
            if number
        ]


class LowRankProduct(Layer):
    """What one adapter adds to a product of the model, whose outputs may be those of several modules."""

    def __init__(self, parts: Sequence[tuple[Tensor, Tensor, slice]]) -> None:
        """A (rank, in) and B (outputs, rank) of each module, and the place of its outputs."""
        self.down = BatchInvariantLinear(torch.cat([a for a, _, _ in parts]))
        self.ups = [BatchInvariantLinear(b) for _, b, _ in parts]
        self._ranks = [len(a) for a, _, _ in parts]
        self._outputs = [outputs for _, _, outputs in parts]

    def add(self, x: Tensor, rows: Tensor, out: Tensor) -> None:
        """Add to the rows (n,) of out (all rows, out) what it makes of those of x (all rows, in)."""
        low = self.down(x.index_select(0, rows))
        for up, part, outputs in zip(self.ups, torch.split(low, self._ranks, 1), self._outputs, strict=True):
            # a copy, so that the kernel sees the same strides wherever the part lies
            out[:, outputs].index_add_(0, rows, up(part.contiguous()))


class AdaptedProduct(Layer):
    """A product of the model, and what adapters add to its rows."""

    def __init__(
        self, product: BatchInvariantLinear, adapters: list[LowRankProduct | None], rows: AdapterRows
    ) -> None:
        """`adapters` by their numbers; None: it changes nothing here."""
        self.product, self.adapters, self._rows = product, adapters, rows

    def __call__(self, x: Tensor) -> Tensor:
        """x (rows, in) -> (rows, out)."""
        out = self.product(x)
        for number, rows in self._rows.groups:
            if (adapter := self.adapters[number - 1]) is not None:
                adapter.add(x, rows, out)
        return out


def adapt(sites: Iterable[Site], adapters: Sequence[Adapter]) -> AdapterRows:
    """Put adapters beside the products of a model. Raises ModelError where one does not fit."""
    sites, rows = list(sites), AdapterRows()
    known = {module for site in sites for module in site.modules}
    for adapter in adapters:
        if unknown := sorted(adapter.modules.keys() - known):
            changed = f"adapter {adapter.name} changes {unknown[0]}, which"
            if unknown[0].rpartition(".")[2] in {module.rpartition(".")[2] for module in known}:
                raise ModelError(f"{changed} the model does not have: it is of another model")
            raise ModelError(
                f"{changed} has no adapters here: of this model {describe_modules(known)} may have some"
            )
    for site in sites:
        found = [_at(site, adapter) for adapter in adapters]
        if any(found):
            setattr(site.owner, site.attribute, AdaptedProduct(site.product, found, rows))
    return rows


def describe_modules(modules: Iterable[str]) -> str:
    """Name modules without their layers."""
    names = sorted({name.rpartition(".")[2] for name in modules})
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names) or "nothing"


def _at(site: Site, adapter: Adapter) -> LowRankProduct | None:
    parts: list[tuple[Tensor, Tensor, slice]] = []
    start = 0
    for module, outputs in site.modules.items():
        if module in adapter.modules:
            a, b = adapter.modules[module]
            for side, own, size in (
                ("inputs", a.shape[1], site.product.shape[1]),
                ("outputs", len(b), outputs),
            ):
                if own != size:
                    raise ModelError(
                        f"adapter {adapter.name}: {module} has {own} {side} and the model {size} there: it "
                        "is of another model"
                    )
            parts.append((a, b, slice(start, start + outputs)))
        start += outputs
    return LowRankProduct(parts) if parts else None
