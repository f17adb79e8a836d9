"""Parts of an answer, and what its parsers share: each is pushed text as it comes, however it is cut."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field


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


class Parser:
    """Incremental parser; for this one everything is content."""

    is_reasoning = False  # whether the answer is inside its reasoning

    def push(self, text: str) -> ParsedDelta:
        """Return what more text settles."""
        return ParsedDelta(text)

    def flush(self) -> ParsedDelta:
        """Return what was held back, once no text follows."""
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


class StopScanner:
    """Filter that passes text until a stop string, or a tag, appears, and holds back what may begin one.

    `match` is the one that appeared, and `rest` the text behind it in the same push.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._pending = ""
        self.match: str | None = None
        self.rest = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Return the text that certainly precedes any stop string, and whether one appeared."""
        text = self._pending + text
        starts = [(start, stop) for stop in self._stops if (start := text.find(stop)) >= 0]
        if starts:
            start, self.match = min(starts)
            self._pending, self.rest = "", text[start + len(self.match) :]
            return text[:start], True
        end = len(text) - max((_overlap(text, stop) for stop in self._stops), default=0)
        self._pending = text[end:]
        return text[:end], False

    def flush(self) -> str:
        """Return the text that was held back, once no text follows."""
        pending, self._pending = self._pending, ""
        return pending


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop` without completing it."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
