"""Connections: limits on slow clients, clients that leave, and closing so that clients spread over pods."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import h11
from fastapi.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 20.0  # from the first byte, or the connection itself, to the last header
IDLE_SECONDS = 75  # between two requests: longer than clients keep a connection by themselves
STALL_SECONDS = 60.0  # how long a client may take nothing of its answer
SLICE_BYTES = 64 * 1024  # of an answer that is sent whole
# Keys of a request's state
CLOSE_AT = "close_at"  # when its connection is too old, on the loop's clock
ABORT = "abort"  # drops its connection together with what was not sent yet

Result = TypeVar("Result")


def build_protocol(connection_seconds: float) -> type[H11Protocol]:
    """Return uvicorn's HTTP/1.1 with limits on slow headers, slow readers and, unless 0, connection age.

    The reply after `connection_seconds`, give or take a fifth, asks the client to close: else a client that
    pools connections never sees a pod that starts later.
    """

    class Connection(H11Protocol):
        _header_timer: asyncio.TimerHandle | None = None
        _reader_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self.app_state = {**self.app_state, ABORT: transport.abort}
            if connection_seconds:
                age = connection_seconds * random.uniform(0.8, 1.2)  # noqa: S311  no secret
                self.app_state[CLOSE_AT] = self.loop.time() + age
            self._update_header_timer()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._update_header_timer()

        def connection_lost(self, exc: Exception | None) -> None:
            for timer in (self._header_timer, self._reader_timer):
                if timer is not None:
                    timer.cancel()
            self._header_timer = None
            super().connection_lost(exc)

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self._reader_timer is None:
                self._check_reader(None)

        def _check_reader(self, unread_before: int | None) -> None:
            """Abort the connection of a client that reads nothing of an answer's end, which is only buffered:
            it would stay for ever, even if it is to be closed.
            """
            unread = self.transport.get_write_buffer_size()
            self._reader_timer = None
            if unread and unread == unread_before:
                self.transport.abort()
            elif unread:
                self._reader_timer = self.loop.call_later(STALL_SECONDS, self._check_reader, unread)

        def _update_header_timer(self) -> None:
            """Headers are due while the client owes a request and has sent none of it, or a part."""
            if self.conn.their_state is not h11.IDLE or self.timeout_keep_alive_task is not None:
                if self._header_timer is not None:
                    self._header_timer.cancel()
                    self._header_timer = None
            elif self._header_timer is None:
                self._header_timer = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    return Connection


async def send_in_time(scope: Scope, send: Send, message: Message) -> None:
    """Send, or drop a client that takes nothing for `STALL_SECONDS`, and raise ConnectionError."""
    try:
        async with asyncio.timeout(STALL_SECONDS):
            await send(message)
    except TimeoutError:
        scope["state"][ABORT]()
        await asyncio.sleep(0)  # until uvicorn has noticed
        raise ConnectionAbortedError("the client read nothing") from None


async def send_whole(scope: Scope, send: Send, response: Response) -> None:
    """Send a response in slices, each as `send_in_time`: uvicorn waits for the client before it writes, so
    one that reads nothing would never be noticed with its whole answer in one piece.
    """
    head = {"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers}
    await send_in_time(scope, send, head)
    body = memoryview(response.body)
    for start in range(0, len(body), SLICE_BYTES):
        part = bytes(body[start : start + SLICE_BYTES])
        await send_in_time(scope, send, {"type": "http.response.body", "body": part, "more_body": True})
    await send_in_time(scope, send, {"type": "http.response.body", "body": b""})


async def run_until_disconnect(
    receive: Receive, work: Coroutine[Any, Any, Result], *cancelled_by: asyncio.Future[Any]
) -> Result | None:
    """Return the result of `work`; None if the client disconnects or one of `cancelled_by` is done first."""
    task = asyncio.create_task(work)
    disconnect = asyncio.create_task(_wait_for_disconnect(receive))
    try:
        await asyncio.wait({task, disconnect, *cancelled_by}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for unfinished in (task, disconnect):
            unfinished.cancel()
        await asyncio.wait({task, disconnect})


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class ConnectionCloser:
    """Middleware that adds `Connection: close` on connections that are too old, and on all while draining."""

    def __init__(self, app: ASGIApp, is_draining: Callable[[], bool]) -> None:
        self._app = app
        self._is_draining = is_draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""

        async def send_head(message: Message) -> None:
            if message["type"] == "http.response.start" and (self._is_draining() or _is_too_old(scope)):
                message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
            await send(message)

        await self._app(scope, receive, send_head)


def _is_too_old(scope: Scope) -> bool:
    close_at = scope.get("state", {}).get(CLOSE_AT)
    return close_at is not None and asyncio.get_running_loop().time() > close_at
