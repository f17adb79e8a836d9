"""A condition that is computed, before it is compared with the stored one."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Literal

MAX_QUOTED = 500  # characters of another program's message


@dataclass(frozen=True, slots=True)
class ConditionState:
    """A condition without its bookkeeping: observed generation and transition time."""

    status: Literal["True", "False", "Unknown"]
    reason: StrEnum | str
    message: str


true = partial(ConditionState, "True")
false = partial(ConditionState, "False")
unknown = partial(ConditionState, "Unknown")


def sentence(text: str | None) -> str:
    """Another program's message on one line, bounded, with a full stop; empty stays empty."""
    return bounded(_without_echo(" ".join((text or "").split())), MAX_QUOTED)


def bounded(text: str, limit: int) -> str:
    """A text on one line of at most `limit` characters, and a full stop; empty stays empty."""
    line = " ".join(text.split())
    line = line if len(line) <= limit else f"{line[: limit - 3]}..."
    return line if not line or line[-1] in ".!?" else f"{line}."


def _without_echo(line: str) -> str:
    """Kubernetes repeats the end of some sentences: `claim "models" not found. not found.`"""
    parts: list[str] = []
    for part in line.split(". "):
        said = part.rstrip(".")
        if not (said and parts and parts[-1].endswith(said)):
            parts.append(part)
    return ". ".join(parts)
