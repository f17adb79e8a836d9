"""The folder of captured prompts: segments of JSON lines, to which each server writes files of its own; their
expiry, and the deletion of a tenant's prompts.

The writer of `HOST-MILLISECONDS.jsonl` holds a lock on it; `deleted.json` records until when each tenant's
prompts are to be deleted, for the holders of locks.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from turbo_runtime.files import write_whole

SUFFIX, DELETED, _LOCK = ".jsonl", "deleted.json", "deleted.lock"
_SCRATCH_SECONDS = 600.0  # after which nobody writes a segment anew any more
_NAME = re.compile(r".+-\d{13}\.jsonl")  # milliseconds have 13 digits until 2286


class Segment(NamedTuple):
    """A file of the folder."""

    began: float  # seconds since the epoch, as its name says
    path: Path
    size: int


def is_segment(path: Path) -> bool:
    """Whether its name is a segment's."""
    return bool(_NAME.fullmatch(path.name))


def segments(folder: Path) -> list[Segment]:
    """List the segments, oldest first."""
    result = []
    for path in filter(is_segment, folder.glob(f"*{SUFFIX}")):
        with suppress(FileNotFoundError):  # another server was faster
            began = int(path.stem.rpartition("-")[2]) / 1000
            result.append(Segment(began, path, path.stat().st_size))
    return sorted(result)


def expire(folder: Path, now: float, max_bytes: int, max_age_seconds: float) -> int:
    """Remove segments that are too old, then the oldest ones until the rest fits; return its bytes."""
    remaining = segments(folder)
    total = sum(segment.size for segment in remaining)
    for segment in remaining:
        if now - segment.began <= max_age_seconds and total <= max_bytes:
            break
        segment.path.unlink(missing_ok=True)
        total -= segment.size
    for scratch in folder.glob(f".*{SUFFIX}.new"):  # of a rewriting that a kill has broken off
        with suppress(FileNotFoundError):
            if now - scratch.stat().st_mtime > _SCRATCH_SECONDS:
                scratch.unlink()
    return total


def create_segment(folder: Path, now: float) -> TextIO:
    """Open a new segment to append to, locked until it is closed; only user and group may read it."""
    host = "".join(char if char.isalnum() else "-" for char in os.uname().nodename) or "host"
    folder.mkdir(mode=0o770, parents=True, exist_ok=True)
    for milliseconds in count(int(now * 1000)):
        path = folder / f"{host}-{milliseconds}{SUFFIX}"
        with suppress(FileExistsError):
            file = open(path, "x", encoding="utf-8", opener=lambda path, flags: os.open(path, flags, 0o660))  # noqa: SIM115
            break
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:
        path.unlink()
        file.close()
        raise
    return file


def deletions(folder: Path) -> dict[str, float]:
    """Read by tenant when its deletion was requested. Raises ValueError for what is no such file."""
    try:
        document = json.loads((folder / DELETED).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    if not isinstance(document, dict) or not all(isinstance(at, (int, float)) for at in document.values()):
        raise ValueError(f"{folder / DELETED} does not say whose prompts were deleted when; remove it")
    return {str(tenant): float(at) for tenant, at in document.items()}


def is_capture(folder: Path) -> bool:
    """Whether the folder holds captured prompts, or nothing."""
    files = [path for path in folder.iterdir() if path.is_file()]
    return not files or (folder / DELETED) in files or any(map(is_segment, files))


def delete_tenant(folder: Path, tenant: str, now: float) -> tuple[int, int]:
    """Request it of every server that writes here, and delete in all other segments. Return the number of
    deleted lines, and of those that the servers are yet to delete.
    """
    with (folder / _LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        gone = {**deletions(folder), tenant: now}
        write_whole(folder / DELETED, json.dumps(gone, indent=2) + "\n")
    num_deleted, num_left = sweep(folder, gone), 0
    for segment in segments(folder):
        with suppress(FileNotFoundError):
            num_left += sum(_is_gone(row, {tenant: now}) for row in read(segment.path))
    return num_deleted, num_left


def sweep(folder: Path, gone: Mapping[str, float]) -> int:
    """Delete from all unlocked segments what precedes its tenant's deletion; return the number of lines."""
    num_deleted = 0
    for segment in segments(folder):
        with suppress(FileNotFoundError), segment.path.open("r+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # its writer will, once it has closed it
            rows = list(read(segment.path))
            kept = [line(row) for row in rows if not _is_gone(row, gone)]
            if not kept and rows:
                segment.path.unlink()
            elif len(kept) < len(rows):
                write_whole(segment.path, "".join(kept))
            num_deleted += len(rows) - len(kept)
    return num_deleted


def _is_gone(row: Mapping[str, Any], gone: Mapping[str, float]) -> bool:
    at, until = row.get("at"), gone.get(str(row.get("tenant")))
    return until is not None and not (isinstance(at, (int, float)) and at > until)


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Read the lines of a segment but one that a kill has cut short."""
    for text in path.read_text(encoding="utf-8").split("\n"):
        with suppress(ValueError):
            row = json.loads(text)
            if isinstance(row, dict):
                yield row


def line(row: Mapping[str, Any]) -> str:
    """Format a line."""
    return json.dumps(row, ensure_ascii=False) + "\n"
