"""The cgroup under which a sandbox's pods live, in cgroup v1 (one tree per controller) and v2 (one tree)."""

from __future__ import annotations

import errno
import time
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_REMOVE_SECONDS = 10.0
_WANTED = ("cpu", "cpuset", "memory", "pids", "io", "hugetlb")
# All pods of a node share one cgroup, which by default weighs as much as one process of the host: on a busy
# machine they would starve.
_SHARES = {"cpu.shares": "8192", "cpu.weight": "800"}  # in v1 and v2; usual are 1024 and 100


def make(name: str) -> None:
    """Create the cgroup `name` in every tree; in v2 also hand it the controllers that a kubelet needs."""
    for tree in _trees():
        (tree / name).mkdir(exist_ok=True)
        if (tree / "cpuset.cpus").exists():  # v1: a new cpuset is empty and takes no process until filled
            for file in ("cpuset.cpus", "cpuset.mems"):
                (tree / name / file).write_text((tree / file).read_text())
        available = tree / "cgroup.controllers"
        if available.exists() and len(_trees()) == 1:
            there = available.read_text().split()
            enabled = (tree / "cgroup.subtree_control").read_text().split()
            for controller in _WANTED:
                if controller in there and controller not in enabled:
                    (tree / "cgroup.subtree_control").write_text(f"+{controller}")
        for file, share in _SHARES.items():
            if (tree / name / file).exists():
                (tree / name / file).write_text(share)


def remove(name: str) -> None:
    """Remove the cgroup `name` and all below it; its processes must be dead or dying.

    Raises OSError (EBUSY) when a process still lives in it after 10 s.
    """
    for tree in _trees():
        top = tree / name
        if top.is_dir():
            for folder in sorted((path for path in top.rglob("*") if path.is_dir()), reverse=True):
                _rmdir(folder)
            _rmdir(top)


def _trees() -> list[Path]:
    """Every mounted cgroup tree that holds processes."""
    if (_ROOT / "cgroup.procs").exists():
        return [_ROOT]
    return sorted(
        path for path in _ROOT.iterdir() if not path.is_symlink() and (path / "cgroup.procs").exists()
    )


def _rmdir(folder: Path) -> None:
    give_up = time.monotonic() + _REMOVE_SECONDS
    while True:
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError as busy:
            if busy.errno != errno.EBUSY or time.monotonic() > give_up:
                raise
            time.sleep(0.05)  # the kernel empties it after the last process's exit; v1 sends no event
        else:
            return
