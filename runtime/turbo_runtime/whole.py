"""Files that are there whole or not at all, whenever the process is killed or the machine stops."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def write_whole(path: Path, content: str) -> None:
    """Write a text, its folder too."""

    def write(scratch: Path) -> None:
        scratch.write_text(content, encoding="utf-8")

    write_whole_by(path, write)


def write_whole_by(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` write it under another name, and take that over once it is on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.new")
    write(scratch)
    with scratch.open("rb") as written:
        os.fsync(written.fileno())
    scratch.replace(path)
