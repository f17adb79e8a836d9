"""Settings of the capture, from a file that is followed while serving, and the redaction of a prompt."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import regex

MIB = 1 << 20
REDACTED = "[redacted]"
PATTERN_SECONDS = 0.5  # limit of one pattern on one prompt; a prompt that takes longer is not kept


class CaptureError(ValueError):
    """Settings that cannot be used; the message is a sentence with the remedy."""


@dataclass(frozen=True, slots=True)
class CaptureSettings:
    """The fields of the file, where they are in camel case."""

    folder: str
    sample_fraction: float = 1.0  # of the requests
    max_mib: int = 1024  # of the folder, all servers' segments together
    max_age_hours: float = 720.0
    redact: tuple[str, ...] = ()  # patterns; a match becomes REDACTED before anything is written

    @property
    def max_bytes(self) -> int:
        """Limit of the folder in bytes."""
        return self.max_mib * MIB

    @property
    def max_age_seconds(self) -> float:
        """Limit of a prompt's age in seconds."""
        return self.max_age_hours * 3600


def read_settings(path: Path) -> CaptureSettings:
    """Read and check the file. Raises CaptureError."""
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
    for name, low, high in (("sample_fraction", 0, 1), ("max_mib", 1, 1 << 30), ("max_age_hours", 0.01, 1e6)):
        value = values.get(name, low)
        if isinstance(value, bool) or not isinstance(value, int if name == "max_mib" else (int, float)):
            raise CaptureError(f"{path}: {_camel(name)} must be a number, not {value!r}")
        if not low <= value <= high:
            raise CaptureError(f"{path}: {_camel(name)} must lie between {low:g} and {high:g}, not {value}")
    patterns = values.get("redact", [])
    if not isinstance(patterns, list) or not all(isinstance(item, str) and item for item in patterns):
        raise CaptureError(f"{path}: redact must be a list of patterns, not {patterns!r:.80}")
    for number, pattern in enumerate(patterns):
        try:
            regex.compile(pattern)
        except regex.error as error:
            raise CaptureError(f"{path}: redact[{number}] is no regular expression: {error}") from error
    return CaptureSettings(**{**values, "redact": tuple(patterns)})


def redact(text: str, patterns: Sequence[str]) -> str | None:
    """Replace what the patterns match; None where one does not end, and the prompt must not be kept."""
    for pattern in patterns:
        try:
            # concurrent: requests must not wait for a pattern
            text = regex.sub(pattern, REDACTED, text, concurrent=True, timeout=PATTERN_SECONDS)
        except TimeoutError:
            return None
    return text


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(map(str.capitalize, rest))
