"""Terminal screens as SVG, and the picture of a plan: what commands show on the shipped examples."""

from __future__ import annotations

import contextlib
import io
import re
import tempfile
from pathlib import Path

from matplotlib import rc_context
from rich.console import Console
from rich.text import Text

from turbo_dev.paths import REPOSITORY
from turbo_operator.cli.commands import plan

IMAGES = REPOSITORY / "docs" / "images"
_EXAMPLE = "examples/r1-distill-qwen-32b.yaml"
_TABLE_LINES = 12


def images() -> dict[Path, str]:
    """Every screen by the path of its image."""
    with contextlib.chdir(REPOSITORY):
        return {
            IMAGES / "screen-plan.svg": _screen(["-f", _EXAMPLE], f"turbo plan -f {_EXAMPLE}"),
            IMAGES / "plan-plot.svg": _plot(["-f", _EXAMPLE]),
        }


def _screen(arguments: list[str], command: str) -> str:
    """The command line and the table that it prints, as a terminal shows them."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        plan(arguments)
    lines = [f"$ {command}", *(line.rstrip() for line in output.getvalue().splitlines()[:_TABLE_LINES])]
    console = Console(record=True, file=io.StringIO(), width=max(map(len, lines)) + 2, force_terminal=True)
    for line in lines:
        style = "bold" if line.startswith("$") else "green" if line.startswith(" *") else ""
        console.print(Text(line, style=style), soft_wrap=True)
    return re.sub(r"[ \t]+$", "", console.export_svg(title="turbo plan", unique_id="turbo-plan"), flags=re.M)


def _plot(arguments: list[str]) -> str:
    """The picture that --plot writes."""
    with (
        tempfile.TemporaryDirectory() as folder,
        rc_context({"svg.hashsalt": "turbo"}),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        file = Path(folder) / "plan.svg"
        plan([*arguments, "--plot", str(file)])
        text = file.read_text("utf-8")
    text = re.sub(r"<dc:date>.*?</dc:date>", "<dc:date/>", text, flags=re.S)
    return re.sub(r"[ \t]+$", "", text, flags=re.M)
