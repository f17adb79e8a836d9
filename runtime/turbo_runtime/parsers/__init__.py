"""How models write reasoning and tool calls, by the text of their chat template."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from turbo_runtime.parsers.base import ParsedDelta, Reader, ToolCall
from turbo_runtime.parsers.json_tool_calls import PYTHON_TAG, BareJson
from turbo_runtime.parsers.reasoning import CLOSE, PlainText, Thinking
from turbo_runtime.parsers.tagged_tool_calls import DEEPSEEK_OPEN, HERMES_OPEN, deepseek, hermes

__all__ = ["AnswerReader", "MakeReader", "OutputFormat", "ParsedDelta", "Reader", "ToolCall"]

MakeReader = Callable[[Collection[str]], Reader]  # of calls of the tools with these names

# A mark in a template, and the reader of what the model then writes; the first that is found counts.
_CALLS: tuple[tuple[str, MakeReader], ...] = (
    (DEEPSEEK_OPEN, deepseek),
    (HERMES_OPEN, hermes),
    (PYTHON_TAG, BareJson),
    ('"parameters": dictionary', BareJson),  # Llama 3.2's own words to the model
)


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """What a model's template says of its answers."""

    reasons: bool = False
    calls: MakeReader | None = None  # None: no known way of writing calls

    @classmethod
    def of(cls, template: str) -> OutputFormat:
        """By marks in the template's text: no file of a model names its format."""
        return cls(
            reasons=CLOSE in template,
            calls=next((make for mark, make in _CALLS if mark in template), None),
        )


class AnswerReader:
    """Reads one answer. `complete` says that nothing after this is wanted: the one call has been made."""

    def __init__(self, calls: Reader | None, thinking_after: str | None, *, single: bool = False) -> None:
        self._content: Reader = calls or PlainText()
        self._thinking = None if thinking_after is None else Thinking(thinking_after, self._content)
        self._single = single
        self.called = False

    @property
    def reasoning(self) -> bool:
        """Whether the answer is in the midst of its thoughts."""
        return self._thinking is not None and self._thinking.reasoning

    @property
    def complete(self) -> bool:
        """Whether the answer has made the only call that it may make."""
        return self._single and self.called

    def push(self, text: str) -> ParsedDelta:
        """What more text settles."""
        return self._told((self._thinking or self._content).push(text))

    def flush(self) -> ParsedDelta:
        """What still waited, once no text follows."""
        return self._told((self._thinking or self._content).flush())

    def _told(self, said: ParsedDelta) -> ParsedDelta:
        if self.complete:
            return ParsedDelta()
        self.called = self.called or bool(said.calls)
        return ParsedDelta(said.content, said.reasoning, said.calls[:1]) if self._single else said
