"""Strings found across token boundaries: stop strings, and the tags of a model's output format."""

from __future__ import annotations

from collections.abc import Sequence


class StopScanner:
    """Passes text through until a stop string appears, and holds back what may be the beginning of one.

    `found` is the one that appeared, and `after` the text that came behind it with the same piece.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None
        self.after = ""

    def push(self, text: str) -> tuple[str, bool]:
        """The text that is certain to precede any stop string, and whether one has been found: then nothing
        follows.
        """
        text = self._held + text
        starts = [(start, stop) for stop in self._stops if (start := text.find(stop)) >= 0]
        if starts:
            start, self.found = min(starts)
            self._held, self.after = "", text[start + len(self.found) :]
            return text[:start], True
        kept = max((_overlap(text, stop) for stop in self._stops), default=0)
        certain = len(text) - kept
        self._held = text[certain:]
        return text[:certain], False

    def flush(self) -> str:
        """The text that was held back, once no text follows."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop` without completing it."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
