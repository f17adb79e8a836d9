"""Prompts as people keep them: JSON lines, one prompt each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from heapq import nlargest
from pathlib import Path
from typing import Any

from turbo_runtime.capture.segment_store import is_segment, read

CAPTURED = "captured"
MAX_CAPTURED = 5000
_EITHER = ("prompt", "messages")


class PromptsError(ValueError):
    """The prompts cannot be used; one sentence names file and line, and says what to write."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One conversation that the model is to go on with."""

    name: str
    domain: str
    messages: tuple[Mapping[str, Any], ...] = ()  # of a chat; empty where `text` is the prompt
    text: str = ""
    written: str = ""  # the prompt as the model reads it, special tokens written out
    captured_at: float | None = None  # seconds since the epoch, of one that a server has kept

    @property
    def content(self) -> str:
        """What is asked, in one string: prompts with the same one are one prompt."""
        return self.written or self.text or json.dumps(self.messages, sort_keys=True, ensure_ascii=False)


def read_prompts(
    paths: Sequence[Path], *, chat: bool = True, captured: int = MAX_CAPTURED, domain: str = ""
) -> list[Prompt]:
    """The prompts of files, and of all `*.jsonl` in folders. A line is an object with `prompt`, a text that
    becomes a chat's first turn (without `chat`, the prompt as it is), or with `messages`; where it has no
    `domain` that is `domain`, or, of several files or without it, the file's name; where it has no `id` that
    is its line. Of what `turbo serve --capture` has written the newest `captured` prompts are read too, as of
    `domain`, or else of the domain `captured`, and no more are held in memory. Raises PromptsError.
    """
    files: list[Path] = []
    for path in paths:
        some = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        if not some and captured:
            raise PromptsError(f"{path} holds no file *.jsonl; name a file of JSON lines")
        files += some
    kept = [file for file in files if is_segment(file)]
    written = [file for file in files if not is_segment(file)]
    found: list[Prompt] = []
    for file in written:
        prompts = _read_file(file, chat, (len(written) == 1 and domain) or file.stem)
        if not prompts:
            raise PromptsError(f"{file} holds no prompt; write one JSON object a line")
        found += prompts
    if captured:
        of = domain or CAPTURED
        rows = (prompt for file in kept for prompt in _read_segment(file, of))  # one just begun has none
        found += nlargest(captured, rows, key=lambda prompt: prompt.captured_at or 0.0)[::-1]
    if not found and captured:
        raise PromptsError(f"{', '.join(map(str, paths))}: no prompt was captured yet; wait for traffic")
    return found


def _read_segment(file: Path, domain: str) -> list[Prompt]:
    try:
        rows = list(read(file))
    except FileNotFoundError:  # it was too old meanwhile
        return []
    return [
        Prompt(f"{file.stem}-{number}", domain, written=row["text"], captured_at=row["at"])
        for number, row in enumerate(rows, 1)
        if row.get("text") and isinstance(row["text"], str) and isinstance(row.get("at"), (int, float))
    ]


def _read_file(file: Path, chat: bool, domain: str) -> list[Prompt]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8"
        raise PromptsError(f"{file} cannot be read: {reason}; name a file of JSON lines") from error
    lines = text.split("\n")  # and no other line ends, which JSON allows within a string
    prompts = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            where = f"{file}, line {number}"
            prompt = _read_line(line, where, Prompt(f"{file.stem}-{number}", domain), chat)
            try:
                prompt.content.encode()
            except UnicodeEncodeError as error:
                raise PromptsError(f"{where} holds half a character (a lone surrogate); mend it") from error
            prompts.append(prompt)
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
