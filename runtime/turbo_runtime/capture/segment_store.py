"""The folder that captured prompts lie in: segments of JSON lines, which several servers write side by side
into files of their own, and what becomes of old ones and of a tenant's.

`HOST-MILLISECONDS.jsonl`, whose writer holds a lock on it; `deleted.json` says whose prompts of before when
may not be there any more, for those who hold a lock on some.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from turbo_runtime.atomic_write import write_whole

SUFFIX, DELETED, _LOCK = ".jsonl", "deleted.json", "deleted.lock"
_SCRATCH_SECONDS = 600.0  # after which nobody writes a segment anew any more
_NAME = re.compile(r".+-\d{13}\.jsonl")  # milliseconds have 13 digits until 2286


@dataclass(frozen=True, slots=True)
class Segment:
    """One file."""

    path: Path
    began: float  # seconds since the epoch, as its name says
    size: int


def is_segment(path: Path) -> bool:
    """By its name."""
    return bool(_NAME.fullmatch(path.name))


def segments(folder: Path) -> list[Segment]:
    """Oldest first; files that are no segments are left alone."""
    found = []
    for path in folder.glob(f"*{SUFFIX}"):
        if is_segment(path):
            with suppress(FileNotFoundError):  # another server was faster
                began = int(path.stem.rpartition("-")[2]) / 1000
                found.append(Segment(path, began, path.stat().st_size))
    return sorted(found, key=lambda each: (each.began, each.path.name))


def expire(folder: Path, now: float, max_bytes: int, max_age_seconds: float) -> int:
    """Remove segments that are too old, then the oldest ones until the rest fits; returns the bytes left."""
    left = []
    for each in segments(folder):
        if now - each.began > max_age_seconds:
            each.path.unlink(missing_ok=True)
        else:
            left.append(each)
    total = sum(each.size for each in left)
    for each in left:
        if total <= max_bytes:
            break
        each.path.unlink(missing_ok=True)
        total -= each.size
    for scratch in folder.glob(f".*{SUFFIX}.new"):  # of a rewriting that a kill has broken off
        with suppress(FileNotFoundError):
            if now - scratch.stat().st_mtime > _SCRATCH_SECONDS:
                scratch.unlink()
    return total


@contextmanager
def opened(folder: Path, host: str, now: float) -> Iterator[TextIO]:
    """A new segment to append to, locked while it is open; for nobody else to read."""
    folder.mkdir(mode=0o770, parents=True, exist_ok=True)
    milliseconds = int(now * 1000)
    while True:
        path = folder / f"{host}-{milliseconds}{SUFFIX}"
        try:
            file = open(path, "x", encoding="utf-8", opener=_for_us)  # noqa: SIM115  only it opens so
            break
        except FileExistsError:
            milliseconds += 1
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            path.unlink()
            raise
        yield file


def _for_us(path: str, flags: int) -> int:
    return os.open(path, flags, 0o660)


def deletions(folder: Path) -> dict[str, float]:
    """By tenant when all its prompts were asked to be deleted. Raises ValueError for what is no such file."""
    try:
        document = json.loads((folder / DELETED).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    if not isinstance(document, dict) or not all(isinstance(at, (int, float)) for at in document.values()):
        raise ValueError(f"{folder / DELETED} does not say whose prompts were deleted when; remove it")
    return {str(tenant): float(at) for tenant, at in document.items()}


def is_capture(folder: Path) -> bool:
    """Whether prompts were kept here, or may be: no other file is here."""
    files = [path for path in folder.iterdir() if path.is_file()]
    return not files or (folder / DELETED) in files or any(map(is_segment, files))


def delete_tenant(folder: Path, tenant: str, now: float) -> tuple[int, int]:
    """Ask every server that writes here to take a tenant's prompts out, and do so in all other segments;
    returns how many lines that were, and how many are still those servers' to take out.
    """
    with (folder / _LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        gone = {**deletions(folder), tenant: now}
        write_whole(folder / DELETED, json.dumps(gone, indent=2) + "\n")
    count = sweep(folder, gone)
    left = 0
    for each in segments(folder):
        with suppress(FileNotFoundError):
            left += sum(_is_gone(row, {tenant: now}) for row in read(each.path))
    return count, left


def sweep(folder: Path, gone: Mapping[str, float]) -> int:
    """Take out of every segment that nobody writes what was asked before its tenant was deleted; returns how
    many lines that were.
    """
    count = 0
    for each in segments(folder):
        with suppress(FileNotFoundError), each.path.open("r+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # its writer will, once it has closed it
            count += _rewrite(each.path, gone)
    return count


def _rewrite(path: Path, gone: Mapping[str, float]) -> int:
    rows = list(read(path))
    kept = [row for row in rows if not _is_gone(row, gone)]
    if len(kept) < len(rows):
        if kept:
            write_whole(path, "".join(line(row) for row in kept))
        else:
            path.unlink()
    return len(rows) - len(kept)


def _is_gone(row: Mapping[str, Any], gone: Mapping[str, float]) -> bool:
    at = row.get("at")
    return str(row.get("tenant")) in gone and not (
        isinstance(at, (int, float)) and at > gone[str(row.get("tenant"))]
    )


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a segment; one that a kill has cut short is left out."""
    for text in path.read_text(encoding="utf-8").split("\n"):
        if text:
            with suppress(ValueError):
                row = json.loads(text)
                if isinstance(row, dict):
                    yield row


def line(row: Mapping[str, Any]) -> str:
    """One line."""
    return json.dumps(row, ensure_ascii=False) + "\n"


def host_name() -> str:
    """Of this server, in names of files: a pod's is its host's."""
    return "".join(each if each.isalnum() else "-" for each in os.uname().nodename) or "host"
