"""Debian packages that the node needs: which are missing, and their installation without side effects."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .progress import step
from .shell import CommandError, run

# program -> the Debian package that brings it; a program that is there already is used as it is.
NODE_PROGRAMS = {
    "containerd": "containerd",
    "runc": "runc",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
    "openssl": "openssl",
    "ip": "iproute2",
}
IMAGE_PROGRAMS = {"buildah": "buildah", "debootstrap": "debootstrap"}

_POLICY = Path("/usr/sbin/policy-rc.d")
_MIRROR = re.compile(r"^(?:URIs:|deb\b[^#\n]*?)\s+(?P<url>https?://\S+/debian/?)(?:\s|$)", re.MULTILINE)
_CHANGE = re.compile(r"^Inst (?P<name>\S+) (?:\[(?P<old>[^]]+)\] )?\((?P<new>\S+)")


@dataclass(frozen=True)
class Change:
    """What apt would do with one package; `old` is None for one that is not there yet."""

    name: str
    new: str
    old: str | None

    def __str__(self) -> str:
        return f"{self.name} {self.new}" if self.old is None else f"{self.name} {self.old} -> {self.new}"


@dataclass(frozen=True)
class Plan:
    """The packages to ask apt for (with version pins) and every change that follows from it."""

    wanted: tuple[str, ...]
    changes: tuple[Change, ...]


def missing(programs: dict[str, str]) -> list[str]:
    """The packages of those `programs` that this machine lacks."""
    return [package for program, package in programs.items() if shutil.which(program) is None]


def plan(names: list[str]) -> Plan:
    """What installing `names` would change; packages that are there keep their version where apt can do that.

    (Asked for one new package, apt also upgrades its installed siblings of the same source.)
    Raises CommandError where apt knows no such package even after an update of its lists.
    """
    if not names:
        return Plan((), ())
    try:
        changes = _simulate(names)
    except CommandError:
        with step("update apt's package lists"):
            run(["apt-get", "update", "-q"])
        changes = _simulate(names)
    pinned = [*names, *(f"{change.name}={change.old}" for change in changes if change.old is not None)]
    try:
        return Plan(tuple(pinned), tuple(_simulate(pinned)))
    except CommandError:  # the new packages insist on newer siblings
        return Plan(tuple(names), tuple(changes))


def install(wanted: Plan) -> None:
    """Install a plan's packages; no service is started, now or at the next boot."""
    if not wanted.wanted:
        return
    with step(f"install {len(wanted.changes)} Debian packages", "20 s"), _no_service_starts():
        options = ["-q", "-y", "--no-install-recommends", "-o", "Dpkg::Options::=--force-confold"]
        env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        command = ["apt-get", "install", *options, *wanted.wanted]
        try:
            run(command, env=env)
        except CommandError:  # the lists may name versions that the mirror has replaced meanwhile
            run(["apt-get", "update", "-q"])
            run(command, env=env)
        if any(change.name == "containerd" and change.old is None for change in wanted.changes):
            _disable("containerd.service")


def apt_mirror() -> str:
    """The Debian mirror that this machine uses, Debian's own where it names none."""
    for file in (Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))):
        if file.is_file():
            found = _MIRROR.search(file.read_text(encoding="utf-8", errors="replace"))
            if found:
                return found["url"]
    return "http://deb.debian.org/debian"


def _simulate(names: list[str]) -> list[Change]:
    said = run(["apt-get", "install", "-s", "-q", "--no-install-recommends", *names])
    found = (_CHANGE.match(line) for line in said.splitlines())
    return [Change(match["name"], match["new"], match["old"]) for match in found if match]


def _disable(service: str) -> None:
    if shutil.which("systemctl") is not None:
        run(["systemctl", "disable", "-q", service])


@contextmanager
def _no_service_starts() -> Iterator[None]:
    """Debian's own way to say that installed services are not to be started: policy-rc.d answers 101."""
    if _POLICY.exists():
        before: bytes | None = _POLICY.read_bytes()
        mode = _POLICY.stat().st_mode
    else:
        before, mode = None, 0o755
    _POLICY.write_text("#!/bin/sh\nexit 101\n", encoding="ascii")
    _POLICY.chmod(0o755)
    try:
        yield
    finally:
        if before is None:
            _POLICY.unlink()
        else:
            _POLICY.write_bytes(before)
            _POLICY.chmod(mode)
