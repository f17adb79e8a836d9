"""`turbo bench URL`: how fast a server answers, with speculation and without; a table, and JSON."""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as ProgressBar
from rich.table import Table
from rich.text import Text

from turbo_runtime.cli.arguments import bounded, client_parser
from turbo_runtime.client.client import Json, Progress, Server, ServerError, printable, work_off
from turbo_runtime.prompts import PromptsError
from turbo_runtime.prompts import read_prompts as read_objects

Messages = list[Mapping[str, Any]]

_NAMES = ("Amara", "Bruno", "Chen", "Dalia", "Emil", "Farah", "Goran", "Hana", "Ivo", "Jonas", "Kira", "Lena")
_GOODS = ("lamps", "chairs", "cables", "notebooks", "filters", "boots", "tents", "kettles", "radios", "maps")
_TOWNS = ("Bergen", "Cork", "Dresden", "Evora", "Faro", "Graz", "Hull", "Izmir", "Jena", "Kotor")
_CARRIERS = ("post", "courier", "freight", "own van")
MODES = {"on": {"speculation": True}, "off": {"speculation": False}}
ONLY_MODE = "as it is"  # of a server other than Turbo
INTERRUPTED = 130  # the status that a shell gives Ctrl-C
MAX_WIDTH = 80  # columns of the table
PERCENTILES = {"p50": 0.5, "p95": 0.95}


@dataclass(slots=True)
class ModeResult:
    """Answers of one mode."""

    name: str
    fields: Mapping[str, Any] = field(default_factory=dict)  # of its requests
    seconds: float = 0.0  # wall time of the whole passes together, and `tokens` those of their answers
    tokens: int = 0
    answers: list[Progress] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def run_pass(
        self, server: Server, requests: Sequence[Json], concurrency: int, on_done: Callable[[], None]
    ) -> None:
        """Send all requests, so many at a time. After Ctrl-C none begins, and what comes counts no more."""
        stopped, answers = threading.Event(), list[Progress]()

        def send(request: Json) -> None:
            progress = Progress()
            try:
                for _ in server.stream_chat(request, progress):
                    if stopped.is_set():
                        return
            except ServerError as error:
                if not stopped.is_set():
                    self.failures.append(str(error))
            else:
                if not stopped.is_set():
                    answers.append(progress)
            on_done()

        start_time = time.monotonic()
        try:
            work_off(requests, send, concurrency)
            # an incomplete pass would count time without the tokens that came in it
            self.seconds += time.monotonic() - start_time
            self.tokens += sum(answer.tokens for answer in answers)
        except KeyboardInterrupt:
            stopped.set()
            raise
        finally:
            self.answers += answers

    @property
    def tokens_per_second(self) -> float | None:
        """Rate of all requests together; None before a pass is complete."""
        return self.tokens / self.seconds if self.seconds else None

    @property
    def acceptance_length(self) -> float | None:
        """Tokens per verified draft, the mean over answers that had drafts; None where none had."""
        known = [answer.acceptance_length for answer in self.answers if answer.acceptance_length is not None]
        return sum(known) / len(known) if known else None

    def latencies(self) -> dict[str, float | None]:
        """Return percentiles of the seconds to the first token and per token after it."""
        series = {
            "ttft": [answer.first_token_seconds for answer in self.answers],
            "tpot": [(rate := answer.tokens_per_second) and 1 / rate for answer in self.answers],
        }
        return {
            f"{name}_{suffix}": percentile([value for value in values if value is not None], fraction)
            for name, values in series.items()
            for suffix, fraction in PERCENTILES.items()
        }


def percentile(values: Sequence[float], fraction: float) -> float | None:
    """Return the smallest value that so large a fraction does not exceed (nearest rank); None of nothing."""
    return sorted(values)[max(math.ceil(fraction * len(values)) - 1, 0)] if values else None


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
    path = options.json
    if path and (path.is_dir() or not path.parent.is_dir()):  # told before the work rather than after it
        reason = "it is a folder" if path.is_dir() else "there is no such folder"
        raise ValueError(f"--json: {path} cannot be written: {reason}.")
    server = Server.at(options.url)
    model = options.model or server.model()
    version = server.turbo_version()
    guarantee = version["guarantee"] if version else None
    body = {"model": model, "max_tokens": options.max_tokens, "temperature": options.temperature}
    body |= {} if options.seed is None else {"seed": options.seed}
    names = MODES if version else {ONLY_MODE: {}}
    modes = [ModeResult(name, fields) for name, fields in names.items()]
    is_stopped = False
    try:
        chats = [{**body, "messages": messages} for messages in prompts]
        _measure(console, server, chats, options, modes)
    except KeyboardInterrupt:
        if not any(mode.answers for mode in modes):
            raise
        is_stopped = True
    if any(mode.answers for mode in modes):
        promise = f", guarantee {guarantee}" if version else ""
        title = f"{model} at {server.url}{promise}\n{len(prompts)} requests, {options.concurrency} at a time"
        console.print(render_report(modes, title, console.width))
    if path:
        try:
            path.write_text(json.dumps(_build_document(modes, model, guarantee), indent=2), encoding="utf-8")
        except OSError as error:
            raise ValueError(f"--json: {path} cannot be written: {error.strerror}.") from error
    failures = [failure for mode in modes for failure in mode.failures]
    if failures:
        _report_problem(f"{len(failures)} requests failed, the first thus: {failures[0]}", 1)
    if is_stopped:
        return _report_problem("stopped; tokens/s and the speedup are those of whole passes.", INTERRUPTED)
    return 1 if failures else 0


def _report_problem(message: str, status: int) -> int:
    print(f"turbo bench: {message}", file=sys.stderr)
    return status


def _measure(
    console: Console, server: Server, chats: list[Json], options: argparse.Namespace, modes: list[ModeResult]
) -> None:
    """Run passes over all prompts, the modes in turn and in reverse order every second time.

    Each pass has a cache of its own (`cache_salt`), so none profits from the one before.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with ProgressBar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("warming up", total=options.repeat * len(modes) * len(chats))
        for mode in modes:
            list(server.stream_chat({**chats[0], **mode.fields, "max_tokens": 4}, Progress()))
        for turn in range(options.repeat):
            for mode in modes[:: -1 if turn % 2 else 1]:
                bar.update(task, description=f"speculation {mode.name}, pass {turn + 1} of {options.repeat}")
                salt = {} if mode.name == ONLY_MODE else {"cache_salt": uuid.uuid4().hex}
                fields = {**mode.fields, **salt, "stream_options": {"include_usage": True}}
                requests = [{**chat, **fields} for chat in chats]
                mode.run_pass(server, requests, options.concurrency, lambda: bar.advance(task))


def compute_speedup(modes: Sequence[ModeResult]) -> float | None:
    """Return the first mode's tokens per second over the second's; None unless both ran and it drafted."""
    rates = [rate for mode in modes[:2] if (rate := mode.tokens_per_second) is not None]
    return rates[0] / rates[1] if len(rates) == 2 and modes[0].acceptance_length else None


def render_report(modes: Sequence[ModeResult], title: str, width: int) -> RenderableType:
    """Render the figures for a terminal of so many columns."""
    headings = ["speculation", "tokens/s", "TTFT p50", "TTFT p95", "TPOT p50", "TPOT p95", "per draft"]
    rows = [headings, *map(_row, modes)]
    if width < MAX_WIDTH:  # figures below each other rather than cut off
        rows = [list(column) for column in zip(*rows, strict=True)]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, heading in enumerate(rows[0]):
        table.add_column(heading, justify="right" if number else "left", no_wrap=True)
    for row in rows[1:]:
        table.add_row(*row)
    parts: list[RenderableType] = [Text(printable(title), "bold"), table]
    if (speedup := compute_speedup(modes)) is not None:
        parts.append(Text(f"With speculation the server writes {speedup:.2f} times as many tokens a second."))
    elif len(modes) > 1 and modes[0].answers and not modes[0].acceptance_length:
        parts.append(Text("The server drafted nothing: the rates differ by chance."))
    legend = "TTFT: to the first token; TPOT: per token after it; per draft: tokens brought."
    return Group(*parts, Text(legend, "dim"))


def _row(mode: ModeResult) -> list[str]:
    rate, length = mode.tokens_per_second, mode.acceptance_length
    latencies = [
        "-" if seconds is None else f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"
        for seconds in mode.latencies().values()
    ]
    texts = ("-" if rate is None else f"{rate:.1f}", *latencies, "-" if length is None else f"{length:.2f}")
    return [mode.name, *texts]


def _build_document(modes: Sequence[ModeResult], model: str, guarantee: str | None) -> dict[str, Any]:
    """Return the figures as JSON, times in seconds."""
    figures = [
        {
            "name": mode.name,
            "answers": len(mode.answers),
            "failed": len(mode.failures),
            "seconds": mode.seconds,
            "tokens_per_second": mode.tokens_per_second,
            "tokens_per_draft": mode.acceptance_length,
            **mode.latencies(),
        }
        for mode in modes
    ]
    return {"model": model, "guarantee": guarantee, "speedup": compute_speedup(modes), "modes": figures}


def _build_parser() -> argparse.ArgumentParser:
    description = "Measure a server of the OpenAI API; one of Turbo's with speculation on and off in turn."
    parser = client_parser("turbo bench", description)
    for flag, default, text in (
        ("--requests", 48, "of a pass"),
        ("--concurrency", 8, "at a time"),
        ("--repeat", 2, "passes of each mode"),
        ("--max-tokens", 128, "of an answer"),
    ):
        text = f"{text} (default: {default})"
        parser.add_argument(flag, type=bounded(int, 1), default=default, metavar="N", help=text)
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="(default: 0)")
    parser.add_argument("--seed", type=int, metavar="S", help="of sampled answers (default: drawn)")
    text = "a text a line, or .jsonl with 'messages' or 'prompt'"
    parser.add_argument("--prompts", type=Path, metavar="FILE", help=text)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    return parser


def read_prompts(path: Path) -> list[Messages]:
    """Read a text a line, or the JSON lines of `turbo_runtime.prompts`. Raises ValueError."""
    if path.suffix == ".jsonl":
        try:
            prompts = read_objects([path])
            if any(prompt.written for prompt in prompts):
                raise PromptsError(f"{path} holds captured prompts, which are no chats: give a file of chats")
        except PromptsError as error:
            raise ValueError(f"--prompts: {error}.") from error
        return [list(prompt.messages) for prompt in prompts]
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8"
        raise ValueError(f"--prompts: {path} cannot be read: {reason}.") from error
    if not lines:
        raise ValueError(f"--prompts: {path} holds no prompt; write one a line.")
    return [[{"role": "user", "content": line}] for line in lines]


def generate_prompts(count: int) -> list[Messages]:
    """Generate three kinds in turn: text to JSON, a customer's letter, a sum in words. Always the same."""
    return [
        [{"role": "user", "content": _generate_prompt(number % 3, random.Random(number))}]  # noqa: S311  no secret
        for number in range(count)
    ]


def _generate_prompt(kind: int, draw: random.Random) -> str:
    if kind == 0:
        goods = draw.sample(_GOODS, 4)
        items = ", ".join(f"{draw.randint(2, 90)} {good} at {draw.randint(3, 200)} euros" for good in goods)
        return (
            f"{draw.choice(_NAMES)} in {draw.choice(_TOWNS)} orders {items}, by {draw.choice(_CARRIERS)}, "
            f"order number {draw.randint(10_000, 99_999)}. Write the order as JSON with the keys customer, "
            "town, carrier, number and items, each item with name, quantity and price."
        )
    if kind == 1:
        return (
            f"Customer {draw.choice(_NAMES)} from {draw.choice(_TOWNS)} writes: the {draw.randint(2, 9)} "
            f"{draw.choice(_GOODS)} of order {draw.randint(10_000, 99_999)} came {draw.randint(2, 20)} days "
            f"late by {draw.choice(_CARRIERS)} and one is broken. Write a friendly answer that names the "
            "order, says sorry and offers a replacement or the money back."
        )
    first, second = draw.sample(_NAMES, 2)
    good = draw.choice(_GOODS)
    return (
        f"{first} has {draw.randint(12, 60)} {good} and sells {draw.randint(2, 11)} of them a day for "
        f"{draw.randint(3, 30)} euros each. {second} brings {draw.randint(5, 40)} more after two days. How "
        "many are left after three days, and how much money came in? Think step by step."
    )
