"""`turbo chat URL`: talk to a server, and see how fast it is."""

from __future__ import annotations

import argparse
import sys
from contextlib import closing
from typing import Any

from rich.console import Console

from turbo_runtime.cli.conversation import OWN_FIELDS, Conversation, field_value
from turbo_runtime.cli.screen import AnswerScreen, status_line
from turbo_runtime.client.address import KEY_VARIABLE, ServerError
from turbo_runtime.client.client import Server
from turbo_runtime.client.sse import Progress, answer
from turbo_runtime.client.terminal import printable

PROMPT = "› "


def chat(argv: list[str]) -> int:
    """Exit status: 0, also after Ctrl-D or Ctrl-C at the prompt; 1 when the server cannot be talked to."""
    options = _parser().parse_args(argv)
    try:
        return _chat(options)
    except ServerError as error:
        print(f"turbo chat: {error}", file=sys.stderr)
        return 1


def _chat(options: argparse.Namespace) -> int:
    server = Server.at(options.url)
    fields = dict(options.set)
    conversation = Conversation(options.model or server.model(), fields=fields, system=options.system)
    about = server.turbo()
    # Other servers may refuse what OpenAI does not know.
    stream_options = {"include_usage": True} | ({"continuous_usage_stats": True} if about else {})
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return _once(server, conversation, stream_options)
    console = Console(highlight=False)
    promise = f", guarantee {about['guarantee']}" if about else ""
    welcome = f"{conversation.model} at {server.url}{promise}. /help lists what you can do."
    console.print(printable(welcome), style="dim", markup=False)
    try:
        _talk(console, server, conversation, stream_options)
    except KeyboardInterrupt:  # at the prompt
        console.print()
    return 0


def _talk(
    console: Console, server: Server, conversation: Conversation, stream_options: dict[str, bool]
) -> None:
    while (line := _read(console)) is not None:
        if line.startswith("/"):
            said = conversation.command(line)
            if said is None:
                return
            console.print(said, style="dim", markup=False)
        elif line:
            _answer(console, server, conversation, conversation.ask(line, stream_options))


def _answer(console: Console, server: Server, conversation: Conversation, body: dict[str, object]) -> None:
    """Show one answer; Ctrl-C stops it, and what has come of it is kept."""
    progress, text, problem = Progress(), "", ""
    with AnswerScreen(console, progress) as screen, closing(answer(server, body, progress)) as pieces:
        try:
            for thought, piece in pieces:
                text += piece
                screen.add(thought, piece)
        except KeyboardInterrupt:
            problem = "Stopped."
        except ServerError as error:
            problem = str(error)
    if problem:
        console.print(problem, style="yellow", markup=False)
    conversation.answered(text)


def _once(server: Server, conversation: Conversation, stream_options: dict[str, bool]) -> int:
    """What is piped in is one message: its answer goes to standard output, the figures to standard error."""
    if sys.stdin.isatty():
        print("Write the message; Ctrl-D in a line of its own ends it.", file=sys.stderr)
    progress = Progress()
    body = conversation.ask(_message(), stream_options)
    with closing(answer(server, body, progress)) as pieces:
        for _, piece in pieces:
            print(_for_output(piece), end="", flush=True)
    print(flush=True)
    print(status_line(progress).plain, file=sys.stderr)
    return 0


def _message() -> str:
    try:
        text = sys.stdin.read()
        text.encode()  # in a POSIX locale Python lets bytes pass that are no UTF-8
    except UnicodeError as error:
        raise ServerError("The message is no UTF-8.") from error
    if not text.strip():
        raise ServerError("There is no message: write one to standard input.")
    return text


def _for_output(text: str) -> str:
    """A terminal obeys control characters; a file keeps what was said, as far as its encoding can."""
    if sys.stdout.isatty():
        return printable(text)
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)


def _read(console: Console) -> str | None:
    """A line, or several that are joined by backslashes; None at the end of the input."""
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="turbo chat",
        description="Talk to a server of the OpenAI API, and see how fast it answers.",
        epilog=f"An API key is read from the variable {KEY_VARIABLE}. "
        "With another program's output as input, or a file as output, the input is the one message.",
    )
    parser.add_argument("url", metavar="URL", help="such as http://127.0.0.1:8000")
    parser.add_argument("--model", help="(default: the first that the server lists)")
    parser.add_argument("--system", default="", metavar="TEXT", help="tell the model who it is")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        type=_assignment,
        metavar="NAME=VALUE",
        help="send a field with each request, such as temperature=0; may be given again",
    )
    return parser


def _assignment(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"{text!r} is no NAME=VALUE such as temperature=0.2")
    if name in OWN_FIELDS:
        raise argparse.ArgumentTypeError(f"{name} is written by the chat itself")
    return name, field_value(value)
