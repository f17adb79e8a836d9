"""Parsers of models' reasoning and tool calls, selected by the text of the chat template."""

from __future__ import annotations

import json
import re
from dataclasses import replace

from turbo_runtime.messages import Grammar
from turbo_runtime.parsers.base import ParsedDelta, Parser, StopScanner, TrailingSpace
from turbo_runtime.parsers.tool_calls import TOOL_PARSERS, ToolParser

__all__ = ["CLOSE", "OPEN", "OutputParser", "ParsedDelta", "StopScanner", "add_reasoning", "find_tool_parser"]

# As DeepSeek-R1 and Qwen3 write it: the thoughts between these tags, then the answer
OPEN, CLOSE = "<think>", "</think>"
_ESCAPE_OR_SLASH = re.compile(r"\\.|/", re.DOTALL)


def find_tool_parser(template: str) -> ToolParser | None:
    """Find the mark of a known format in the chat template: no file of a model names its format."""
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
