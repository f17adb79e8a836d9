"""A container registry on loopback, for this machine and for the node of an embedded cluster."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from . import binaries
from .cluster import Cluster
from .processes import ProcessGroup
from .shell import CommandError, run

_START_SECONDS = 30.0


@contextmanager
def serve(folder: Path, cluster: Cluster | None = None) -> Iterator[str]:
    """Run a registry that keeps its blobs in `folder`; yields its address, HOST:PORT.

    A sandbox has a loopback of its own. So one process serves the host, to push to, and a second one over
    the same folder serves the sandbox, to pull from: one name for both, and no certificate, since clients
    take plain HTTP on loopback.
    """
    program = binaries.ensure(binaries.REGISTRY)["registry"]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = folder / "config.yml"  # JSON is YAML
    config.write_text(
        json.dumps(
            {
                "version": 0.1,
                "log": {"level": "warn"},
                "storage": {"filesystem": {"rootdirectory": str(folder / "blobs")}},
                "http": {"addr": f"127.0.0.1:{port}"},
            }
        )
    )
    processes = ProcessGroup(folder / "logs")
    try:
        for name, enter in (("host", []), *([("sandbox", cluster.enter("net"))] if cluster else [])):
            processes.start(name, [*enter, program, "serve", config], env={"OTEL_TRACES_EXPORTER": "none"})
            processes.wait_until(
                lambda enter=enter: _is_listening(enter, port),  # type: ignore[misc] # bound in the loop
                f"the {name}'s registry listens",
                _START_SECONDS,
            )
        yield f"127.0.0.1:{port}"
    finally:
        processes.stop()


def _is_listening(enter: Sequence[str], port: int) -> bool:
    probe = f"import socket; socket.create_connection(('127.0.0.1', {port}), 5).close()"
    try:
        run([*enter, sys.executable, "-c", probe])
    except CommandError:
        return False
    return True
