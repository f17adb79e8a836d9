"""Files that are there whole or not at all, whenever the process is killed or the machine stops."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_UMASK = os.umask(0)
os.umask(_UMASK)


def write_whole(path: Path, content: str) -> None:
    """Write a text, its folder too."""

    def write(scratch: Path) -> None:
        scratch.write_text(content, encoding="utf-8")

    write_whole_by(path, write)


def write_whole_by(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` write it under another name, and take that over once it is on the disk. It belongs to whom
    the file there belonged to, as far as the process may give it away, and may be read by whom that could be
    read by; a new file by whom the process lets read its files.
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
