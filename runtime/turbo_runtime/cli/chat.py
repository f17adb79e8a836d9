"""`turbo chat URL`: talk to a server, and see how fast it is."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from turbo_runtime.cli.arguments import client_parser
from turbo_runtime.client.client import Progress, Server, ServerError, printable
from turbo_runtime.contract.endpoints import MAX_BODY_BYTES

if TYPE_CHECKING:
    from io import BufferedReader

PROMPT = "› "
REASONING_STYLE, STATUS_STYLE = "dim italic", "cyan"
REFRESHES_PER_SECOND = 15
TAB_SIZE = 8
OWN_FIELDS = frozenset({"messages", "stream", "stream_options", "n"})
HELP = """\
/new               forget what was said
/system TEXT       tell the model who it is; without TEXT, nobody
/set NAME VALUE    send a field with each request, such as temperature 0.2 or speculation off; without VALUE,
                   no longer
/quit              leave, as Ctrl-D does
Ctrl-C stops an answer; a line that ends with \\ goes on in the next."""


@dataclass(slots=True)
class Conversation:
    """The messages so far, the fields of the requests, and the commands that change how it goes on."""

    model: str
    fields: dict[str, Any] = field(default_factory=dict)
    messages: list[dict[str, str]] = field(default_factory=list)
    system: str = ""

    def add_message(self, text: str, stream_options: dict[str, bool]) -> dict[str, Any]:
        """Add the user's message, and return the body of the request for the answer."""
        self.messages.append({"role": "user", "content": text})
        system = [{"role": "system", "content": self.system}] if self.system else []
        messages = [*system, *self.messages]
        return {"model": self.model, **self.fields, "messages": messages, "stream_options": stream_options}

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


class AnswerScreen:
    """Context manager that shows an answer: full rows scroll up as on any terminal; the row in progress and
    the status are drawn anew. What is shown at its end stays.

    Rows, not lines: what is drawn anew must fit the window, and a paragraph may not.
    """

    def __init__(self, console: Console, progress: Progress) -> None:
        self._console = console
        self._progress = progress
        self._row = Text()
        self._is_reasoning = False
        self._live = Live(console=console, refresh_per_second=REFRESHES_PER_SECOND, transient=True)

    def __enter__(self) -> AnswerScreen:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()
        if self._row:
            self._console.print(self._row)
        if self._progress.events:
            self._console.print(format_status(self._progress), no_wrap=True, overflow="ellipsis")

    def add(self, reasoning: str, text: str) -> None:
        """Show more of the answer."""
        if reasoning:
            self._append(reasoning, REASONING_STYLE)
            self._is_reasoning = True
        if text:
            self._append("\n\n" * self._is_reasoning + text, "")  # the server strips the space between them
            self._is_reasoning = False
        self._print_full_rows()
        self._live.update(Group(self._row, format_status(self._progress)))

    def _append(self, text: str, style: str) -> None:
        *lines, rest = printable(text).split("\n")
        for line in lines:
            self._console.print(self._row.append(line, style))
            self._row = Text()
        self._row.append(rest, style)

    def _print_full_rows(self) -> None:
        """White space at the end waits: the next word decides whether it ends the row."""
        self._row.expand_tabs(TAB_SIZE)
        words = self._row.copy()
        words.rstrip()
        space = self._row.plain[len(words) :][: self._console.width]
        *full, last = words.wrap(self._console, self._console.width) or [words]
        for row in full:
            self._console.print(row)
        self._row = last.append(space)


def format_status(progress: Progress) -> Text:
    """Format one line of figures; unknown ones are left out."""
    parts = [f"{progress.tokens} tokens"]
    if (rate := progress.tokens_per_second) is not None:
        parts.append(f"{rate:.{0 if rate >= 100 else 1}f} tokens/s")
    if progress.first_token_seconds is not None:
        parts.append(f"first after {progress.first_token_seconds:.2f} s")
    if progress.acceptance_length is not None:
        parts.append(f"{progress.acceptance_length:.1f} per draft")
    if progress.speedup is not None:
        parts.append(f"speedup {progress.speedup:.2f}")
    return Text(" · ".join(parts), STATUS_STYLE, no_wrap=True, overflow="ellipsis")


def chat(argv: list[str]) -> int:
    """Exit status: 0, also after Ctrl-D or Ctrl-C at the prompt; 1 when the server cannot be talked to."""
    description = "Talk to a server of the OpenAI API, and see how fast it answers."
    note = " With another program's output as input, or a file as output, the input is the one message."
    parser = client_parser("turbo chat", description, note)
    parser.add_argument("--system", default="", metavar="TEXT", help="tell the model who it is")
    text = "send a field with each request, such as temperature=0; may be given again"
    parser.add_argument(
        "--set", action="append", default=[], type=_parse_assignment, metavar="NAME=VALUE", help=text
    )
    try:
        _chat(parser.parse_args(argv))
    except ServerError as error:
        print(f"turbo chat: {error}", file=sys.stderr)
        return 1
    return 0


def _parse_assignment(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"{text!r} is no NAME=VALUE such as temperature=0.2")
    if name in OWN_FIELDS:
        raise argparse.ArgumentTypeError(f"{name} is written by the chat itself")
    return name, parse_field(value)


def _chat(options: argparse.Namespace) -> None:
    server = Server.at(options.url)
    model = options.model or server.model()
    conversation = Conversation(model, fields=dict(options.set), system=options.system)
    version = server.turbo_version()
    # Other servers may reject what OpenAI does not know.
    stream_options = {"include_usage": True} | ({"continuous_usage_stats": True} if version else {})
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        _answer_piped(server, conversation, stream_options)
        return
    console = Console(highlight=False)
    promise = f", guarantee {version['guarantee']}" if version else ""
    welcome = f"{model} at {server.url}{promise}. /help lists what you can do."
    console.print(printable(welcome), style="dim", markup=False)
    try:
        while (line := _read_line(console)) is not None:
            if line.startswith("/"):
                message = conversation.run_command(line)
                if message is None:
                    return
                console.print(message, style="dim", markup=False)
            elif line:
                _answer(console, server, conversation, conversation.add_message(line, stream_options))
    except KeyboardInterrupt:  # at the prompt
        console.print()


def _answer(console: Console, server: Server, conversation: Conversation, body: dict[str, Any]) -> None:
    """Show one answer; Ctrl-C stops it, and keeps what has come of it."""
    progress, answer, problem = Progress(), "", ""
    with AnswerScreen(console, progress) as screen, closing(server.stream_chat(body, progress)) as parts:
        try:
            for reasoning, text in parts:
                answer += text
                screen.add(reasoning, text)
        except KeyboardInterrupt:
            problem = "Stopped."
        except ServerError as error:
            problem = str(error)
    if problem:
        console.print(problem, style="yellow", markup=False)
    conversation.add_answer(answer)


def _answer_piped(server: Server, conversation: Conversation, stream_options: dict[str, bool]) -> None:
    """Answer standard input as one message on standard output, with the figures on standard error."""
    if sys.stdin.isatty():
        print("Write the message; Ctrl-D in a line of its own ends it.", file=sys.stderr)
    message = _read_message()
    if not message.strip():
        raise ServerError("There is no message: write one to standard input.")
    progress = Progress()
    with closing(server.stream_chat(conversation.add_message(message, stream_options), progress)) as parts:
        for _, text in parts:
            print(_encodable(text), end="", flush=True)
    print(flush=True)
    print(format_status(progress).plain, file=sys.stderr)


def _read_message() -> str:
    """Read standard input to its end, piece by piece: a single read would not hear Ctrl-C between pieces."""
    source, message = cast("BufferedReader", sys.stdin.buffer), bytearray()
    while piece := source.read1(MAX_BODY_BYTES):
        message += piece
        if len(message) > MAX_BODY_BYTES:
            limit = f"{MAX_BODY_BYTES >> 20} MiB"
            raise ServerError(f"The message is longer than {limit}, and no request may be: shorten it.")
    try:
        return message.decode()
    except UnicodeDecodeError as error:
        raise ServerError("The message is no UTF-8.") from error


def _encodable(text: str) -> str:
    """A terminal obeys control characters; a file keeps the text, as far as its encoding can."""
    if sys.stdout.isatty():
        return printable(text)
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)


def _read_line(console: Console) -> str | None:
    """Read a line, or several that are joined by backslashes; None at the end of the input."""
    lines: list[str] = []
    while True:
        try:
            line = console.input(PROMPT if not lines else "  ", markup=False)
        except EOFError:
            console.print()
            return None
        except UnicodeDecodeError:
            console.print("The terminal sends no UTF-8; write that again.", style="yellow")
            continue
        if not line.endswith("\\"):
            return "\n".join([*lines, line]).strip()
        lines.append(line[:-1])
