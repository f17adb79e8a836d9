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

from turbo_runtime.cli.arguments import bounded_int
from turbo_runtime.cli.report import (
    ModeResult,
    build_document,
    check_writable,
    render_report,
    write_document,
)
from turbo_runtime.cli.workload import Messages, generate_prompts, read_prompts
from turbo_runtime.client import sse
from turbo_runtime.client.address import KEY_VARIABLE, ServerError
from turbo_runtime.client.client import ConnectionGroup, Server
from turbo_runtime.client.thread_pool import work_off

MODES: Mapping[str, Mapping[str, Any]] = {
    "on": {"speculation": True},
    "off": {"speculation": False},
}
ONLY_MODE = "as it is"  # of a server other than Turbo
INTERRUPTED = 130  # the status that a shell gives Ctrl-C


def bench(argv: list[str]) -> int:
    """Exit status: 0; 1 when the server cannot be measured or a request failed; 130 after Ctrl-C."""
    options = _build_parser().parse_args(argv)
    try:
        return _bench(options)
    except (ServerError, ValueError) as error:
        return _report_problem(str(error), 1)
    except KeyboardInterrupt:
        return _report_problem("stopped; there are no figures.", INTERRUPTED)


def _bench(options: argparse.Namespace) -> int:
    console = Console(highlight=False)
    prompts = read_prompts(options.prompts) if options.prompts else generate_prompts(options.requests)
    prompts = prompts[: options.requests]
    if options.json:
        check_writable(options.json)
    server = Server.at(options.url)
    model = options.model or server.model()
    version = server.turbo_version()
    body = {"model": model, "max_tokens": options.max_tokens, "temperature": options.temperature}
    body |= {} if options.seed is None else {"seed": options.seed}
    fields: Mapping[str, Mapping[str, Any]] = {ONLY_MODE: {}} if version is None else MODES
    modes = [ModeResult(name) for name in fields]
    is_stopped = False
    try:
        _measure(console, server, body, prompts, options, fields, modes)
    except KeyboardInterrupt:
        if not any(mode.answers for mode in modes):
            raise
        is_stopped = True
    if any(mode.answers for mode in modes):
        promise = f", guarantee {version['guarantee']}" if version else ""
        title = f"{model} at {server.url}{promise}\n{len(prompts)} requests, {options.concurrency} at a time"
        console.print(render_report(modes, title, console.width))
    if options.json:
        write_document(options.json, build_document(modes, model, version))
    failures = [failure for mode in modes for failure in mode.failures]
    if failures:
        _report_problem(f"{len(failures)} requests failed, the first thus: {failures[0]}", 1)
    if is_stopped:
        return _report_problem("stopped; tokens/s and the speed-up are those of whole passes.", INTERRUPTED)
    return 1 if failures else 0


def _report_problem(message: str, status: int) -> int:
    print(f"turbo bench: {message}", file=sys.stderr)
    return status


def _measure(
    console: Console,
    server: Server,
    body: Mapping[str, Any],
    prompts: Sequence[Messages],
    options: argparse.Namespace,
    fields: Mapping[str, Mapping[str, Any]],
    modes: Sequence[ModeResult],
) -> None:
    """Run passes over all prompts, the modes in turn and in reverse order every second time.

    Each pass has a cache of its own (`cache_salt`), so none profits from the one before.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("warming up", total=options.repeat * len(fields) * len(prompts))
        for own_fields in fields.values():
            warmup = {**body, **own_fields, "messages": prompts[0], "max_tokens": 4}
            list(sse.stream_chat(server, warmup, sse.Progress()))
        for turn in range(options.repeat):
            for mode in modes[:: -1 if turn % 2 else 1]:
                bar.update(task, description=f"speculation {mode.name}, pass {turn + 1} of {options.repeat}")
                salt = {} if mode.name == ONLY_MODE else {"cache_salt": uuid.uuid4().hex}
                usage = {"stream_options": {"include_usage": True}}
                request = {**body, **fields[mode.name], **salt, **usage}
                _run_pass(server, request, prompts, options.concurrency, mode, lambda: bar.advance(task))


def _run_pass(
    server: Server,
    request: Mapping[str, Any],
    prompts: Sequence[Messages],
    concurrency: int,
    mode: ModeResult,
    on_done: Callable[[], None],
) -> None:
    """Send all prompts, so many at a time. Ctrl-C drops those that have not begun and cuts off the others."""
    connections, answers = ConnectionGroup(), list[sse.Progress]()

    def send(messages: Messages) -> None:
        progress = sse.Progress()
        try:
            for _ in sse.stream_chat(server, {**request, "messages": messages}, progress, connections):
                pass
        except ServerError as error:
            if not connections.is_closed:
                mode.failures.append(str(error))
        else:
            if not connections.is_closed:
                answers.append(progress)
        on_done()

    start_time = time.monotonic()
    try:
        work_off(prompts, send, concurrency)
        mode.add_pass(time.monotonic() - start_time, answers)
    except KeyboardInterrupt:
        connections.close()
        raise
    finally:
        mode.answers += answers


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="turbo bench",
        description="Measure a server of the OpenAI API; one of Turbo's with speculation on and off in turn.",
        epilog=f"An API key is read from the variable {KEY_VARIABLE}.",
    )
    parser.add_argument("url", metavar="URL", help="such as http://127.0.0.1:8000")
    parser.add_argument("--model", help="(default: the first that the server lists)")
    for flag, default, text in (
        ("--requests", 48, "of a pass"),
        ("--concurrency", 8, "at a time"),
        ("--repeat", 2, "passes of each mode"),
        ("--max-tokens", 128, "of an answer"),
    ):
        parser.add_argument(
            flag, type=bounded_int(1), default=default, metavar="N", help=f"{text} (default: {default})"
        )
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="(default: 0)")
    parser.add_argument("--seed", type=int, metavar="S", help="of sampled answers (default: drawn)")
    parser.add_argument(
        "--prompts", type=Path, metavar="FILE", help="a text a line, or .jsonl with 'messages' or 'prompt'"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    return parser
