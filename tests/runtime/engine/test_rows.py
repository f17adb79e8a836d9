"""Rows do not depend on how many rows there are; where a product's rows do, the start-up check finds out."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor, nn

from turbo_runtime.engine import check
from turbo_runtime.engine.arithmetic import FORMS, SLAB, Form, RowLinear, replace_linears
from turbo_runtime.engine.check import cancelling, first_that_holds, rows_hold

SHAPES = [(64, 48), (192, 96), (96, 256)]


def linear(out: int, width: int, bias: bool = False) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(width, out, bias=bias).requires_grad_(False)


def in_an_hour() -> float:
    return time.monotonic() + 3600


@pytest.mark.parametrize(("out", "width"), SHAPES)
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_every_form_computes_the_product(form: Form, out: int, width: int) -> None:
    plain = linear(out, width, bias=True)
    layer = RowLinear(plain, form)
    for rows in (1, 2, 3, 17, SLAB, SLAB + 5):
        x = torch.randn(rows, width)
        torch.testing.assert_close(layer(x), plain(x))


@pytest.mark.parametrize(("out", "width"), SHAPES)
def test_the_chosen_form_keeps_every_row_at_every_position(out: int, width: int) -> None:
    weight, row = cancelling(out, width, torch.float32)
    probe = linear(out, width)
    probe.weight = nn.Parameter(weight, requires_grad=False)
    layer = RowLinear(probe)
    layer.use(first_that_holds(layer, row, in_an_hour()))
    fresh = torch.randn(SLAB + 9, width)
    alone = torch.cat([layer(fresh[i : i + 1]) for i in range(len(fresh))])
    for count in (2, 3, 8, 31, len(fresh)):
        for start in range(0, len(fresh) - count + 1, 5):
            assert torch.equal(layer(fresh[start : start + count]), alone[start : start + count])


def test_a_product_whose_rows_depend_on_their_number_does_not_hold() -> None:
    def careless(x: Tensor) -> Tensor:
        return x.sum(1, keepdim=True) + (1e-3 if x.shape[0] == 7 else 0.0)

    row = torch.ones(1, 16)
    assert rows_hold(careless, row, range(1, 7), in_an_hour())
    assert not rows_hold(careless, row, range(1, 9), in_an_hour())


def test_a_product_that_depends_on_the_rows_place_does_not_hold() -> None:
    def careless(x: Tensor) -> Tensor:
        out = x.sum(1, keepdim=True)
        out[3:] += 1.0
        return out

    assert not rows_hold(careless, torch.randn(1, 16), [4], in_an_hour())


def test_when_no_form_holds_or_time_is_up_nothing_is_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = RowLinear(linear(8, 4))
    row = torch.randn(1, 4)
    with pytest.raises(check._NotProven, match="too long"):
        first_that_holds(layer, row, time.monotonic() - 1)
    monkeypatch.setattr(RowLinear, "forward", lambda _, x: x + x.shape[0])
    with pytest.raises(check._NotProven, match="no product form keeps the rows of a 8 x 4 weight"):
        first_that_holds(layer, row, in_an_hour())


def test_every_linear_of_a_model_is_replaced_once_and_a_tied_weight_survives_a_new_layout() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Sequential(nn.Linear(6, 3)))
    x = torch.randn(5, 4)
    before = model(x)
    tied = model[0].weight
    layers = replace_linears(model)
    assert [layer.shape for layer in layers] == [(6, 4), (3, 6)]
    for layer in layers:
        layer.use(FORMS[1])
    torch.testing.assert_close(model(x), before)
    assert tied.is_contiguous()
