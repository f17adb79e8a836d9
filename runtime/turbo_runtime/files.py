"""Files: read as JSON, written whole or not at all, compared by stamps, and digested."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

Stamp = tuple[int, int, int]
_UMASK = os.umask(0)
os.umask(_UMASK)


def read_object(path: Path, problem: type[Exception], remedy: str) -> dict[str, Any]:
    """Read a JSON object. Raises `problem` with a sentence that ends with the remedy."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise problem(f"{path} cannot be read: {error}; {remedy}") from error
    if not isinstance(document, dict):
        raise problem(f"{path}: expected a JSON object, got {type(document).__name__}; {remedy}")
    return document


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
    mode = 0o666 & ~_UMASK
    if path.exists():
        before = path.stat()
        mode = stat.S_IMODE(before.st_mode)
        with suppress(PermissionError):
            os.chown(scratch, before.st_uid, before.st_gid)
    scratch.chmod(mode)
    with scratch.open("rb") as written:
        os.fsync(written.fileno())
    scratch.replace(path)


def file_stamp(path: Path) -> Stamp | None:
    """Return what changes with a file, also behind a swapped symlink (a ConfigMap); None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def checkpoint_digest(folder: Path) -> str:
    """Digest a draft's configuration and its tensors, and no other file."""
    digest = hashlib.sha256()
    for file in (folder / "config.json", *sorted(folder.glob("*.safetensors"))):
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return f"sha256:{digest.hexdigest()}"
