"""Tool calls between tags, with text around them: Hermes' format (Qwen2.5, Qwen3) and DeepSeek's."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

from turbo_runtime.parsers.base import JSON, ParsedDelta, ToolCall, Trailing, call_of
from turbo_runtime.parsers.stop_strings import StopScanner

ReadCalls = Callable[[str], tuple[ToolCall, ...]]  # raises ValueError for a body that holds no calls

HERMES_OPEN, HERMES_CLOSE = "<tool_call>", "</tool_call>"
DEEPSEEK_OPEN, DEEPSEEK_CLOSE = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"

_DEEPSEEK_CALL = re.compile(r"<｜tool▁call▁begin｜>(.*?)<｜tool▁sep｜>(.*?)<｜tool▁call▁end｜>", re.DOTALL)
_FENCED = re.compile(r"([^\n]+)\n```(?:json)?\n(.*?)\n```\s*", re.DOTALL)


class Tagged:
    """Text between `opening` and `closing` is calls; a body that cannot be read stays text."""

    def __init__(self, opening: str, closing: str, read: ReadCalls) -> None:
        self._opening, self._closing, self._read = opening, closing, read
        self._scanner = StopScanner([opening])
        self._body: str | None = None  # of the call in progress
        self._space = Trailing(strip_start=False)

    def push(self, text: str) -> ParsedDelta:
        """See `Reader`."""
        passed, found = self._scanner.push(text)
        if self._body is None:
            said = ParsedDelta(self._space.push(passed))
            if not found:
                return said
            self._body = ""
            return said + self._next(self._closing)
        self._body += passed
        if not found:
            return ParsedDelta()
        said = self._close(self._closing)
        return said + self._next(self._opening)

    def flush(self) -> ParsedDelta:
        """See `Reader`."""
        rest = self._scanner.flush()
        if self._body is None:
            return ParsedDelta(self._space.push(rest) + self._space.flush())
        self._body += rest
        return self._close("")  # a stop token may stand for the closing tag

    def _next(self, tag: str) -> ParsedDelta:
        after, self._scanner = self._scanner.after, StopScanner([tag])
        return self.push(after)

    def _close(self, closing: str) -> ParsedDelta:
        body, self._body = self._body or "", None
        try:
            calls = self._read(body)
        except (ValueError, RecursionError):
            return ParsedDelta(self._space.flush() + self._opening + body + closing)
        self._space = Trailing(strip_start=True)  # white space around calls is none of the text
        return ParsedDelta(calls=calls)


def hermes(offered: Collection[str]) -> Tagged:
    """`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, one tag for each call."""
    return Tagged(HERMES_OPEN, HERMES_CLOSE, lambda body: (call_of(JSON.decode(body), offered),))


def deepseek(offered: Collection[str]) -> Tagged:
    """DeepSeek-V3 and R1 write `function`, the name and fenced JSON; V3.1 the name and bare JSON."""
    return Tagged(DEEPSEEK_OPEN, DEEPSEEK_CLOSE, lambda body: _deepseek_calls(body, offered))


def _deepseek_calls(body: str, offered: Collection[str]) -> tuple[ToolCall, ...]:
    found = _DEEPSEEK_CALL.findall(body)
    if not found:
        raise ValueError("there is no call")
    return tuple(_deepseek_call(head, rest, offered) for head, rest in found)


def _deepseek_call(head: str, rest: str, offered: Collection[str]) -> ToolCall:
    fenced = _FENCED.fullmatch(rest)
    name, arguments = fenced.groups() if fenced else (head, rest)
    return call_of({"name": name.strip(), "arguments": JSON.decode(arguments)}, offered)
