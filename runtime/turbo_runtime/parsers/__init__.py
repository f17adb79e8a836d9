"""Parsers of models' reasoning and tool calls, selected by the text of the chat template."""

from __future__ import annotations

from dataclasses import replace

from turbo_runtime.parsers.base import ParsedDelta, Parser, StopScanner
from turbo_runtime.parsers.reasoning import ReasoningParser
from turbo_runtime.parsers.tool_calls import TOOL_PARSERS, ToolParser

__all__ = ["OutputParser", "ParsedDelta", "StopScanner", "find_tool_parser"]


def find_tool_parser(template: str) -> ToolParser | None:
    """Find the mark of a known format in the chat template: no file of a model names its format."""
    return next((parser for mark, parser in TOOL_PARSERS if mark in template), None)


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
