"""Norms, rotations and gates in compiled code: the values, and rows that nothing else changes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from turbo_runtime.models.compiled import elementwise

ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 1e-2}
dtypes = pytest.mark.parametrize("dtype", ROUNDING)
widths = st.integers(1, 90)


def drawn(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def assert_close(found: Tensor, expected: Tensor) -> None:
    rounding = ROUNDING[found.dtype]
    torch.testing.assert_close(found.double(), expected, atol=rounding, rtol=rounding)


def norm(x: Tensor, weight: Tensor) -> Tensor:
    wide = x.double()
    return wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()


@dtypes
@given(rows=st.integers(1, 9), width=widths)
def test_a_norm_divides_by_the_root_of_the_mean_square(dtype: torch.dtype, rows: int, width: int) -> None:
    x, weight = drawn(dtype, rows, width), drawn(torch.float32, width)
    assert_close(elementwise.norm(x, weight, 1e-5), norm(x, weight))


@dtypes
@given(rows=st.integers(1, 9), width=widths)
def test_what_is_added_before_a_norm_is_rounded_first(dtype: torch.dtype, rows: int, width: int) -> None:
    x, weight, more = drawn(dtype, rows, width), drawn(torch.float32, width), drawn(dtype, rows, width + 1)
    total = x + more[:, :width]
    assert_close(elementwise.norm(x, weight, 1e-5, more[:, :width]), norm(total, weight))
    assert torch.equal(x, total)


@dtypes
@given(rows=st.integers(1, 9), width=widths)
def test_a_gate_is_silu_times_the_other_half(dtype: torch.dtype, rows: int, width: int) -> None:
    x = 5 * drawn(dtype, rows, 2 * width)
    gate, up = x.double().chunk(2, -1)
    assert_close(elementwise.gate(x), gate * gate.sigmoid() * up)


@dtypes
@given(rows=st.integers(1, 9), heads=st.integers(1, 4), half=st.integers(1, 40), rest=st.integers(0, 20))
def test_a_rotation_turns_pairs_and_leaves_the_rest_of_a_head(
    dtype: torch.dtype, rows: int, heads: int, half: int, rest: int
) -> None:
    angles = 6 * torch.rand(50, half, generator=torch.Generator().manual_seed(half))
    cos, sin = (
        torch.cat([angles.cos()] * 2, 1).to(dtype),
        torch.cat([-angles.sin(), angles.sin()], 1).to(dtype),
    )
    whole = drawn(dtype, rows, heads + 1, 2 * half + rest)
    before, positions = whole.double(), torch.arange(49, 49 - 5 * rows, -5)
    first, second, kept = before.split_with_sizes([half, half, rest], -1)
    c, s = (each[positions, None, half:].double() for each in (cos, sin))
    expected = torch.cat([first * c - second * s, second * c + first * s, kept], -1)
    assert_close(elementwise.rotate(whole[:, :heads], cos, sin, positions), expected[:, :heads])
    assert torch.equal(whole[:, heads:].double(), before[:, heads:])


WEIGHT = drawn(torch.float32, 4100)
OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "norm": lambda x: elementwise.norm(x, WEIGHT[: x.shape[1]], 1e-5),
    "add and norm": lambda x: elementwise.norm(x.clone(), WEIGHT[: x.shape[1]], 1e-5, x.flip(1)),
    "gate": elementwise.gate,
}


@dtypes
@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
@pytest.mark.parametrize("width", [6, 100, 4096])
def test_a_row_has_the_same_bits_among_any_others_and_in_any_thread(
    operation: Callable[[Tensor], Tensor], width: int, dtype: torch.dtype
) -> None:
    x = drawn(dtype, 40, width)
    whole = operation(x)
    for start, end in ((0, 1), (7, 8), (3, 20), (39, 40)):
        assert torch.equal(operation(x[start:end]), whole[start:end])
    torch.set_num_threads(1)
    assert torch.equal(operation(x), whole)


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_a_row_that_is_not_finite_stays_so_and_spoils_no_other(
    operation: Callable[[Tensor], Tensor],
) -> None:
    x = drawn(torch.float32, 5, 64)
    expected = operation(x)
    x[2] = torch.nan
    found = operation(x)
    assert found[2].isnan().all()
    assert torch.equal(found[[0, 1, 3, 4]], expected[[0, 1, 3, 4]])
