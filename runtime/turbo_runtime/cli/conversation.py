"""What has been said in a chat, and the commands that change how it goes on. No terminal, no network."""

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

    def ask(self, text: str, stream_options: dict[str, bool]) -> dict[str, Any]:
        """The body of the request for the next answer."""
        self.messages.append({"role": "user", "content": text})
        system = [{"role": "system", "content": self.system}] if self.system else []
        return {
            "model": self.model,
            **self.fields,
            "messages": [*system, *self.messages],
            "stream_options": stream_options,
        }

    def answered(self, text: str) -> None:
        """Keep an answer, also one that was stopped; one without text takes its question with it."""
        if text:
            self.messages.append({"role": "assistant", "content": text})
        else:
            self.messages.pop()

    def command(self, line: str) -> str | None:
        """Obey a line that starts with a slash; returns what to say, or None to leave."""
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
        self.fields[name] = field_value(value.strip())
        return f"{name} is {json.dumps(self.fields[name])}."


def field_value(text: str) -> Any:
    """What a person's text means in a request: JSON where it is JSON, else the text itself."""
    try:
        return json.loads(text, parse_constant=_no_json)
    except (ValueError, RecursionError):
        return text


def _no_json(word: str) -> None:
    raise ValueError(f"{word} is Python's, not JSON")
