"""Tool calls that are the whole answer, as JSON: Llama 3's format, and what a grammar of ours makes a model
write.
"""

from __future__ import annotations

from collections.abc import Collection

from turbo_runtime.parsers.base import JSON, ParsedDelta, ToolCall, call_of

PYTHON_TAG = "<|python_tag|>"
_STARTS = ("{", PYTHON_TAG)


class BareJson:
    """An answer that starts as an object is read when it is complete; if it is no call, it stays text."""

    def __init__(self, offered: Collection[str]) -> None:
        self._offered = offered
        self._text = ""
        self._plain = False  # it has turned out to be no call

    def push(self, text: str) -> ParsedDelta:
        """See `Reader`."""
        if self._plain:
            return ParsedDelta(text)
        self._text += text
        begun = self._text.lstrip()
        if begun.startswith(_STARTS) or any(start.startswith(begun) for start in _STARTS):
            return ParsedDelta()
        self._plain = True
        return ParsedDelta(self._text)

    def flush(self) -> ParsedDelta:
        """See `Reader`."""
        if self._plain:
            return ParsedDelta()
        try:
            return ParsedDelta(calls=_calls(self._text, self._offered))
        except (ValueError, RecursionError):
            return ParsedDelta(self._text)


def _calls(text: str, offered: Collection[str]) -> tuple[ToolCall, ...]:
    """One object, or several with semicolons or white space between them."""
    calls = []
    rest = text.strip().removeprefix(PYTHON_TAG).strip()
    while rest:
        document, end = JSON.raw_decode(rest)
        calls.append(call_of(document, offered))
        if not {"arguments", "parameters"} & document.keys():  # an answer may be an object that has a name
            raise ValueError("a call has arguments")
        rest = rest[end:].lstrip("; \n\t")
    if not calls:
        raise ValueError("there is no call")
    return tuple(calls)
