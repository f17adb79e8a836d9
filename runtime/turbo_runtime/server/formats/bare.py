"""Tool calls that are the whole answer, as JSON: Llama 3's format, and what a grammar of ours makes a model
write.
"""

from __future__ import annotations

import json

from turbo_runtime.server.formats.said import Said, ToolCall, call_of

PYTHON_TAG = "<|python_tag|>"
_STARTS = ("{", PYTHON_TAG)


class BareJson:
    """An answer that starts as an object is read when it is complete; if it is no call, it stays text."""

    def __init__(self) -> None:
        self._text = ""
        self._plain = False  # it has turned out to be no call

    def push(self, text: str) -> Said:
        """See `Reader`."""
        if self._plain:
            return Said(text)
        self._text += text
        begun = self._text.lstrip()
        if begun.startswith(_STARTS) or any(start.startswith(begun) for start in _STARTS):
            return Said()
        self._plain = True
        return Said(self._text)

    def flush(self) -> Said:
        """See `Reader`."""
        if self._plain:
            return Said()
        try:
            return Said(calls=_calls(self._text))
        except (ValueError, RecursionError):
            return Said(self._text)


def _calls(text: str) -> tuple[ToolCall, ...]:
    """One object, or several with semicolons or white space between them."""
    decoder, calls = json.JSONDecoder(), []
    rest = text.strip().removeprefix(PYTHON_TAG).strip()
    while rest:
        document, end = decoder.raw_decode(rest)
        calls.append(call_of(document))
        rest = rest[end:].lstrip("; \n\t")
    if not calls:
        raise ValueError("there is no call")
    return tuple(calls)
