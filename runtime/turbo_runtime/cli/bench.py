"""`turbo bench URL`: how fast a server answers, with speculation and without."""

from __future__ import annotations

import argparse
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from turbo_runtime.cli.figures import Pass
from turbo_runtime.cli.report import check_writable, document, report, write
from turbo_runtime.cli.workload import Messages, made_prompts, read_prompts
from turbo_runtime.client import sse
from turbo_runtime.client.address import KEY_VARIABLE, ServerError
from turbo_runtime.client.client import Server
from turbo_runtime.client.connections import Lines
from turbo_runtime.client.thread_pool import work_off

ON, OFF = "on", "off"
PLAIN = "as it is"  # of a server that cannot be told
INTERRUPTED = 130  # as a shell tells of Ctrl-C


def bench(argv: list[str]) -> int:
    """Exit status: 0; 1 when the server cannot be measured or a request failed; 130 after Ctrl-C."""
    options = _parser().parse_args(argv)
    try:
        return _bench(options)
    except (ServerError, ValueError) as error:
        print(f"turbo bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("turbo bench: stopped; there are no figures.", file=sys.stderr)
        return INTERRUPTED


def _bench(options: argparse.Namespace) -> int:
    console = Console(highlight=False)
    prompts = read_prompts(options.prompts) if options.prompts else made_prompts(options.requests)
    prompts = prompts[: options.requests]
    if options.json:
        check_writable(options.json)
    server = Server.at(options.url)
    model = options.model or server.model()
    about = server.turbo()
    body = {"model": model, "max_tokens": options.max_tokens, "temperature": options.temperature}
    body |= {} if options.seed is None else {"seed": options.seed}
    wanted = modes(about)
    passes = [Pass(name) for name in wanted]
    stopped = False
    try:
        _measure(console, server, body, prompts, options, wanted, passes)
    except KeyboardInterrupt:
        if not any(one.answers for one in passes):
            raise
        stopped = True
    if any(one.answers for one in passes):
        asked = (len(prompts), options.concurrency)
        console.print(report(passes, model, server.url, about, *asked, console.width))
    if options.json:
        write(options.json, document(passes, model, about))
    failures = [sentence for one in passes for sentence in one.failures]
    if failures:
        print(f"turbo bench: {len(failures)} requests failed, the first thus: {failures[0]}", file=sys.stderr)
    if stopped:
        print("turbo bench: stopped; tokens/s and the speed-up are those of whole passes.", file=sys.stderr)
        return INTERRUPTED
    return 1 if failures else 0


def modes(about: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    """Names of what is compared, and the fields that ask for it; another server than Turbo has one mode."""
    if about is None:
        return {PLAIN: {}}
    return {ON: {"speculation": True}, OFF: {"speculation": False}}


def _measure(
    console: Console,
    server: Server,
    body: Mapping[str, Any],
    prompts: Sequence[Messages],
    options: argparse.Namespace,
    wanted: Mapping[str, Mapping[str, Any]],
    passes: Sequence[Pass],
) -> None:
    """Passes over all prompts, the modes in turn and in the other order every second time.

    Each pass has a cache of its own (`cache_salt`), so none profits from the one before.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("warming up", total=options.repeat * len(wanted) * len(prompts))
        for fields in wanted.values():
            warm = {**body, **fields, "messages": prompts[0], "max_tokens": 4}
            list(sse.answer(server, warm, sse.Progress()))
        for turn in range(options.repeat):
            for into in passes[:: -1 if turn % 2 else 1]:
                name = into.name
                bar.update(task, description=f"speculation {name}, pass {turn + 1} of {options.repeat}")
                salt = {} if name == PLAIN else {"cache_salt": uuid.uuid4().hex}
                fields = {**body, **wanted[name], **salt, "stream_options": {"include_usage": True}}
                run_pass(server, fields, prompts, options.concurrency, into, lambda: bar.advance(task))


def run_pass(
    server: Server,
    fields: Mapping[str, Any],
    prompts: Sequence[Messages],
    concurrency: int,
    into: Pass,
    done: Callable[[], None],
) -> None:
    """Ask all prompts, so many at a time; figures and failures go into `into`.

    Ctrl-C leaves at once: requests that have not begun are dropped, and those that run are cut off.
    """
    lines, answers = Lines(), []

    def one(messages: Messages) -> None:
        progress = sse.Progress()
        try:
            for _ in sse.answer(server, {**fields, "messages": messages}, progress, lines):
                pass
        except ServerError as error:
            if not lines.are_cut:
                into.failures.append(str(error))
        else:
            if not lines.are_cut:
                answers.append(progress)
        done()

    began = time.monotonic()
    try:
        work_off(prompts, one, concurrency)
        into.took(time.monotonic() - began, answers)
    except KeyboardInterrupt:
        lines.cut()
        raise
    finally:
        into.answers += answers


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="turbo bench",
        description="Measure a server of the OpenAI API; one of Turbo's with speculation on and off in turn.",
        epilog=f"An API key is read from the variable {KEY_VARIABLE}.",
    )
    parser.add_argument("url", metavar="URL", help="such as http://127.0.0.1:8000")
    parser.add_argument("--model", help="(default: the first that the server lists)")
    parser.add_argument("--requests", type=_count, default=48, metavar="N", help="of a pass (default: 48)")
    parser.add_argument("--concurrency", type=_count, default=8, metavar="N", help="at a time (default: 8)")
    parser.add_argument(
        "--repeat", type=_count, default=2, metavar="N", help="passes of each mode (default: 2)"
    )
    parser.add_argument(
        "--max-tokens", type=_count, default=128, metavar="N", help="of an answer (default: 128)"
    )
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="(default: 0)")
    parser.add_argument("--seed", type=int, metavar="S", help="of sampled answers (default: drawn)")
    parser.add_argument(
        "--prompts", type=Path, metavar="FILE", help="a text a line, or .jsonl with 'messages' or 'prompt'"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    return parser


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value
