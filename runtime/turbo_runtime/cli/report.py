"""The table of `turbo bench`, and the same as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from turbo_runtime.cli.figures import Pass
from turbo_runtime.client.terminal import printable

WIDE = 80  # columns; that the table has at most
SHARES = {"p50": 0.5, "p95": 0.95}


def speedup(passes: Sequence[Pass]) -> float | None:
    """Tokens per second of the first mode over those of the second; None where there is no second."""
    if len(passes) < 2:
        return None
    one, other = (each.tokens_per_second for each in passes[:2])
    return one / other if one is not None and other else None


def report(
    passes: Sequence[Pass],
    model: str,
    url: str,
    about: Mapping[str, Any] | None,
    requests: int,
    concurrency: int,
    width: int,
) -> RenderableType:
    """For a terminal of so many columns."""
    promise = f", guarantee {about['guarantee']}" if about else ""
    title = f"{model} at {url}{promise}\n{requests} requests, {concurrency} at a time"
    headings = ["speculation", "tokens/s", "TTFT p50", "TTFT p95", "TPOT p50", "TPOT p95", "per draft"]
    rows = [headings, *(_row(one) for one in passes)]
    if width < WIDE:  # figures below each other rather than cut off
        rows = [list(column) for column in zip(*rows, strict=True)]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, heading in enumerate(rows[0]):
        table.add_column(heading, justify="right" if number else "left", no_wrap=True)
    for row in rows[1:]:
        table.add_row(*row)
    parts: list[RenderableType] = [Text(printable(title), "bold"), table]
    if (ratio := speedup(passes)) is not None:
        parts.append(Text(f"With speculation the server writes {ratio:.2f} times as many tokens a second."))
    legend = "TTFT: to the first token; TPOT: per token after it; per draft: tokens brought."
    parts.append(Text(legend, "dim"))
    return Group(*parts)


def _row(one: Pass) -> list[str]:
    times = [one.to_first(share) for share in SHARES.values()]
    times += [one.per_token(share) for share in SHARES.values()]
    return [
        one.name,
        "-" if one.tokens_per_second is None else f"{one.tokens_per_second:.1f}",
        *[_time(seconds) for seconds in times],
        "-" if one.acceptance_length is None else f"{one.acceptance_length:.2f}",
    ]


def document(passes: Sequence[Pass], model: str, about: Mapping[str, Any] | None) -> dict[str, Any]:
    """Times in seconds."""
    return {
        "model": model,
        "guarantee": about["guarantee"] if about else None,
        "speedup": speedup(passes),
        "modes": [
            {
                "name": one.name,
                "answers": len(one.answers),
                "failed": len(one.failures),
                "seconds": one.seconds,
                "tokens_per_second": one.tokens_per_second,
                "tokens_per_draft": one.acceptance_length,
                **{f"ttft_{name}": one.to_first(share) for name, share in SHARES.items()},
                **{f"tpot_{name}": one.per_token(share) for name, share in SHARES.items()},
            }
            for one in passes
        ],
    }


def check_writable(path: Path) -> None:
    """Before the work rather than after it. Raises ValueError with a sentence."""
    if path.is_dir() or not path.parent.is_dir():
        reason = "it is a folder" if path.is_dir() else "there is no such folder"
        raise ValueError(f"--json: {path} cannot be written: {reason}.")


def write(path: Path, figures: Mapping[str, Any]) -> None:
    """Raises ValueError with a sentence."""
    try:
        path.write_text(json.dumps(figures, indent=2), encoding="utf-8")
    except OSError as error:
        raise ValueError(f"--json: {path} cannot be written: {error.strerror}.") from error


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"
