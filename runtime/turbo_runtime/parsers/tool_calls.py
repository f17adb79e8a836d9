"""Tool calls: between tags with text around them (Hermes' format of Qwen2.5 and Qwen3, and DeepSeek's), or
JSON as the whole answer (Llama 3's format, and what a grammar makes a model write).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Any

from turbo_runtime.parsers.base import ParsedDelta, Parser, StopScanner, ToolCall, TrailingSpace

ToolParser = Callable[[Collection[str]], Parser]  # takes the names of the offered tools
# takes a text and these names; raises ValueError or yields nothing for a text that holds no calls
ReadCalls = Callable[[str, Collection[str]], Iterator[ToolCall]]

PYTHON_TAG = "<|python_tag|>"
HERMES_OPEN, HERMES_CLOSE = "<tool_call>", "</tool_call>"
DEEPSEEK_OPEN, DEEPSEEK_CLOSE = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"

_JSON_STARTS = ("{", PYTHON_TAG)
_DEEPSEEK_CALL = re.compile(r"<｜tool▁call▁begin｜>(.*?)<｜tool▁sep｜>(.*?)<｜tool▁call▁end｜>", re.DOTALL)
_FENCED = re.compile(r"([^\n]+)\n```(?:json)?\n(.*?)\n```\s*", re.DOTALL)


def _reject_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


# Python reads NaN and Infinity, and clients in other languages do not.
_JSON = json.JSONDecoder(parse_constant=_reject_constant)


def _build_call(document: Any, offered: Collection[str]) -> ToolCall:
    """Build a call of one of the offered tools. Raises ValueError where the document is none."""
    if not isinstance(document, dict) or not isinstance(document.get("name"), str):
        raise ValueError("a call is an object with a name")
    if document["name"] not in offered:
        raise ValueError("there is no such tool")
    arguments = document.get("arguments", document.get("parameters", {}))
    if isinstance(arguments, str):  # some models quote them once more
        arguments = _JSON.decode(arguments)
    if not isinstance(arguments, dict):
        raise ValueError("the arguments of a call are an object")
    # raises ValueError, too, for a number so large that it was read as infinite
    text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    if any("\ud800" <= letter <= "\udfff" for letter in text):  # half of a pair is UTF-8 only when escaped
        text = json.dumps(arguments)
    return ToolCall(document["name"], text)


def _read_json_calls(text: str, offered: Collection[str]) -> Iterator[ToolCall]:
    """Read one object, or several with semicolons or white space between them."""
    rest = text.strip().removeprefix(PYTHON_TAG).strip()
    while rest:
        document, end = _JSON.raw_decode(rest)
        yield _build_call(document, offered)
        if not {"arguments", "parameters"} & document.keys():  # an answer may be an object that has a name
            raise ValueError("a call has arguments")
        rest = rest[end:].lstrip("; \n\t")


def _read_hermes_call(body: str, offered: Collection[str]) -> Iterator[ToolCall]:
    """Read `{"name": ..., "arguments": {...}}`."""
    yield _build_call(_JSON.decode(body), offered)


def _read_deepseek_calls(body: str, offered: Collection[str]) -> Iterator[ToolCall]:
    """Read DeepSeek-V3's and R1's `function`, name and fenced JSON, or V3.1's name and bare JSON."""
    for head, rest in _DEEPSEEK_CALL.findall(body):
        fenced = _FENCED.fullmatch(rest)
        name, arguments = fenced.groups() if fenced else (head, rest)
        yield _build_call({"name": name.strip(), "arguments": _JSON.decode(arguments)}, offered)


def _read(read: ReadCalls, text: str, offered: Collection[str]) -> tuple[ToolCall, ...]:
    try:
        return tuple(read(text, offered))
    except (ValueError, RecursionError):
        return ()


class JsonToolCallParser(Parser):
    """Parser of an answer that is JSON, once it is complete; if it is no call, it stays text."""

    def __init__(self, offered: Collection[str]) -> None:
        self._offered = offered
        self._text = ""
        self._is_plain = False  # it is certainly no call

    def push(self, text: str) -> ParsedDelta:
        """See `Parser`."""
        if self._is_plain:
            return ParsedDelta(text)
        self._text += text
        start = self._text.lstrip()
        if start.startswith(_JSON_STARTS) or any(known.startswith(start) for known in _JSON_STARTS):
            return ParsedDelta()
        self._is_plain = True
        return ParsedDelta(self._text)

    def flush(self) -> ParsedDelta:
        """See `Parser`."""
        if self._is_plain:
            return ParsedDelta()
        calls = _read(_read_json_calls, self._text, self._offered)
        return ParsedDelta("" if calls else self._text, calls=calls)


class TaggedToolCallParser(Parser):
    """Parser of calls between `opening` and `closing`; a body that cannot be read stays text."""

    def __init__(self, opening: str, closing: str, read: ReadCalls, offered: Collection[str]) -> None:
        self._opening, self._closing, self._read, self._offered = opening, closing, read, offered
        self._scanner = StopScanner([opening])
        self._body: str | None = None  # of the call in progress
        self._space = TrailingSpace(strip_start=False)

    def push(self, text: str) -> ParsedDelta:
        """See `Parser`."""
        text, has_tag = self._scanner.push(text)
        if self._body is None:
            parsed = ParsedDelta(self._space.push(text))
            if not has_tag:
                return parsed
            self._body = ""
            return parsed + self._scan_for(self._closing)
        self._body += text
        if not has_tag:
            return ParsedDelta()
        parsed = self._close(self._closing)
        return parsed + self._scan_for(self._opening)

    def flush(self) -> ParsedDelta:
        """See `Parser`."""
        rest = self._scanner.flush()
        if self._body is None:
            return ParsedDelta(self._space.push(rest) + self._space.flush())
        self._body += rest
        return self._close("")  # a stop token may stand for the closing tag

    def _scan_for(self, tag: str) -> ParsedDelta:
        rest, self._scanner = self._scanner.rest, StopScanner([tag])
        return self.push(rest)

    def _close(self, closing: str) -> ParsedDelta:
        body, self._body = self._body or "", None
        calls = _read(self._read, body, self._offered)
        if not calls:
            return ParsedDelta(self._space.flush() + self._opening + body + closing)
        self._space = TrailingSpace(strip_start=True)  # white space around calls is not part of the text
        return ParsedDelta(calls=calls)


hermes = partial(TaggedToolCallParser, HERMES_OPEN, HERMES_CLOSE, _read_hermes_call)  # a tag for each call
deepseek = partial(TaggedToolCallParser, DEEPSEEK_OPEN, DEEPSEEK_CLOSE, _read_deepseek_calls)  # one for all

# A mark in a template, and the parser of what the model then writes; the first match counts.
TOOL_PARSERS: tuple[tuple[str, ToolParser], ...] = (
    (DEEPSEEK_OPEN, deepseek),
    (HERMES_OPEN, hermes),
    (PYTHON_TAG, JsonToolCallParser),
    ('"parameters": dictionary', JsonToolCallParser),  # Llama 3.2's own words to the model
)
