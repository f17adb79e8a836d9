"""The house rule of the benchmarks: a table, one last line of figures, `--json FILE`, bars that fail the run
by name.

A benchmark is a script that makes rows and figures and hands them to `finish`. Its bars are constants at the
top of its file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PROMPTS = HERE / "data" / "prompts.jsonl"
_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_bf16",
    "amx_bf16",
    "amx_tile",
)  # instruction sets that the arithmetic depends on


@dataclass(frozen=True)
class Bar:
    """What a figure must reach; `at_least` or `at_most` is given."""

    figure: str
    at_least: float | None = None
    at_most: float | None = None

    def missed(self, figures: Mapping[str, float]) -> str | None:
        """A sentence if the figure misses the bar."""
        value = figures[self.figure]
        if self.at_least is not None and value < self.at_least:
            return f"{self.figure} is {value:g}, the bar is at least {self.at_least:g}"
        if self.at_most is not None and value > self.at_most:
            return f"{self.figure} is {value:g}, the bar is at most {self.at_most:g}"
        return None


def arguments(description: str) -> argparse.ArgumentParser:
    """The options that every benchmark has; add your own, then parse."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write machine, date, commit, figures and rows"
    )
    parser.add_argument("--threads", type=int, help="CPU threads of the engine (default: all allowed cores)")
    return parser


def prompts(paths: Sequence[Path] = (PROMPTS,)) -> list[dict[str, str]]:
    """The prompts of files of JSON lines, and of those in folders, each with id, domain and prompt: the
    shipped ones, or your own. A line without a domain is of the file's name. Raises ValueError with file
    and line.
    """
    files = [file for path in paths for file in (sorted(path.glob("*.jsonl")) if path.is_dir() else [path])]
    rows = []
    for file in files:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            row = json.loads(line)
            if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
                raise ValueError(f'{file}, line {number}: write an object with "prompt", a string')
            rows.append({"id": f"{file.stem}-{number}", "domain": file.stem, **row})
    return rows


def machine(threads: int | None = None) -> dict[str, Any]:
    """What a figure belongs to: CPU, the instructions that matter, cores and threads."""
    facts = dict(
        line.split(":", 1)
        for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        if ":" in line
    )
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    flags = set(facts.get("flags", "").split())
    cores = len(os.sched_getaffinity(0))
    return {
        "cpu": facts.get("model name", platform.machine()),
        "flags": [flag for flag in _FLAGS if flag in flags],
        "cores": cores,
        "threads": threads or cores,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": platform.python_version(),
    }


def finish(
    name: str,
    figures: Mapping[str, float],
    rows: Sequence[Mapping[str, Any]],
    bars: Sequence[Bar],
    options: argparse.Namespace,
) -> int:
    """Print the table and the line of figures, write the file, and return the exit status: 1 if a bar is
    missed.
    """
    if options.json is not None:
        document = {
            "benchmark": name,
            "machine": machine(options.threads),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": _commit(),
            "figures": dict(figures),
            "rows": list(rows),
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print_table(rows)
    missed = [sentence for bar in bars if (sentence := bar.missed(figures))]
    for sentence in missed:
        print(f"BAR MISSED: {sentence}", file=sys.stderr, flush=True)
    print(f"{name}: " + " ".join(f"{key}={value:g}" for key, value in figures.items()), flush=True)
    return 1 if missed else 0


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Columns are the keys of all rows, in the order in which they first come."""
    if not rows:
        return
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [columns, *([_cell(row.get(column, "")) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _cell(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _commit() -> str | None:
    """The commit that is checked out, `-dirty` if files differ from it; None outside a repository."""
    git = ["git", "-C", str(HERE)]
    described = subprocess.run(
        [*git, "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return described.stdout.strip() or None
