"""Addresses and a storage folder for one sandbox, so that several can stand side by side."""

from __future__ import annotations

import fcntl
import ipaddress
import json
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from .paths import cache_root
from .shell import run

SLOTS = 16


class NoSlotError(RuntimeError):
    """All slots are taken, or their address ranges are in use on this machine."""


@dataclass(frozen=True)
class Slot:
    """Sandbox number `index`: a /30 between host and sandbox, a /24 for pods and one for Services."""

    index: int

    @property
    def host_link(self) -> str:
        """The host's end of the veth pair."""
        return f"turbo{self.index}"

    @property
    def host_address(self) -> str:
        """The host's address on the link."""
        return f"10.231.{self.index}.1"

    @property
    def address(self) -> str:
        """The sandbox's address: API server and node."""
        return f"10.231.{self.index}.2"

    @property
    def pods(self) -> str:
        """The range of pod addresses."""
        return f"10.232.{self.index}.0/24"

    @property
    def services(self) -> str:
        """The range of Service addresses."""
        return f"10.233.{self.index}.0/24"

    @property
    def cgroup(self) -> str:
        """The name of the cgroup that all its pods are under."""
        return f"turbo-{self.index}"

    @property
    def store(self) -> Path:
        """Where its containerd keeps images. It outlives the sandbox: importing 5 GB again takes minutes."""
        return cache_root() / "containerd" / str(self.index)


def take() -> tuple[Slot, IO[str]]:
    """The first free slot and its lock; the slot stays taken while any process holds the lock's file open."""
    folder = cache_root() / "slots"
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(SLOTS):
        slot = Slot(index)
        lock = (folder / str(index)).open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        if _unused(slot):
            return slot, lock
        lock.close()
    raise NoSlotError(f"no free sandbox: all {SLOTS} are up, or this machine routes 10.231-233.0.0/16 itself")


def _unused(slot: Slot) -> bool:
    """No route of this machine's, but the default one and a dead sandbox's, goes where the slot's would."""
    ours = [
        ipaddress.ip_network(f"{slot.host_address}/30", strict=False),
        ipaddress.ip_network(slot.pods),
        ipaddress.ip_network(slot.services),
    ]
    for route in json.loads(run(["ip", "-4", "-j", "route", "show", "table", "all"])):
        target = route.get("dst", "default")
        if target == "default" or route.get("dev") == slot.host_link:
            continue
        if any(ipaddress.ip_network(target, strict=False).overlaps(each) for each in ours):
            return False
    return True
