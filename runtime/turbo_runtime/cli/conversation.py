"""Messages of a chat, and the commands that change how it goes on. No terminal, no network."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

HELP = """\
/new               forget what was said
/system TEXT       tell the model who it is; without TEXT, nobody
/set NAME VALUE    send a field with each request, such as temperature 0.2 or speculation off; without VALUE,
                   no longer
/quit              leave, as Ctrl-D does
Ctrl-C stops an answer; a line that ends with \\ goes on in the next."""

OWN_FIELDS = frozenset({"messages", "stream", "stream_options", "n"})


@dataclass(slots=True)
class Conversation:
    """The messages so far and the fields of the requests."""

    model: str
    fields: dict[str, Any] = field(default_factory=dict)
    messages: list[dict[str, str]] = field(default_factory=list)
    system: str = ""

    def add_message(self, text: str, stream_options: dict[str, bool]) -> dict[str, Any]:
        """Add the user's message, and return the body of the request for the answer."""
        self.messages.append({"role": "user", "content": text})
        system = [{"role": "system", "content": self.system}] if self.system else []
        return {
            "model": self.model,
            **self.fields,
            "messages": [*system, *self.messages],
            "stream_options": stream_options,
        }

    def add_answer(self, text: str) -> None:
        """Keep an answer, also one that was stopped; one without text takes its question with it."""
        if text:
            self.messages.append({"role": "assistant", "content": text})
        else:
            self.messages.pop()

    def run_command(self, line: str) -> str | None:
        """Run a line that starts with a slash; returns what to show, or None to leave."""
        name, _, rest = line.partition(" ")
        rest = rest.strip()
        if name == "/quit":
            return None
        if name == "/help":
            return HELP
        if name == "/new":
            self.messages.clear()
            return "A new conversation."
        if name == "/system":
            self.system = rest
            return "The model is told so." if rest else "The model is told nothing about itself."
        if name == "/set":
            return self._set(*rest.partition(" ")[::2])
        return f"There is no command {name}; /help lists them."

    def _set(self, name: str, value: str) -> str:
        if not name or name in OWN_FIELDS:
            return "Write /set NAME VALUE, such as /set temperature 0.2."
        if not value:
            self.fields.pop(name, None)
            return f"{name} is no longer sent."
        self.fields[name] = parse_field(value.strip())
        return f"{name} is {json.dumps(self.fields[name])}."


def parse_field(text: str) -> Any:
    """Parse the value of a request's field: JSON where it is JSON, else the text itself."""
    try:
        return json.loads(text, parse_constant=_reject_constant)
    except (ValueError, RecursionError):
        return text


def _reject_constant(word: str) -> None:
    raise ValueError(f"{word} is Python's, not JSON")
