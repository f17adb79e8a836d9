"""Figures of `turbo bench`, as a table and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from turbo_runtime.client.sse import Progress
from turbo_runtime.client.terminal import printable

MAX_WIDTH = 80  # columns of the table
PERCENTILES = {"p50": 0.5, "p95": 0.95}


@dataclass(slots=True)
class ModeResult:
    """Answers of one mode."""

    name: str
    seconds: float = 0.0  # wall time of the whole passes together, and `tokens` those of their answers
    tokens: int = 0
    answers: list[Progress] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def add_pass(self, seconds: float, answers: Sequence[Progress]) -> None:
        """Add a complete pass. An incomplete one would count time without the tokens that came in it."""
        self.seconds += seconds
        self.tokens += sum(answer.tokens for answer in answers)

    @property
    def tokens_per_second(self) -> float | None:
        """Rate of all requests together; None before a pass is complete."""
        return self.tokens / self.seconds if self.seconds else None

    @property
    def acceptance_length(self) -> float | None:
        """Tokens per verified draft, the mean over answers that had drafts; None where none had."""
        known = [answer.acceptance_length for answer in self.answers if answer.acceptance_length is not None]
        return sum(known) / len(known) if known else None

    def latencies(self) -> dict[str, float | None]:
        """Return percentiles of the seconds to the first token and per token after it."""
        series = {
            "ttft": [answer.first_token_seconds for answer in self.answers],
            "tpot": [answer.seconds_per_token for answer in self.answers],
        }
        return {
            f"{name}_{suffix}": percentile([value for value in values if value is not None], fraction)
            for name, values in series.items()
            for suffix, fraction in PERCENTILES.items()
        }


def percentile(values: Sequence[float], fraction: float) -> float | None:
    """Return the smallest value that so large a fraction does not exceed (nearest rank); None of nothing."""
    if not values:
        return None
    return sorted(values)[max(math.ceil(fraction * len(values)) - 1, 0)]


def compute_speedup(modes: Sequence[ModeResult]) -> float | None:
    """Return tokens per second of the first mode over those of the second; None where there is no second."""
    rates = [mode.tokens_per_second for mode in modes[:2]]
    if len(rates) < 2 or rates[0] is None or rates[1] is None:
        return None
    return rates[0] / rates[1]


def render_report(modes: Sequence[ModeResult], title: str, width: int) -> RenderableType:
    """Render the figures for a terminal of so many columns."""
    headings = ["speculation", "tokens/s", "TTFT p50", "TTFT p95", "TPOT p50", "TPOT p95", "per draft"]
    rows = [headings, *map(_row, modes)]
    if width < MAX_WIDTH:  # figures below each other rather than cut off
        rows = [list(column) for column in zip(*rows, strict=True)]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, heading in enumerate(rows[0]):
        table.add_column(heading, justify="right" if number else "left", no_wrap=True)
    for row in rows[1:]:
        table.add_row(*row)
    parts: list[RenderableType] = [Text(printable(title), "bold"), table]
    if (speedup := compute_speedup(modes)) is not None:
        parts.append(Text(f"With speculation the server writes {speedup:.2f} times as many tokens a second."))
    parts.append(
        Text("TTFT: to the first token; TPOT: per token after it; per draft: tokens brought.", "dim")
    )
    return Group(*parts)


def _row(mode: ModeResult) -> list[str]:
    rate, length = mode.tokens_per_second, mode.acceptance_length
    return [
        mode.name,
        "-" if rate is None else f"{rate:.1f}",
        *map(_format_seconds, mode.latencies().values()),
        "-" if length is None else f"{length:.2f}",
    ]


def _format_seconds(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def build_document(
    modes: Sequence[ModeResult], model: str, version: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return the figures as JSON, times in seconds."""
    return {
        "model": model,
        "guarantee": version["guarantee"] if version else None,
        "speedup": compute_speedup(modes),
        "modes": [
            {
                "name": mode.name,
                "answers": len(mode.answers),
                "failed": len(mode.failures),
                "seconds": mode.seconds,
                "tokens_per_second": mode.tokens_per_second,
                "tokens_per_draft": mode.acceptance_length,
                **mode.latencies(),
            }
            for mode in modes
        ],
    }


def check_writable(path: Path) -> None:
    """Fail before the work rather than after it. Raises ValueError with a sentence."""
    if path.is_dir() or not path.parent.is_dir():
        reason = "it is a folder" if path.is_dir() else "there is no such folder"
        raise ValueError(f"--json: {path} cannot be written: {reason}.")


def write_document(path: Path, document: Mapping[str, Any]) -> None:
    """Write the figures. Raises ValueError with a sentence."""
    try:
        path.write_text(json.dumps(document, indent=2), encoding="utf-8")
    except OSError as error:
        raise ValueError(f"--json: {path} cannot be written: {error.strerror}.") from error
