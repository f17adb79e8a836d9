"""The embedded cluster with a real node: up, down, and the way in."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from . import binaries, node, packages, sandbox, slots
from .access import Access, load
from .paths import cache_root
from .progress import step
from .shell import CommandError, run


class NotRootError(PermissionError):
    """Namespaces, mounts and a kubelet need root."""


@dataclass(frozen=True)
class Cluster:
    """The embedded cluster called `name`; at most one of a name, several names side by side."""

    name: str

    @property
    def directory(self) -> Path:
        """All of the cluster's files but its images."""
        return cache_root() / f"cluster-{self.name}"

    @property
    def access(self) -> Access:
        """The way in; FileNotFoundError where the cluster is not up."""
        return load(self.directory / "admin.kubeconfig")

    def up(self) -> Access:
        """Bring the cluster up, or keep it where it is up and well.

        Builds and installs what is missing. Raises NotRootError, binaries.GoMissingError,
        sandbox.SandboxError.
        """
        if os.geteuid() != 0:
            raise NotRootError("the embedded cluster needs root: it makes network and mount namespaces")
        if self.healthy():
            return self.access
        self.down()
        packages.install(packages.plan(packages.missing(packages.NODE_PROGRAMS)))
        binaries.ensure(binaries.CONTROL_PLANE + binaries.NODE)
        self.directory.mkdir(parents=True, mode=0o700)
        slot, lock = slots.take()
        with lock, step(f"start the embedded Kubernetes `{self.name}`", "20 s"):
            slot.store.mkdir(parents=True, exist_ok=True)
            sandbox.start(self.directory, slot, lock, self._handle_file)
        return self.access

    def down(self) -> bool:
        """Remove the cluster and all that it left on this machine but cached images; False where none was."""
        if not self.directory.exists():
            return False
        handle = sandbox.Handle.load(self._handle_file)
        if handle is not None:
            sandbox.stop(handle)
        shutil.rmtree(self.directory)
        return True

    def healthy(self) -> bool:
        """The cluster runs and its node is Ready."""
        handle = sandbox.Handle.load(self._handle_file)
        if handle is None or not handle.alive:
            return False
        try:
            return node.is_ready(self.access)
        except FileNotFoundError:  # its start was interrupted
            return False

    def ctr(self, *arguments: str) -> str:
        """Run containerd's client on the node, in the namespace of Kubernetes' images."""
        return run([*self._ctr(), *arguments])

    @contextmanager
    def importing(self) -> Iterator[IO[bytes]]:
        """A stream that takes an image archive into the node's containerd."""
        command = [*self._ctr(), "images", "import", "-"]
        importer = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert importer.stdin is not None
        with importer:
            with importer.stdin as stream:
                yield stream
            assert importer.stdout is not None
            said = importer.stdout.read().decode(errors="replace")
        if importer.returncode != 0:
            raise CommandError(f"{' '.join(command)}: exit status {importer.returncode}\n{said[-4000:]}")

    @property
    def slot(self) -> slots.Slot:
        """The slot that the running cluster has."""
        return slots.Slot(self._running().slot)

    def enter(self, *namespaces: str) -> list[str]:
        """The words before a command that shall run in `namespaces` ("net", "mount") of the sandbox."""
        return ["nsenter", f"--target={self._running().pid}", *(f"--{name}" for name in namespaces)]

    def _ctr(self) -> list[str]:
        return [*self.enter("mount", "net"), "ctr", f"--address={node.SOCKET}", "--namespace=k8s.io"]

    def _running(self) -> sandbox.Handle:
        handle = sandbox.Handle.load(self._handle_file)
        if handle is None or not handle.alive:
            raise sandbox.SandboxError(f"the embedded cluster `{self.name}` is not up")
        return handle

    @property
    def _handle_file(self) -> Path:
        return self.directory / "sandbox.json"


def names() -> list[str]:
    """The clusters that are up or were left half down."""
    return sorted(path.name.removeprefix("cluster-") for path in cache_root().glob("cluster-*"))


def of_this_process() -> Cluster:
    """The cluster of a test run. What runs left that died before they took theirs down is removed first."""
    for name in names():
        kind, _, pid = name.partition("-")
        if kind == "test" and pid.isdecimal() and not Path(f"/proc/{pid}").exists():
            Cluster(name).down()
    return Cluster(f"test-{os.getpid()}")
