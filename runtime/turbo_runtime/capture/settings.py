"""What is captured, as a small file says that is followed while serving: a mounted ConfigMap."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import regex

MIB = 1 << 20


class CaptureError(ValueError):
    """One sentence: what is wrong, and what to write instead."""


@dataclass(frozen=True, slots=True)
class CaptureSettings:
    """The names are those of the file, in camel case there."""

    folder: str
    sample_fraction: float = 1.0  # of the requests
    max_mib: int = 1024  # of the folder, all servers' segments together
    max_age_hours: float = 720.0
    redact: tuple[str, ...] = ()  # patterns; what they match becomes REDACTED before anything is written

    @property
    def max_bytes(self) -> int:
        """Of the folder."""
        return self.max_mib * MIB

    @property
    def max_age_seconds(self) -> float:
        """Of a captured prompt."""
        return self.max_age_hours * 3600


def read_settings(path: Path) -> CaptureSettings:
    """Raises CaptureError."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CaptureError(f"{path} cannot be read: {error}; write a JSON object with 'folder'") from error
    if not isinstance(document, dict):
        raise CaptureError(f"{path}: write a JSON object with 'folder', not {type(document).__name__}")
    names = {_camel(field.name): field.name for field in dataclasses.fields(CaptureSettings)}
    if unknown := sorted(set(document) - set(names)):
        raise CaptureError(f"{path}: there is no '{unknown[0]}'; it knows {', '.join(names)}")
    if not isinstance(document.get("folder"), str) or not document["folder"]:
        raise CaptureError(f"{path}: folder must name a folder, not {document.get('folder')!r}")
    values = {names[name]: value for name, value in document.items()}
    for name, least, most in (
        ("sample_fraction", 0, 1),
        ("max_mib", 1, 1 << 30),
        ("max_age_hours", 0.01, 1e6),
    ):
        value = values.get(name, least)
        whole = name == "max_mib"
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
            raise CaptureError(f"{path}: {_camel(name)} must be a number, not {value!r}")
        if not least <= value <= most:
            raise CaptureError(f"{path}: {_camel(name)} must lie between {least:g} and {most:g}, not {value}")
    values["redact"] = _patterns(path, values.get("redact", []))
    return CaptureSettings(**values)


def _patterns(path: Path, given: Any) -> tuple[str, ...]:
    if not isinstance(given, list) or not all(isinstance(each, str) and each for each in given):
        raise CaptureError(f"{path}: redact must be a list of patterns, not {given!r:.80}")
    for number, pattern in enumerate(given):
        try:
            regex.compile(pattern)
        except regex.error as error:
            raise CaptureError(f"{path}: redact[{number}] is no regular expression: {error}") from error
    return tuple(given)


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)
