"""What must not be kept is taken out before anything is written. Pure but for the clock of a pattern."""

from __future__ import annotations

from collections.abc import Sequence

import regex

REDACTED = "[redacted]"
PATTERN_SECONDS = 0.5  # that one pattern may take on one prompt; what takes longer is not kept


class Redaction:
    """Compiled patterns."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._patterns = [regex.compile(pattern) for pattern in patterns]

    def __call__(self, text: str) -> str | None:
        """None where a pattern does not come to an end: the prompt must not be kept."""
        for pattern in self._patterns:
            try:
                # concurrent: whoever answers requests must not wait for a pattern
                text = pattern.sub(REDACTED, text, concurrent=True, timeout=PATTERN_SECONDS)
            except TimeoutError:
                return None
        return text
