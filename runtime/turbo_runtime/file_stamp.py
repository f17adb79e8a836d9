"""Whether a file is another one than before: written, replaced, or behind a symlink that was swapped, as
files of a mounted ConfigMap or Secret are.
"""

from __future__ import annotations

from pathlib import Path

Stamp = tuple[int, int, int]


def file_stamp(path: Path) -> Stamp | None:
    """Of the file that a path leads to; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
