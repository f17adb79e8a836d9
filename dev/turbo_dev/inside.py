"""The first process of a sandbox: it lays network and mounts, starts the cluster, and reaps what dies.

Run by turbo_dev.sandbox in namespaces of its own, with the sandbox's directory and slot as arguments. It
says a line when it is there, waits for one (the host has attached the network), answers with one line of JSON
({"error": null} or a sentence) and then stays: when it ends, everything in the sandbox ends.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

from . import binaries, cgroups
from .controlplane import ControlPlane, Settings
from .node import Node
from .shell import run
from .slots import Slot

LINK = "outside"  # the sandbox's end of the veth pair
API_PORT = 6443


def main(directory: Path, slot: Slot) -> NoReturn:
    """Start everything, report, and wait for the end."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    _say("in the namespaces")
    sys.stdin.readline()
    settings = Settings(address=slot.address, port=API_PORT, services=slot.services)
    plane = ControlPlane(directory, settings=settings)
    try:
        _network(slot)
        _mounts(directory)
        cgroups.make(slot.cgroup)
        tools = binaries.ensure(binaries.NODE)
        plane.__enter__()  # never left: the kernel ends all of it together with this process
        Node(directory, slot).start(plane, tools)
    except Exception as error:
        _say(json.dumps({"error": str(error)}))
        raise
    _say(json.dumps({"error": None}))
    _reap(plane)


def _network(slot: Slot) -> None:
    """One address towards the host, a sink for the Services' range, and forwarding to the pods' bridge."""
    for words in (
        "link set lo up",
        f"addr add {slot.address}/30 dev {LINK}",
        f"link set {LINK} up",
        # kube-proxy's rules answer for this range; a route must exist for a packet to get that far.
        "link add sink type bridge",
        "link set sink up",
        f"route add {slot.services} dev sink src {slot.address}",
    ):
        run(["ip", *words.split()])
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1", encoding="ascii")


def _mounts(directory: Path) -> None:
    """Mounts that pods may share, and folders of our own where programs insist on the host's paths."""
    # /run first, and without a note (-n): mount keeps its notes in /run/mount, which would be the host's.
    run(["mount", "-n", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run"])
    run(["mount", "-n", "--make-rshared", "/"])
    for theirs in ("/var/lib", "/var/log"):
        ours = directory / theirs.lstrip("/").replace("/", "-")
        ours.mkdir(exist_ok=True)
        run(["mount", "--bind", ours, theirs])


def _say(line: str) -> None:
    print(line, flush=True)


def _reap(plane: ControlPlane) -> NoReturn:
    """Wait for children: an orphan is reaped, a component's death is an error."""
    while True:
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
        assert ended is not None
        if plane.processes.name_of(ended.si_pid) is not None:
            plane.processes.check()
        else:
            os.waitpid(ended.si_pid, 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Slot(int(sys.argv[2])))
