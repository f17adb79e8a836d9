"""The table of `turbo bench` fits any terminal whole."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from turbo_runtime.cli.figures import Pass
from turbo_runtime.cli.report import report
from turbo_runtime.client.sse import Progress


@pytest.mark.parametrize("width", [40, 60, 79, 80, 120])
def test_no_figure_is_cut(width: int) -> None:
    passes = []
    for name in ("on", "off"):
        progress = Progress(100_000, 100_000, 1, 0.9994, 2.0, 3.21)
        passes.append(Pass(name, answers=[progress]))
        passes[-1].took(1.0, [progress])
    written = io.StringIO()
    console = Console(file=written, width=width)
    console.print(report(passes, "m", "http://a:80", None, 6, 2, console.width))
    told = written.getvalue()
    assert "…" not in told
    assert all(len(line) <= width for line in told.splitlines())
    for figure in ("100000.0", "999.4 ms", "3.21", "TTFT p95", "tokens/s", "per draft", "speculation"):
        assert figure in told
