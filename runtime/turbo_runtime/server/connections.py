"""Connections: how long one may dawdle, and when it is closed so that clients spread over the pods."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import h11
from fastapi.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 20.0  # from the first byte, or the connection itself, to the last header
IDLE_SECONDS = 75  # between two requests: longer than clients keep a connection by themselves
STALL_SECONDS = 60.0  # how long a client may take nothing of its answer
SLICE_BYTES = 64 * 1024  # of an answer that is sent whole
# What a request's state tells of its connection.
CLOSE_AT = "close_at"  # when it is too old, on the loop's clock
ABORT = "abort"  # drops it together with what was not sent yet


def protocol(connection_seconds: float) -> type[H11Protocol]:
    """uvicorn's HTTP/1.1, with a limit on how long a request's headers may take.

    A connection is asked to end after `connection_seconds`, give or take a fifth, with the next answer; 0
    lets it live on. Without that a client that pools connections never sees a pod that came later.
    """

    class Connection(H11Protocol):
        _headers_due: asyncio.TimerHandle | None = None
        _reading_due: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self.app_state = {**self.app_state, ABORT: transport.abort}
            if connection_seconds:
                age = connection_seconds * random.uniform(0.8, 1.2)  # noqa: S311  no secret
                self.app_state[CLOSE_AT] = self.loop.time() + age
            self._expect_headers()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._expect_headers()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_expecting()
            if self._reading_due is not None:
                self._reading_due.cancel()
            super().connection_lost(exc)

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self._reading_due is None:
                self._expect_reading(None)

        def _expect_reading(self, before: int | None) -> None:
            """The end of an answer is only written: whoever reads nothing of it would keep it for ever, on a
            connection that is to be closed, too.
            """
            unread = self.transport.get_write_buffer_size()
            self._reading_due = None
            if unread and unread == before:
                self.transport.abort()
            elif unread:
                self._reading_due = self.loop.call_later(STALL_SECONDS, self._expect_reading, unread)

        def _expect_headers(self) -> None:
            """Headers are due while the client owes a request and has sent none of it, or a part."""
            if self.conn.their_state is not h11.IDLE or self.timeout_keep_alive_task is not None:
                self._stop_expecting()
            elif self._headers_due is None:
                self._headers_due = self.loop.call_later(HEADER_SECONDS, self.transport.close)

        def _stop_expecting(self) -> None:
            if self._headers_due is not None:
                self._headers_due.cancel()
                self._headers_due = None

    return Connection


async def send_in_time(scope: Scope, send: Send, message: Message) -> None:
    """Send, or drop the connection of a client that takes nothing for `STALL_SECONDS`: what it does not
    read would wait in memory.

    Raises ConnectionError after it has been dropped.
    """
    try:
        async with asyncio.timeout(STALL_SECONDS):
            await send(message)
    except TimeoutError:
        scope["state"][ABORT]()
        await asyncio.sleep(0)  # until uvicorn has heard of it
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


class Farewell:
    """Adds `Connection: close` to answers on connections that are too old, and to all while draining."""

    def __init__(self, app: ASGIApp, draining: Callable[[], bool]) -> None:
        self._app = app
        self._draining = draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""

        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start" and (self._draining() or _too_old(scope)):
                message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
            await send(message)

        await self._app(scope, receive, send_on)


def _too_old(scope: Scope) -> bool:
    close_at = scope.get("state", {}).get(CLOSE_AT)
    return close_at is not None and asyncio.get_running_loop().time() > close_at
