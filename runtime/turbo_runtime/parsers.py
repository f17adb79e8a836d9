"""Parsers of models' reasoning and tool calls, selected by the text of the chat template. Each is pushed text
as it comes, however it is cut.

Tool calls stand between tags with text around them (Hermes' format of Qwen2.5 and Qwen3, and DeepSeek's), or
are JSON as the whole answer (Llama 3's format, and what a grammar makes a model write).
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from turbo_runtime.messages import Grammar

# As DeepSeek-R1 and Qwen3 write it: the thoughts between these tags, then the answer
OPEN, CLOSE = "<think>", "</think>"
_ESCAPE_OR_SLASH = re.compile(r"\\.|/", re.DOTALL)

PYTHON_TAG = "<|python_tag|>"
HERMES_OPEN, HERMES_CLOSE = "<tool_call>", "</tool_call>"
DEEPSEEK_OPEN, DEEPSEEK_CLOSE = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"

_JSON_STARTS = ("{", PYTHON_TAG)
_DEEPSEEK_CALL = re.compile(r"<｜tool▁call▁begin｜>(.*?)<｜tool▁sep｜>(.*?)<｜tool▁call▁end｜>", re.DOTALL)
_FENCED = re.compile(r"([^\n]+)\n```(?:json)?\n(.*?)\n```\s*", re.DOTALL)


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


class Filter:
    """Filter of a text that comes in parts; it holds back what the next part may change."""

    _pending = ""

    def flush(self) -> str:
        """Return the text that was held back, once no text follows."""
        pending, self._pending = self._pending, ""
        return pending


class TrailingSpace(Filter):
    """Filter that holds back the white space at the end of a text until text follows."""

    def __init__(self, *, strip_start: bool) -> None:
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


class StopScanner(Filter):
    """Filter that passes text until a stop string, or a tag, appears, and holds back what may begin one.

    `match` is the one that appeared, and `rest` the text behind it in the same push.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
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
        limits = ((stop, min(len(stop), len(text) + 1)) for stop in self._stops)
        sizes = (size for stop, limit in limits for size in range(1, limit) if text.endswith(stop[:size]))
        end = len(text) - max(sizes, default=0)
        self._pending = text[end:]
        return text[:end], False


ToolParser = Callable[[Collection[str]], Parser]  # takes the names of the offered tools
# takes a text and these names; raises ValueError or yields nothing for a text that holds no calls
ReadCalls = Callable[[str, Collection[str]], Iterator[ToolCall]]


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


def find_tool_parser(template: str, *, is_required: bool = False) -> ToolParser | None:
    """Find the mark of a known format in the chat template: no file of a model names its format."""
    if is_required:  # then a grammar makes it write JSON
        return JsonToolCallParser
    return next((parser for mark, parser in TOOL_PARSERS if mark in template), None)


class ReasoningParser(Parser):
    """Parser that separates the reasoning and hands the rest to `content`.

    Some templates open the reasoning themselves, or close it when it is switched off.
    """

    def __init__(self, prompt_end: str, content: Parser) -> None:
        self._content = content
        end = prompt_end.rstrip()
        self.is_reasoning = end.endswith(OPEN)
        self._may_reason = not end.endswith((OPEN, CLOSE))  # the answer has not begun
        self._start = ""  # white space, and what may be the start of a tag
        self._close = StopScanner([CLOSE])
        self._thoughts = TrailingSpace(strip_start=True)
        self._strip_lead = True  # the white space between reasoning and answer belongs to neither

    def push(self, text: str) -> ParsedDelta:
        """See `Parser`."""
        if self._may_reason:
            self._start += text
            start = self._start.lstrip()
            if OPEN.startswith(start) and start != OPEN:
                return ParsedDelta()
            self._may_reason, self.is_reasoning = False, start.startswith(OPEN)
            if not self.is_reasoning:
                self._strip_lead = False
                return self._content.push(self._start)
            text = start.removeprefix(OPEN)
        if self.is_reasoning:
            thoughts, is_closed = self._close.push(text)
            parsed = ParsedDelta(reasoning=self._thoughts.push(thoughts))
            if not is_closed:
                return parsed
            self.is_reasoning = False
            return parsed + self.push(self._close.rest)
        if self._strip_lead:
            text = text.lstrip()
            self._strip_lead = not text
        return self._content.push(text)

    def flush(self) -> ParsedDelta:
        """See `Parser`."""
        if self._may_reason:
            return self._content.push(self._start) + self._content.flush()
        return ParsedDelta(reasoning=self._thoughts.push(self._close.flush())) + self._content.flush()


def add_reasoning(grammar: Grammar) -> Grammar | None:
    """Allow reasoning, which the prompt has opened, before the answer; None for a Lark grammar."""
    if grammar.kind == "lark":
        return None
    if grammar.kind == "regex":  # a slash would end the expression; an escaped one does not
        escaped = _ESCAPE_OR_SLASH.sub(lambda match: r"\/" if match[0] == "/" else match[0], grammar.text)
        output = f"/{escaped}/"
    else:
        output = "%json " + (grammar.text or json.dumps({"type": "object"}))
    rules = (
        "start: thoughts space answer",
        f'thoughts[suffix="{CLOSE}"]: /(?s:.*)/',
        "space: /[ \\n]{0,4}/",
        f"answer: {output}",
    )
    return Grammar("lark", "\n".join(rules))


class OutputParser:
    """Parser of one answer. `prompt_end` shows whether the prompt opens the reasoning; None for none."""

    def __init__(
        self, tool_parser: Parser | None, prompt_end: str | None, *, single_call: bool = False
    ) -> None:
        content = tool_parser or Parser()
        self._parser = content if prompt_end is None else ReasoningParser(prompt_end, content)
        self._single_call = single_call
        self.has_called = False

    @property
    def is_reasoning(self) -> bool:
        """Whether the answer is inside its reasoning."""
        return self._parser.is_reasoning

    @property
    def is_complete(self) -> bool:
        """Whether the answer has made the only call that it may make, so that the rest is ignored."""
        return self._single_call and self.has_called

    def push(self, text: str) -> ParsedDelta:
        """Return what more text settles."""
        return self._limit(self._parser.push(text))

    def flush(self) -> ParsedDelta:
        """Return what was held back, once no text follows."""
        return self._limit(self._parser.flush())

    def _limit(self, parsed: ParsedDelta) -> ParsedDelta:
        if self.is_complete:
            return ParsedDelta()
        self.has_called = self.has_called or bool(parsed.calls)
        return replace(parsed, calls=parsed.calls[:1]) if self._single_call else parsed
