"""Rows do not depend on how many rows there are; where a product's rows do, the start-up check finds out."""

from __future__ import annotations

import time

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from turbo_runtime.engine.startup.attention_probes import NotProvenError
from turbo_runtime.engine.startup.invariance_check import find_invariant_kernel, is_batch_invariant
from turbo_runtime.models import matmul
from turbo_runtime.models.layers.loops import find_row_unit, split_rows
from turbo_runtime.models.layers.primitives import GatedMLP
from turbo_runtime.models.layers.transformers_backend import replace_linears
from turbo_runtime.models.matmul import (
    BULK,
    COUNTS,
    FORMS,
    FREE_FORMS,
    BatchInvariantLinear,
    MatmulKernel,
    padded_rows,
)

SHAPES = [(64, 48), (192, 96), (96, 256)]
ALL_FORMS = (*FORMS, *FREE_FORMS)


def product(out: int, width: int, bias: bool = False) -> BatchInvariantLinear:
    torch.manual_seed(0)
    return BatchInvariantLinear(torch.randn(out, width), torch.randn(out) if bias else None)


def in_an_hour() -> float:
    return time.monotonic() + 3600


@pytest.mark.parametrize(("out", "width"), SHAPES)
@pytest.mark.parametrize("form", ALL_FORMS, ids=lambda form: form.name)
def test_every_form_computes_the_product(form: MatmulKernel, out: int, width: int) -> None:
    plain, other = product(out, width, bias=True), product(out, width, bias=True)
    other.use(form)
    for rows in (1, 2, 3, 17, COUNTS[-1], COUNTS[-1] + 5, sum(BULK) + 7):
        x = torch.randn(rows, width)
        torch.testing.assert_close(other(x), plain(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("first", ALL_FORMS, ids=lambda form: form.name)
@pytest.mark.parametrize("second", ALL_FORMS, ids=lambda form: form.name)
def test_a_form_may_follow_any_other_and_the_weights_stay_the_same(
    first: MatmulKernel, second: MatmulKernel
) -> None:
    changed, direct = product(64, 48), product(64, 48)
    changed.use(first)
    changed.use(second)
    direct.use(second)
    x = torch.randn(12, 48)
    assert torch.equal(changed(x), direct(x))


def test_rows_are_padded_to_the_next_count_and_cut_at_the_largest() -> None:
    assert [padded_rows(rows) for rows in (0, 1, 4, 5, 33, 128, 129, 300)] == [0, 4, 4, 5, 40, 128, 132, 304]
    packed, in_bulk = FORMS[1], FORMS[1].in_bulk()
    assert packed.pieces(300) == [(128, 128), (128, 128), (44, 48)]
    assert in_bulk.pieces(300) == [(256, 256), (44, 48)]
    assert in_bulk.pieces(1423) == [(512, 512), (512, 512), (256, 256), (128, 128), (15, 15)]
    assert in_bulk.pieces(250) == [(128, 128), (122, 128)]
    assert all(in_bulk.takes(rows) for rows in (*COUNTS, *BULK))
    assert not packed.takes(3)
    assert FORMS[0].takes(3)
    assert FORMS[0].takes(1423)


@pytest.mark.parametrize(("out", "width"), SHAPES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("in_bulk", [False, True])
def test_the_chosen_form_keeps_every_row_at_every_position(
    out: int, width: int, bias: bool, in_bulk: bool
) -> None:
    layer = product(out, width, bias)
    form = find_invariant_kernel(layer, in_an_hour())
    layer.use(form.in_bulk() if in_bulk and form.counts == COUNTS else form)
    fresh = torch.randn(BULK[-1] + COUNTS[-1] + 9, width)
    alone = torch.cat([layer(fresh[i : i + 1]) for i in range(len(fresh))])
    for count in (2, 3, 8, 31, 129, 300, 512, len(fresh)):
        for start in range(0, len(fresh) - count + 1, 13):
            assert torch.equal(layer(fresh[start : start + count]), alone[start : start + count])


def test_a_product_whose_rows_depend_on_their_number_does_not_hold() -> None:
    def careless(x: Tensor) -> Tensor:
        return x.sum(1, keepdim=True) + (1e-3 if x.shape[0] == 7 else 0.0)

    row = torch.ones(1, 16)
    assert is_batch_invariant(careless, row, range(1, 7), in_an_hour())
    assert not is_batch_invariant(careless, row, range(1, 9), in_an_hour())


def test_a_product_that_depends_on_the_rows_place_does_not_hold() -> None:
    def careless(x: Tensor) -> Tensor:
        out = x.sum(1, keepdim=True)
        out[3:] += 1.0
        return out

    assert not is_batch_invariant(careless, torch.randn(1, 16), [4], in_an_hour())


def test_a_form_that_adds_up_in_another_order_at_one_count_is_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = BatchInvariantLinear._multiply

    def reordered(self: BatchInvariantLinear, x: Tensor) -> Tensor:
        if self.form.layout == first and x.shape[0] == 96:
            half = x.shape[1] // 2
            weight = self._as_rows()
            return x[:, half:] @ weight[:, half:].t() + x[:, :half] @ weight[:, :half].t()
        return real(self, x)

    layer = product(192, 96)
    first = find_invariant_kernel(layer, in_an_hour()).layout
    monkeypatch.setattr(BatchInvariantLinear, "_multiply", reordered)
    assert find_invariant_kernel(layer, in_an_hour()).layout != first


@pytest.mark.parametrize("error", [AttributeError("no such operator"), RuntimeError("needs avx512")])
def test_where_weights_cannot_be_packed_another_form_is_taken(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = matmul._laid_out

    def without_packing(rows: Tensor, bias: Tensor | None, layout: matmul.Layout) -> Tensor:
        if layout in ("panels", "packed"):
            raise error
        return real(rows, bias, layout)

    monkeypatch.setattr(matmul, "_laid_out", without_packing)
    layer = product(64, 48)
    assert find_invariant_kernel(layer, in_an_hour()) in FORMS[2:]
    assert not layer.adopt(FORMS[0])
    assert not layer.adopt(FORMS[1])
    assert layer.form == FREE_FORMS[-1]
    torch.testing.assert_close(layer(torch.ones(3, 48)), product(64, 48)(torch.ones(3, 48)))


def test_when_no_form_holds_or_time_is_up_nothing_is_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = product(8, 4)
    with pytest.raises(NotProvenError, match="too long"):
        find_invariant_kernel(layer, time.monotonic() - 1)
    monkeypatch.setattr(BatchInvariantLinear, "__call__", lambda _, x: x + torch.arange(len(x))[:, None])
    with pytest.raises(NotProvenError, match="no product form keeps the rows of a 8x4 weight"):
        find_invariant_kernel(layer, in_an_hour())


def test_every_linear_of_a_model_is_replaced_once_and_a_tied_weight_survives_a_new_layout() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Sequential(nn.Linear(6, 3))).requires_grad_(False)
    x = torch.randn(5, 4)
    before = model(x)
    tied = model[0].weight
    kept = tied.clone()
    layers = replace_linears(model).values()
    assert [layer.product.shape for layer in layers] == [(6, 4), (3, 6)]
    for form in FORMS:
        for layer in layers:
            layer.product.use(form)
        torch.testing.assert_close(model(x), before)
    assert torch.equal(tied, kept)


@pytest.mark.parametrize("width", [8, 48, 64, 96, 1536])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_exponentials_of_a_row_are_the_same_in_any_number_of_its_unit(width: int, dtype: torch.dtype) -> None:
    unit = find_row_unit(width)
    x = torch.randn(12, width, generator=torch.Generator().manual_seed(2)).to(dtype)
    for operation in (torch.sigmoid, F.silu, torch.exp):
        expected = operation(x)
        for rows in range(unit, 13, unit):
            assert torch.equal(operation(x[:rows].clone()), expected[:rows])
            assert torch.equal(operation(x[-rows:].clone()), expected[-rows:])
    assert unit == (1 if width % 64 == 0 else 4)


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("inner", [8192, 14336, 4864])
def test_gates_of_a_row_are_the_same_however_threads_share_the_rows(inner: int, dtype: torch.dtype) -> None:
    """As those of Llama 3.2 3B, Llama 3.1 8B and Qwen2.5 0.5B: a loop is cut up within rows."""
    weights = torch.zeros(2 * inner, 4), torch.zeros(4, inner)
    mlp = GatedMLP(*(BatchInvariantLinear(weight.to(dtype)) for weight in weights), F.silu)
    x = torch.randn(18, 2 * inner, generator=torch.Generator().manual_seed(3)).to(dtype)
    alone = torch.cat([mlp.gated(row[None]) for row in x])
    for rows in range(2, 19):
        assert torch.equal(mlp.gated(x[:rows]), alone[:rows])
        assert torch.equal(mlp.gated(x[-rows:]), alone[-rows:])


@given(st.integers(1, 600), st.integers(1, 400), st.integers(1, 64))
def test_parts_of_rows_are_all_of_them_and_one_where_one_thread_computes(
    rows: int, columns: int, threads: int
) -> None:
    for width in (64 * columns, columns):
        parts = split_rows(rows, width, threads)
        assert sum(parts) == rows
        assert min(parts) > 0
        assert split_rows(rows, width, 1) == (rows,)
