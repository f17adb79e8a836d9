"""Strings found across token boundaries: stop strings, and the tags of a model's output format."""

from __future__ import annotations

from collections.abc import Sequence


class StopScanner:
    """Filter that passes text until a stop string appears, and holds back what may be the start of one.

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
