"""Connections in use, for a thread that wants to end what others wait for."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Lines:
    """A thread in a read of a socket hears of nothing but the socket: so that is shut down."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self.are_cut = False

    @contextmanager
    def keep(self, line: socket.socket) -> Iterator[None]:
        """Hold a connection while it is used; one that comes after the cut is cut too."""
        with self._lock:
            self._sockets.add(line)
            if self.are_cut:
                _shut(line)
        try:
            yield
        finally:
            with self._lock:
                self._sockets.discard(line)

    def cut(self) -> None:
        """End all reads and writes of these connections, now and from now on."""
        with self._lock:
            self.are_cut = True
            for line in self._sockets:
                _shut(line)


def _shut(line: socket.socket) -> None:
    with suppress(OSError):  # the other end was faster
        # Not the method of a TLS socket, which would also forget the state that its reader is about to use.
        socket.socket.shutdown(line, socket.SHUT_RDWR)
