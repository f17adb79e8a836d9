"""What an answer says, told apart."""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call, whole: half a call is of no use to a client."""

    name: str
    arguments: str  # a JSON object
    id: str = field(default_factory=lambda: f"call_{uuid.uuid4().hex[:24]}")


@dataclass(frozen=True, slots=True)
class ParsedDelta:
    """A piece of an answer."""

    content: str = ""
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()

    def __add__(self, other: ParsedDelta) -> ParsedDelta:
        return ParsedDelta(
            self.content + other.content, self.reasoning + other.reasoning, self.calls + other.calls
        )

    def __bool__(self) -> bool:
        return bool(self.content or self.reasoning or self.calls)


class Reader(Protocol):
    """Tells text apart piece by piece; how the text is cut into pieces changes nothing."""

    def push(self, text: str) -> ParsedDelta:
        """What more text settles."""

    def flush(self) -> ParsedDelta:
        """What still waited, once no text follows."""


class Trailing:
    """Holds back the white space at the end of a text, which is none of it if nothing follows."""

    def __init__(self, *, strip_start: bool) -> None:
        self._held = ""
        self._strip_start = strip_start

    def push(self, text: str) -> str:
        """The text so far up to its last letter."""
        text = self._held + text
        if self._strip_start:
            text = text.lstrip()
        ends = len(text.rstrip())
        self._held = text[ends:]
        self._strip_start = self._strip_start and ends == 0
        return text[:ends]

    def flush(self) -> str:
        """The white space, where it does belong to the text."""
        held, self._held = self._held, ""
        return held


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


# Python reads NaN and Infinity, and clients in other languages do not.
JSON = json.JSONDecoder(parse_constant=_no_constant)


def call_of(document: Any, offered: Collection[str]) -> ToolCall:
    """A call of one of the tools offered, written as one JSON object. Raises ValueError where it is none."""
    if not isinstance(document, dict) or not isinstance(document.get("name"), str):
        raise ValueError("a call is an object with a name")
    if document["name"] not in offered:
        raise ValueError("there is no such tool")
    arguments = document.get("arguments", document.get("parameters", {}))
    if isinstance(arguments, str):  # some models quote them once more
        arguments = JSON.decode(arguments)
    if not isinstance(arguments, dict):
        raise ValueError("the arguments of a call are an object")
    return ToolCall(document["name"], _told(arguments))


def _told(arguments: dict[str, Any]) -> str:
    """As JSON. Raises ValueError for a number so large that it was read as infinite."""
    text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    halves = any("\ud800" <= letter <= "\udfff" for letter in text)  # of a pair: only escaped they are UTF-8
    return json.dumps(arguments) if halves else text
