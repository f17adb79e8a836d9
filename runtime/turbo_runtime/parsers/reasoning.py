"""Reasoning as DeepSeek-R1 and Qwen3 write it: `<think>`, the thoughts, `</think>`, the answer."""

from __future__ import annotations

import json
import re

from turbo_runtime.messages import Grammar
from turbo_runtime.parsers.base import ParsedDelta, Reader, Trailing
from turbo_runtime.parsers.stop_strings import StopScanner

OPEN, CLOSE = "<think>", "</think>"
_SLASH_OR_PAIR = re.compile(r"\\.|/", re.DOTALL)  # a pair: a backslash and what it escapes


class PlainText:
    """All is content."""

    def push(self, text: str) -> ParsedDelta:
        """See `Reader`."""
        return ParsedDelta(text)

    def flush(self) -> ParsedDelta:
        """See `Reader`."""
        return ParsedDelta()


class Thinking:
    """Takes the reasoning out and hands the rest to `content`.

    `prompt` tells where the answer starts: some templates open the thoughts themselves, or close them when
    they are switched off.
    """

    def __init__(self, prompt: str, content: Reader) -> None:
        self._content = content
        end = prompt.rstrip()
        self._state = "inside" if end.endswith(OPEN) else "after" if end.endswith(CLOSE) else "before"
        self._start = ""  # white space, and what may be the beginning of a tag
        self._close = StopScanner([CLOSE])
        self._thoughts = Trailing(strip_start=True)
        self._lead = True  # the white space between thoughts and answer is neither's

    @property
    def reasoning(self) -> bool:
        """Whether the answer is in the midst of its thoughts."""
        return self._state == "inside"

    def push(self, text: str) -> ParsedDelta:
        """See `Reader`."""
        if self._state == "before":
            self._start += text
            begun = self._start.lstrip()
            if not begun.startswith(OPEN):
                if OPEN.startswith(begun):
                    return ParsedDelta()
                self._state, self._lead = "after", False
                return self._content.push(self._start)
            self._state, text = "inside", begun.removeprefix(OPEN)
        if self._state == "inside":
            thought, closed = self._close.push(text)
            said = ParsedDelta(reasoning=self._thoughts.push(thought))
            if not closed:
                return said
            self._state = "after"
            return said + self.push(self._close.after)
        if self._lead:
            text = text.lstrip()
            self._lead = not text
        return self._content.push(text)

    def flush(self) -> ParsedDelta:
        """See `Reader`."""
        if self._state == "before":
            return self._content.push(self._start) + self._content.flush()
        return ParsedDelta(reasoning=self._thoughts.push(self._close.flush())) + self._content.flush()


def after_thinking(grammar: Grammar) -> Grammar | None:
    """The grammar behind thoughts that the prompt has opened: what is asked for is the answer's form.

    None for a grammar in Lark's notation, which has rules of its own names.
    """
    if grammar.kind == "lark":
        return None
    if grammar.kind == "regex":
        answer = "/" + _SLASH_OR_PAIR.sub(_escaped, grammar.text) + "/"
    else:
        answer = "%json " + (grammar.text or json.dumps({"type": "object"}))
    rules = (
        "start: thoughts space answer",
        f'thoughts[suffix="{CLOSE}"]: /(?s:.*)/',
        "space: /[ \\n]{0,4}/",
        f"answer: {answer}",
    )
    return Grammar("lark", "\n".join(rules))


def _escaped(found: re.Match[str]) -> str:
    """A slash would end the expression; one that is escaped does not."""
    return r"\/" if found[0] == "/" else found[0]
