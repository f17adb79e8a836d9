"""Names of Services for pods of the embedded node, which has no DNS of its own: NAME.NAMESPACE.svc."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from .access import Access
from .cluster import Cluster
from .shell import CommandError

_HEADER = struct.Struct("!HHHHHH")
_ADDRESS, _INTERNET = 1, 1  # type A, class IN
_FOUND, _UNKNOWN = 0x8400, 0x8403  # an authoritative response; with NXDOMAIN


@contextmanager
def serving(cluster: Cluster) -> Iterator[None]:
    """Answer pods that start meanwhile, from this machine's end of the node's link."""
    address, file = str(cluster.slot.host_address), cluster.directory / "resolv.conf"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((address, 53))
        server.settimeout(0.5)
        is_over = threading.Event()
        thread = threading.Thread(target=_serve, args=(server, cluster.access, is_over))
        thread.start()
        file.write_text(f"nameserver {address}\n", encoding="ascii")
        try:
            yield
        finally:
            file.write_text("", encoding="ascii")
            is_over.set()
            thread.join()


def _serve(server: socket.socket, access: Access, is_over: threading.Event) -> None:
    known: dict[str, str] = {}  # a Service keeps its address
    while not is_over.is_set():
        # A query that has no response is asked again.
        with suppress(TimeoutError, CommandError):
            query, client = server.recvfrom(512)
            server.sendto(_respond(query, access, known), client)


def _respond(query: bytes, access: Access, known: dict[str, str]) -> bytes:
    """Return the response to a query of one question: the Service's address, where it asks for one. Raises
    CommandError where there is no such Service now.
    """
    identity, *_ = _HEADER.unpack_from(query)
    labels, at = list[str](), _HEADER.size
    while length := query[at]:
        labels.append(query[at + 1 : at + 1 + length].decode("ascii"))
        at += 1 + length
    question = query[_HEADER.size : at + 5]
    kind = struct.unpack_from("!H", query, at + 1)[0]
    if len(labels) != 3 or labels[2] != "svc":
        return _HEADER.pack(identity, _UNKNOWN, 1, 0, 0, 0) + question
    name = ".".join(labels)
    if name not in known:
        known[name] = access.get("service", labels[0], "-n", labels[1])["spec"]["clusterIP"]
    if kind != _ADDRESS:
        return _HEADER.pack(identity, _FOUND, 1, 0, 0, 0) + question
    record = struct.pack("!HHHIH", 0xC00C, _ADDRESS, _INTERNET, 5, 4) + socket.inet_aton(known[name])
    return _HEADER.pack(identity, _FOUND, 1, 1, 0, 0) + question + record
