"""`turbo chat URL`: talk to a server, and see how fast it is."""

from __future__ import annotations

import argparse
import sys
from contextlib import closing
from typing import Any

from rich.console import Console

from turbo_runtime.cli.conversation import OWN_FIELDS, Conversation, parse_field
from turbo_runtime.cli.screen import AnswerScreen, format_status
from turbo_runtime.client.address import KEY_VARIABLE, ServerError
from turbo_runtime.client.client import Server
from turbo_runtime.client.sse import Progress, stream_chat
from turbo_runtime.client.terminal import printable

PROMPT = "› "


def chat(argv: list[str]) -> int:
    """Exit status: 0, also after Ctrl-D or Ctrl-C at the prompt; 1 when the server cannot be talked to."""
    options = _build_parser().parse_args(argv)
    try:
        _chat(options)
    except ServerError as error:
        print(f"turbo chat: {error}", file=sys.stderr)
        return 1
    return 0


def _chat(options: argparse.Namespace) -> None:
    server = Server.at(options.url)
    fields = dict(options.set)
    conversation = Conversation(options.model or server.model(), fields=fields, system=options.system)
    version = server.turbo_version()
    # Other servers may reject what OpenAI does not know.
    stream_options = {"include_usage": True} | ({"continuous_usage_stats": True} if version else {})
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        _answer_piped(server, conversation, stream_options)
        return
    console = Console(highlight=False)
    promise = f", guarantee {version['guarantee']}" if version else ""
    welcome = f"{conversation.model} at {server.url}{promise}. /help lists what you can do."
    console.print(printable(welcome), style="dim", markup=False)
    try:
        _talk(console, server, conversation, stream_options)
    except KeyboardInterrupt:  # at the prompt
        console.print()


def _talk(
    console: Console, server: Server, conversation: Conversation, stream_options: dict[str, bool]
) -> None:
    while (line := _read_line(console)) is not None:
        if line.startswith("/"):
            message = conversation.run_command(line)
            if message is None:
                return
            console.print(message, style="dim", markup=False)
        elif line:
            _answer(console, server, conversation, conversation.add_message(line, stream_options))


def _answer(console: Console, server: Server, conversation: Conversation, body: dict[str, Any]) -> None:
    """Show one answer; Ctrl-C stops it, and keeps what has come of it."""
    progress, answer, problem = Progress(), "", ""
    with AnswerScreen(console, progress) as screen, closing(stream_chat(server, body, progress)) as parts:
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
    progress = Progress()
    body = conversation.add_message(_read_message(), stream_options)
    with closing(stream_chat(server, body, progress)) as parts:
        for _, text in parts:
            print(_encodable(text), end="", flush=True)
    print(flush=True)
    print(format_status(progress).plain, file=sys.stderr)


def _read_message() -> str:
    try:
        text = sys.stdin.read()
        text.encode()  # in a POSIX locale Python accepts bytes that are no UTF-8
    except UnicodeError as error:
        raise ServerError("The message is no UTF-8.") from error
    if not text.strip():
        raise ServerError("There is no message: write one to standard input.")
    return text


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


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="turbo chat",
        description="Talk to a server of the OpenAI API, and see how fast it answers.",
        epilog=f"An API key is read from the variable {KEY_VARIABLE}. "
        "With another program's output as input, or a file as output, the input is the one message.",
    )
    parser.add_argument("url", metavar="URL", help="such as http://127.0.0.1:8000")
    parser.add_argument("--model", help="(default: the first that the server lists)")
    parser.add_argument("--system", default="", metavar="TEXT", help="tell the model who it is")
    text = "send a field with each request, such as temperature=0; may be given again"
    parser.add_argument(
        "--set", action="append", default=[], type=_parse_assignment, metavar="NAME=VALUE", help=text
    )
    return parser


def _parse_assignment(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"{text!r} is no NAME=VALUE such as temperature=0.2")
    if name in OWN_FIELDS:
        raise argparse.ArgumentTypeError(f"{name} is written by the chat itself")
    return name, parse_field(value)
