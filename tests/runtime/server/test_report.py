"""The table of `turbo bench` fits any terminal whole."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from turbo_runtime.cli.bench import ModeResult, compute_speedup, render_report
from turbo_runtime.client.client import Progress


@pytest.mark.parametrize("width", [40, 60, 79, 80, 120])
def test_no_figure_is_cut(width: int) -> None:
    modes = []
    for name in ("on", "off"):
        progress = Progress(100_000, 100_000, 1, 0.9994, 2.0, 3.21)
        modes.append(ModeResult(name, seconds=1.0, tokens=progress.tokens, answers=[progress]))
    written = io.StringIO()
    console = Console(file=written, width=width)
    console.print(render_report(modes, "m at http://a:80\n6 requests, 2 at a time", console.width))
    told = written.getvalue()
    assert "…" not in told
    assert all(len(line) <= width for line in told.splitlines())
    for figure in ("100000.0", "999.4 ms", "3.21", "TTFT p95", "tokens/s", "per draft", "speculation"):
        assert figure in told


@pytest.mark.parametrize(("length", "said"), [(3.21, "1.00 times as many"), (None, "drafted nothing")])
def test_no_speedup_is_claimed_where_nothing_was_drafted(length: float | None, said: str) -> None:
    answer = Progress(100, 100, 1, 0.9, 2.0, length)
    modes = [ModeResult(name, seconds=1.0, tokens=100, answers=[answer]) for name in ("on", "off")]
    assert compute_speedup(modes) == (None if length is None else 1.0)
    written = io.StringIO()
    Console(file=written, width=120).print(render_report(modes, "m at http://a:80", 120))
    assert said in written.getvalue()
