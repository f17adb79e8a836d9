"""Reads prompts from files of JSON lines, and from captured segments."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from heapq import nlargest
from itertools import chain
from pathlib import Path
from typing import Any

from turbo_runtime.capture.segment_store import is_segment, read

CAPTURED = "captured"
MAX_CAPTURED = 5000
_EITHER = ("prompt", "messages")


class PromptsError(ValueError):
    """Prompts that cannot be used; the message names file, line and remedy."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation for the model to continue."""

    name: str
    domain: str
    messages: tuple[Mapping[str, Any], ...] = ()  # of a chat; empty where `text` is the prompt
    text: str = ""
    written: str = ""  # the prompt as the model reads it, special tokens written out
    captured_at: float | None = None  # seconds since the epoch, of one that a server has kept
    tenant: str | None = None  # that sent it; None: unknown, or a part of a tenant, by a salt

    @property
    def content(self) -> str:
        """The identity of the prompt, in one string."""
        return self.written or self.text or json.dumps(self.messages, sort_keys=True, ensure_ascii=False)


def read_prompts(
    paths: Sequence[Path], *, chat: bool = True, captured: int = MAX_CAPTURED, domain: str = ""
) -> list[Prompt]:
    """Read the prompts of files, and of all `*.jsonl` in folders. Raises PromptsError.

    A line is an object with `prompt`, a text that becomes a chat's first turn (without `chat`, the prompt
    itself), or with `messages`. Its `domain` defaults to `domain` for a single file, else to the file's name;
    its `id` to the line. Of segments that `turbo serve` captured the newest `captured` prompts are read, of
    `domain` or else of the domain `captured`; no more are held in memory.
    """
    files: list[Path] = []
    for path in paths:
        inside = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        if captured and not inside:
            raise PromptsError(f"{path} holds no file *.jsonl; name a file of JSON lines")
        files += inside
    written = [file for file in files if not is_segment(file)]
    prompts: list[Prompt] = []
    for file in written:
        prompts += _read_file(file, chat, (len(written) == 1 and domain) or file.stem)
    segments = (_read_segment(file, domain or CAPTURED) for file in files if captured and is_segment(file))
    newest = nlargest(captured, chain.from_iterable(segments), key=lambda prompt: prompt.captured_at or 0.0)
    prompts += newest[::-1]
    if not prompts and captured:
        raise PromptsError(f"{', '.join(map(str, paths))}: no prompt was captured yet; wait for traffic")
    return prompts


def _read_segment(file: Path, domain: str) -> list[Prompt]:
    try:
        rows = list(read(file))
    except FileNotFoundError:  # it expired meanwhile
        return []
    return [
        Prompt(
            f"{file.stem}-{number}",
            domain,
            written=row["text"],
            captured_at=row["at"],
            tenant=str(row["tenant"]) if "tenant" in row and row.get("salted") is False else None,
        )
        for number, row in enumerate(rows, 1)
        if row.get("text") and isinstance(row["text"], str) and isinstance(row.get("at"), (int, float))
    ]


def _read_file(file: Path, chat: bool, domain: str) -> list[Prompt]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8"
        raise PromptsError(f"{file} cannot be read: {reason}; name a file of JSON lines") from error
    prompts = []
    # split at no other line ends: JSON allows them in a string
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            where = f"{file}, line {number}"
            prompts.append(_read_line(line, where, Prompt(f"{file.stem}-{number}", domain), chat))
            try:
                prompts[-1].content.encode()
            except UnicodeEncodeError as error:
                raise PromptsError(f"{where} holds half a character (a lone surrogate); mend it") from error
    if not prompts:
        raise PromptsError(f"{file} holds no prompt; write one JSON object a line")
    return prompts


def _read_line(line: str, where: str, default: Prompt, chat: bool) -> Prompt:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise PromptsError(f"{where} is no JSON: {error}; write one object a line") from error
    if not isinstance(row, dict):
        raise PromptsError(f"{where}: write an object with 'prompt' or 'messages', not {type(row).__name__}")
    name, domain = (row.get(key) for key in ("id", "domain"))
    name, domain = default.name if name is None else str(name), default.domain if domain is None else domain
    if not isinstance(domain, str) or not domain:
        raise PromptsError(f"{where}: domain must be a text, not {domain!r:.80}")
    text, messages = row.get("prompt"), row.get("messages")
    if messages is None and text is None:
        raise PromptsError(f"{where}: write 'prompt' or 'messages'{_misspelt(row)}")
    if messages is not None:
        if not chat:
            raise PromptsError(f"{where}: 'messages' need the chat template; leave --completions out")
        return Prompt(name, domain, _turns(messages, where))
    if not isinstance(text, str) or not text:
        raise PromptsError(f"{where}: prompt must be a text, not {text!r:.80}")
    turns = ({"role": "user", "content": text},)
    return Prompt(name, domain, turns) if chat else Prompt(name, domain, (), text)


def _misspelt(row: Mapping[str, Any]) -> str:
    near = [name for name in row if get_close_matches(name, _EITHER, 1, 0.8) and name not in _EITHER]
    return f", not {near[0]!r:.80}" if near else ""


def _turns(messages: object, where: str) -> tuple[Mapping[str, Any], ...]:
    if not isinstance(messages, list) or not messages:
        raise PromptsError(f"{where}: messages must be a list of turns, at least one")
    for number, turn in enumerate(messages):
        if not isinstance(turn, dict) or not isinstance(turn.get("role"), str):
            raise PromptsError(f"{where}: messages[{number}] must be an object with a role")
    return tuple(messages)
