"""Namespaces of their own for a cluster: what runs inside leaves no mount, rule or process outside."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from . import cgroups
from .inside import LINK
from .paths import REPOSITORY
from .shell import CommandError, run
from .slots import Slot

# Its own session, and no child of ours: neither Ctrl-C nor the end of `make` is for the cluster.
_DETACHED = ("setsid", "--fork", "sh", "-c", 'echo $$; exec "$@"', "sh")
_NAMESPACES = (
    *("unshare", "--net", "--mount", "--propagation", "private", "--pid", "--fork"),
    *("--kill-child=KILL", "--mount-proc"),
)


class SandboxError(RuntimeError):
    """The sandbox did not come up; the message says why."""


@dataclass(frozen=True)
class Handle:
    """A running sandbox: its slot, and its outer process by id and start time (ids are used again)."""

    slot: int
    pid: int
    started: int

    def save(self, path: Path) -> None:
        """Write the handle for later commands."""
        path.write_text(json.dumps(asdict(self)), encoding="ascii")

    @staticmethod
    def load(path: Path) -> Handle | None:
        """The handle in `path`, None where there is none."""
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="ascii"))
        except FileNotFoundError:
            return None
        return Handle(**content)

    @property
    def alive(self) -> bool:
        """The sandbox's outer process runs."""
        return _started(self.pid) == self.started


def start(directory: Path, slot: Slot, lock: IO[str], handle_file: Path) -> Handle:
    """Start a cluster's sandbox in `directory` and wait until its node is Ready; SandboxError if it is not.

    The handle is on disk before anything can fail, so that `stop` finds what an interrupted start left.
    """
    _forget_link(slot)
    with (directory / "sandbox.log").open("ab") as log:
        starter = subprocess.Popen(
            [*_DETACHED, *_NAMESPACES, sys.executable, "-m", "turbo_dev.inside", directory, str(slot.index)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            pass_fds=(lock.fileno(),),
            cwd="/",
            env={**os.environ, "PYTHONPATH": str(REPOSITORY / "dev")},
        )
    starter.wait()
    assert starter.stdin is not None
    assert starter.stdout is not None
    with starter.stdin as to_it, starter.stdout as from_it:
        pid = int(from_it.readline())
        handle = Handle(slot.index, pid, _started(pid) or 0)
        handle.save(handle_file)
        if from_it.readline():  # the namespaces are there
            _attach(pid, slot)
            to_it.write("attached\n")
            to_it.flush()
        answer = from_it.readline()
    if not answer:
        raise SandboxError(f"the sandbox ended; its log is {directory / 'sandbox.log'}")
    error = json.loads(answer)["error"]
    if error is not None:
        raise SandboxError(error)
    return handle


def stop(handle: Handle) -> None:
    """End everything in the sandbox and remove its link and cgroups; nothing happens where it is gone."""
    slot = Slot(handle.slot)
    if handle.alive:
        watch = os.pidfd_open(handle.pid)
        try:
            for child in _children(handle.pid):
                os.kill(
                    child, signal.SIGKILL
                )  # first process of its pid namespace: the kernel ends the others
            select.select([watch], [], [], 60)
        finally:
            os.close(watch)
    _forget_link(slot)
    cgroups.remove(slot.cgroup)


def _attach(pid: int, slot: Slot) -> None:
    """A veth pair from the host into the sandbox's network, and the host's routes through it."""
    for words in (
        f"link add {slot.host_link} type veth peer name {LINK} netns {pid}",
        f"addr add {slot.host_address}/30 dev {slot.host_link}",
        f"link set {slot.host_link} up",
        f"route add {slot.pods} via {slot.address} dev {slot.host_link}",
        f"route add {slot.services} via {slot.address} dev {slot.host_link}",
    ):
        run(["ip", *words.split()])


def _forget_link(slot: Slot) -> None:
    if (Path("/sys/class/net") / slot.host_link).exists():
        try:
            run(["ip", "link", "delete", slot.host_link])
        except CommandError:  # the kernel, which ends a dead sandbox's network by itself, was faster
            if (Path("/sys/class/net") / slot.host_link).exists():
                raise


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _started(pid: int) -> int | None:
    """When process `pid` was started, in clock ticks since boot; None when it has ended (a zombie has)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else int(fields[19])
