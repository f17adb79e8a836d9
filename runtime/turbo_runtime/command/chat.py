"""`turbo chat URL`: talk to a server, and see how fast it is."""

from __future__ import annotations

import argparse
import sys
from contextlib import closing

from rich.console import Console

from turbo_runtime.command.client import KEY_VARIABLE, Server, ServerError
from turbo_runtime.command.conversation import Conversation
from turbo_runtime.command.screen import AnswerScreen, status_line
from turbo_runtime.command.stream import Progress, answer

PROMPT = "› "


def chat(argv: list[str]) -> int:
    """Exit status: 0, also after Ctrl-D or Ctrl-C at the prompt; 1 when the server cannot be talked to."""
    options = _parser().parse_args(argv)
    console = Console(highlight=False)
    try:
        server = Server.at(options.url)
        conversation = Conversation(options.model or server.model(), system=options.system)
        about = server.turbo()
    except ServerError as error:
        print(f"turbo chat: {error}", file=sys.stderr)
        return 1
    # Other servers may refuse what OpenAI does not know.
    stream_options = {"include_usage": True} | ({"continuous_usage_stats": True} if about else {})
    if not sys.stdin.isatty():
        return _once(server, conversation, stream_options)
    promise = f", guarantee {about['guarantee']}" if about else ""
    console.print(f"{conversation.model} at {server.url}{promise}. /help lists what you can do.", style="dim")
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
    progress = Progress()
    body = conversation.ask(sys.stdin.read(), stream_options)
    try:
        for _, piece in answer(server, body, progress):
            print(piece, end="", flush=True)
    except ServerError as error:
        print(f"turbo chat: {error}", file=sys.stderr)
        return 1
    print(flush=True)
    print(status_line(progress).plain, file=sys.stderr)
    return 0


def _read(console: Console) -> str | None:
    """A line, or several that are joined by backslashes; None at the end of the input."""
    lines: list[str] = []
    while True:
        try:
            line = console.input(PROMPT if not lines else "  ", markup=False)
        except EOFError:
            console.print()
            return None
        if not line.endswith("\\"):
            return "\n".join([*lines, line]).strip()
        lines.append(line[:-1])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="turbo chat",
        description="Talk to a server of the OpenAI API, and see how fast it answers.",
        epilog=f"An API key is read from the variable {KEY_VARIABLE}. "
        "With another program's output as input, that is the one message.",
    )
    parser.add_argument("url", metavar="URL", help="such as http://127.0.0.1:8000")
    parser.add_argument("--model", help="(default: the first that the server lists)")
    parser.add_argument("--system", default="", metavar="TEXT", help="tell the model who it is")
    return parser
