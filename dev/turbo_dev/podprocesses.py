"""The processes of a pod on the embedded node, as this machine sees them: a sandbox hides none."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

ENGINE = "multiprocessing.spawn"  # in the command line of the runtime's engine process, and of no other


def find(pod_uid: str, command: str = "") -> list[int]:
    """Ids of the processes of a pod whose command lines hold `command`."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            cgroup = (folder / "cgroup").read_text(encoding="ascii")
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):  # it has ended since
            continue
        if f"pod{pod_uid}/" in cgroup and command in line:
            found.append(int(folder.name))
    return found


@contextmanager
def stopped(pids: Iterable[int]) -> Iterator[None]:
    """Stop processes as a frozen machine would; they go on afterwards."""
    held = list(pids)
    try:
        for pid in held:
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in held:
            os.kill(pid, signal.SIGCONT)
