"""Parts of an answer, and what its parsers share."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A complete call: half a call is of no use to a client."""

    name: str
    arguments: str  # a JSON object
    id: str = field(default_factory=lambda: f"call_{uuid.uuid4().hex[:24]}")


@dataclass(frozen=True, slots=True)
class ParsedDelta:
    """Part of an answer."""

    content: str = ""
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()

    def __add__(self, other: ParsedDelta) -> ParsedDelta:
        return ParsedDelta(
            self.content + other.content, self.reasoning + other.reasoning, self.calls + other.calls
        )

    def __bool__(self) -> bool:
        return bool(self.content or self.reasoning or self.calls)


class Parser(Protocol):
    """Incremental parser; how the text is cut into pushes changes nothing."""

    def push(self, text: str) -> ParsedDelta:
        """Return what more text settles."""

    def flush(self) -> ParsedDelta:
        """Return what was held back, once no text follows."""


class PlainTextParser:
    """Parser for which everything is content."""

    def push(self, text: str) -> ParsedDelta:
        """See `Parser`."""
        return ParsedDelta(text)

    def flush(self) -> ParsedDelta:
        """See `Parser`."""
        return ParsedDelta()


class TrailingSpace:
    """Filter that holds back the white space at the end of a text until text follows."""

    def __init__(self, *, strip_start: bool) -> None:
        self._pending = ""
        self._strip_start = strip_start

    def push(self, text: str) -> str:
        """Return the text so far up to its last letter."""
        text = self._pending + text
        if self._strip_start:
            text = text.lstrip()
        end = len(text.rstrip())
        self._pending = text[end:]
        self._strip_start = self._strip_start and end == 0
        return text[:end]

    def flush(self) -> str:
        """Return the white space, where it does belong to the text."""
        pending, self._pending = self._pending, ""
        return pending
