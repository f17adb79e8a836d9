"""Files that are there whole or not at all, whenever the process is killed or the machine stops."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

_UMASK = os.umask(0)
os.umask(_UMASK)


def write_whole(path: Path, content: str) -> None:
    """Write a text, its folder too."""

    def write(scratch: Path) -> None:
        scratch.write_text(content, encoding="utf-8")

    write_whole_by(path, write)


def write_whole_by(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` write it under another name, and take that over once it is on the disk. It may be read by
    whom the file there could be read by, or else by whom the process lets read its files.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.new")
    write(scratch)
    scratch.chmod(stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o666 & ~_UMASK)
    with scratch.open("rb") as written:
        os.fsync(written.fileno())
    scratch.replace(path)
