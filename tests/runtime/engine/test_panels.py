"""Products with weights in panels: by Turbo's own kernel, compiled at start."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from llvmlite import binding
from torch import Tensor

from turbo_runtime.models.compiled import amx_kernel, elementwise, panel_kernel, panels, threads
from turbo_runtime.models.compiled.code import machine_of, parse
from turbo_runtime.models.compiled.panel_kernel import compile_kernel, host_tiles
from turbo_runtime.models.matmul import PANELS, BatchInvariantLinear

KERNELS = {tile: compile_kernel(tile) for tile in host_tiles()}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
if not KERNELS:
    pytest.skip("the processor has no instructions that panels need", allow_module_level=True)
sizes = st.integers(1, 90)


@pytest.fixture(
    scope="module",
    params=KERNELS,
    ids=lambda tile: f"{tile.kind}, {tile.lanes} lanes" + ", AMX" * tile.amx,
)
def dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    """Of a tile's numbers; products are by this tile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(panels, "host_kernel", lambda *_: KERNELS[request.param])
        yield DTYPES[request.param.kind]


def random(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return panels.multiply(x, panels.to_panels(weight, bias), len(weight))


def whole(inputs: int, dtype: torch.dtype) -> int:
    """About as many, in whole units, or as many units as the tile multiplies at once."""
    kind: panel_kernel.Kind = "float32" if dtype == torch.float32 else "bfloat16"
    step = panels.host_kernel(kind, 0).tile.step
    units = -(-inputs // step) * step
    return units if kind == "float32" else 2 * units


@given(rows=st.integers(0, 100), inputs=sizes, outputs=sizes, biased=st.booleans())
def test_a_product_is_that_of_the_matrices(
    dtype: torch.dtype, rows: int, inputs: int, outputs: int, biased: bool
) -> None:
    inputs = whole(inputs, dtype)
    x, weight = random(dtype, rows, inputs), random(dtype, outputs, inputs)
    bias = random(dtype, outputs) if biased else None
    expected = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    rounding = 1e-4 if dtype == torch.float32 else 2**-8
    torch.testing.assert_close(product(x, weight, bias).double(), expected, atol=1e-4, rtol=rounding)


@given(rows=st.integers(1, 100), first=st.integers(0, 99), inputs=sizes, outputs=sizes)
def test_a_row_has_the_same_bits_among_any_others(
    dtype: torch.dtype, rows: int, first: int, inputs: int, outputs: int
) -> None:
    inputs = whole(inputs, dtype)
    x, weight = random(dtype, 100, inputs), random(dtype, outputs, inputs)
    some = slice(first, min(first + rows, 100))
    assert torch.equal(product(x[some], weight), product(x, weight)[some])


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("outputs", [8, 70, 4096])
def test_threads_share_the_panels_and_change_no_bit(dtype: torch.dtype, outputs: int) -> None:
    x, weight = random(dtype, 9, 64), random(dtype, outputs, 64)
    shared = product(x, weight)
    torch.set_num_threads(1)
    assert torch.equal(product(x, weight), shared)


@pytest.mark.parametrize("inputs", [512, 1024])
def test_rows_at_any_distance_from_each_other_have_the_same_bits(dtype: torch.dtype, inputs: int) -> None:
    wide, weight = random(dtype, 7, 2 * inputs + 1), random(dtype, 40, inputs)
    alone = product(wide[:, :inputs].contiguous(), weight)
    assert torch.equal(product(wide[:, :inputs], weight), alone)
    assert torch.equal(product(wide[:, :inputs].T.contiguous().T, weight), alone)


def test_a_row_that_is_not_finite_spoils_no_other(dtype: torch.dtype) -> None:
    inputs = whole(30, dtype)
    x, weight = random(dtype, 20, inputs), random(dtype, 64, inputs)
    expected = product(x, weight)
    x[4], x[11] = torch.nan, torch.inf
    others = [row for row in range(20) if row not in (4, 11)]
    assert torch.equal(product(x, weight)[others], expected[others])
    assert not product(x, weight)[[4, 11]].isfinite().any()


def test_rows_of_another_width_or_type_than_the_weights_are_not_read(dtype: torch.dtype) -> None:
    stored = panels.to_panels(random(dtype, 8, 64), None)
    with pytest.raises(AssertionError):
        panels.multiply(random(dtype, 3, 32), stored, 8)
    (other,) = {torch.float32, torch.bfloat16} - {dtype}
    with pytest.raises(AssertionError):
        panels.multiply(random(other, 3, 64), stored, 8)


@given(inputs=sizes, outputs=sizes)
def test_weights_come_back_from_panels_as_they_were(dtype: torch.dtype, inputs: int, outputs: int) -> None:
    weight = random(dtype, outputs, whole(inputs, dtype))
    assert torch.equal(panels.to_rows(panels.to_panels(weight, None), outputs, dtype), weight)


def test_a_processor_without_a_tile_uses_another_kernel(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(panel_kernel, "_TILES", ())
    monkeypatch.setattr(panels, "host_kernel", panel_kernel.host_kernel.__wrapped__)
    caplog.set_level(logging.INFO)
    layer = BatchInvariantLinear(random(torch.float32, 8, 4))
    assert not layer.adopt(PANELS)
    assert "this processor has no instructions for panels of float32" in caplog.text
    assert layer(torch.ones(3, 4)).shape == (3, 8)


@pytest.mark.parametrize("weight", [torch.ones(8, 3, dtype=torch.bfloat16), torch.ones(8, 4).half()])
def test_weights_that_panels_cannot_hold_use_another_kernel(weight: Tensor) -> None:
    layer = BatchInvariantLinear(weight)
    assert not layer.adopt(PANELS)
    assert layer(torch.ones(3, weight.shape[1], dtype=weight.dtype)).shape == (3, 8)


AMX_TILE = next(tile for _, tile in panel_kernel._TILES if tile.amx)


@pytest.mark.parametrize("is_allowed", [True, False])
def test_amx_multiplies_bfloat16_where_linux_lets_it(
    is_allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = dict.fromkeys(("avx512f", *amx_kernel.NEEDED), True)
    monkeypatch.setattr(panel_kernel.binding, "get_host_cpu_features", lambda: features)
    monkeypatch.setattr(amx_kernel, "request_permission", lambda: is_allowed)
    first = next(tile for tile in host_tiles() if tile.kind == "bfloat16")
    assert first.amx == is_allowed


def test_the_product_by_amx_is_compiled_on_processors_without_it_too() -> None:
    machine = machine_of("sapphirerapids")
    code = machine.emit_assembly(parse(panel_kernel.build_module(AMX_TILE), machine, optimized=True))
    found = {
        name: code.count(f"\t{name}\t") for name in ("tdpbf16ps", "tileloadd", "tilestored", "ldtilecfg")
    }
    # with one block of rows and with two
    assert found == {"tdpbf16ps": 6, "tileloadd": 7, "tilestored": 6, "ldtilecfg": 1}


@pytest.mark.parametrize("inputs", [16, 48, 720])
def test_rows_that_amx_cannot_take_are_multiplied_by_vectors(
    inputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if AMX_TILE not in KERNELS:
        pytest.skip("this processor has no AMX, or Linux does not let it be used")
    monkeypatch.setattr(panels, "host_kernel", panel_kernel.host_kernel)
    x, weight = random(torch.bfloat16, 40, inputs), random(torch.bfloat16, 70, inputs)
    assert panels.host_kernel("bfloat16", 32).tile == AMX_TILE
    assert not panels.host_kernel("bfloat16", inputs // 2).tile.amx
    torch.testing.assert_close(product(x, weight), x @ weight.T, atol=1e-2, rtol=2**-7)


@pytest.mark.usefixtures("three_threads")
def test_without_gnu_openmp_products_use_another_kernel_and_all_else_one_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate = random(torch.float32, 40, 8192)
    shared = elementwise.gate(gate)
    monkeypatch.setattr(threads, "_parallel", lambda: None)
    assert not BatchInvariantLinear(random(torch.float32, 8, 4)).adopt(PANELS)
    assert torch.equal(elementwise.gate(gate), shared)


@pytest.mark.parametrize(
    ("processor", "units", "from_rows"),
    [("znver4", 1024, 11), ("znver3", 2048, 1), ("sapphirerapids", 2048, 1)],
)
def test_weights_are_prefetched_as_was_measured(
    processor: str, units: int, from_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binding, "get_host_cpu_name", lambda: processor)
    tile = panel_kernel.Tile("float32", 16, 14)
    _, *functions = str(panel_kernel.build_module(tile)).split('@"rows_')[: tile.rows + 1]
    assert len(functions) == tile.rows
    for rows, code in enumerate(functions, 1):
        prefetches = re.findall(r'call void @"llvm.prefetch.*', code)
        assert len(prefetches) == (2 if rows >= from_rows else 0)
        assert all(line.endswith("i32 0, i32 2, i32 1)") for line in prefetches)
        assert (f", i64 {units}\n" in code) == bool(prefetches)
