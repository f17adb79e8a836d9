"""Writes files that are whole or absent, whenever the process is killed or the machine stops."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_UMASK = os.umask(0)
os.umask(_UMASK)


def write_whole(path: Path, content: str) -> None:
    """Write a text, and create its folder."""
    write_whole_by(path, lambda scratch: scratch.write_text(content, encoding="utf-8"))


def write_whole_by(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` write a scratch file, and rename it once it is on the disk. Owner (as far as the process
    may change it) and mode are those of the file it replaces; a new file has the process's.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.new")
    write(scratch)
    if path.exists():
        before = path.stat()
        with suppress(PermissionError):
            os.chown(scratch, before.st_uid, before.st_gid)
        scratch.chmod(stat.S_IMODE(before.st_mode))
    else:
        scratch.chmod(0o666 & ~_UMASK)
    with scratch.open("rb") as written:
        os.fsync(written.fileno())
    scratch.replace(path)
