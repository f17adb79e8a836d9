"""Connections: limits on their number and on slow clients, clients that leave, and closing so that clients
spread over pods.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import h11
from fastapi.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from turbo_runtime.contract import endpoints
from turbo_runtime.protocol.errors import unavailable

HEADER_SECONDS = 20.0  # from the first byte, or the connection itself, to the last header
IDLE_SECONDS = 75  # between two requests: longer than clients keep a connection by themselves
STALL_SECONDS = 60.0  # how long a client may take nothing of its answer
SLICE_BYTES = 64 * 1024  # of an answer that is sent whole
SPARE_CONNECTIONS = 64  # beyond the limit, for probes and for refusals
# In a request's state: when its connection is too old, on the loop's clock; whether it is beyond the limit
CLOSE_AT, IS_SPARE = "close_at", "is_spare"
_PROBES = frozenset(
    {
        endpoints.HEALTH_PATH,
        endpoints.READY_PATH,
        endpoints.LOAD_PATH,
        endpoints.METRICS_PATH,
        endpoints.VERSION_PATH,
    }
)

Result = TypeVar("Result")


def build_protocol(connection_seconds: float, max_connections: float = math.inf) -> type[H11Protocol]:
    """Return uvicorn's HTTP/1.1 with limits on slow headers, slow readers and, unless 0, connection age.

    The reply after `connection_seconds`, give or take a fifth, asks the client to close: else a client that
    pools connections never sees a pod that starts later.

    Beyond `max_connections` a new one takes the place of the oldest that has no request. While all have one,
    `SPARE_CONNECTIONS` more are open, whose requests `limit_connections` refuses but for probes.
    """
    opened: dict[Connection, None] = {}  # oldest first

    class Connection(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._timers: dict[str, asyncio.TimerHandle] = {}  # header, reader
            if len(opened) >= max_connections:
                idle = next((other for other in opened if other.conn.their_state is h11.IDLE), None)
                if idle is not None:
                    del opened[idle]
                    idle.transport.close()
                elif len(opened) >= max_connections + SPARE_CONNECTIONS:
                    transport.abort()
                self.app_state = {**self.app_state, IS_SPARE: len(opened) >= max_connections}
            opened[self] = None
            if connection_seconds:
                age = connection_seconds * random.uniform(0.8, 1.2)  # noqa: S311  no secret
                self.app_state = {**self.app_state, CLOSE_AT: self.loop.time() + age}
            self._update_header_timer()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._update_header_timer()

        def connection_lost(self, exc: Exception | None) -> None:
            opened.pop(self, None)
            self._cancel("header")
            self._cancel("reader")
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._check_reader(None)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._cancel("reader")
            if self.cycle is None or self.cycle.response_complete:
                self._check_reader(None)

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._check_reader(None)

        def _check_reader(self, unread_before: int | None) -> None:
            """Abort if the client reads nothing of what is buffered, be it the end of the last response."""
            unread = self.transport.get_write_buffer_size()
            self._cancel("reader")
            if unread and unread == unread_before:
                self.transport.abort()
            elif unread:
                self._timers["reader"] = self.loop.call_later(STALL_SECONDS, self._check_reader, unread)

        def _update_header_timer(self) -> None:
            """Headers are due while the client owes a request and has sent none of it, or a part."""
            if self.conn.their_state is not h11.IDLE or self.timeout_keep_alive_task is not None:
                self._cancel("header")
            elif "header" not in self._timers:
                self._timers["header"] = self.loop.call_later(HEADER_SECONDS, self.transport.close)

        def _cancel(self, timer: str) -> None:
            if timer in self._timers:
                self._timers.pop(timer).cancel()

    return Connection


async def send_whole(send: Send, response: Response) -> None:
    """Send a response in slices, until the client has most of it: uvicorn waits for it before it writes."""
    head = {"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers}
    await send(head)
    body = memoryview(response.body)
    for start in range(0, len(body), SLICE_BYTES):
        part = bytes(body[start : start + SLICE_BYTES])
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def run_until_disconnect(
    receive: Receive, work: Coroutine[Any, Any, Result], *cancelled_by: asyncio.Future[Any]
) -> Result | None:
    """Return the result of `work`; None if the client disconnects or one of `cancelled_by` is done first."""

    async def wait_for_disconnect() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    task = asyncio.create_task(work)
    disconnect = asyncio.create_task(wait_for_disconnect())
    try:
        await asyncio.wait({task, disconnect, *cancelled_by}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for unfinished in (task, disconnect):
            unfinished.cancel()
        await asyncio.wait({task, disconnect})


def limit_connections(app: ASGIApp, is_draining: Callable[[], bool]) -> ASGIApp:
    """Add `Connection: close` to replies on connections that are too old or too many, and to all while
    draining; refuse all but probes on those that are too many.
    """

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        state = scope.get("state", {})
        close_at, is_spare = state.get(CLOSE_AT, math.inf), state.get(IS_SPARE, False)

        async def send_head(message: Message) -> None:
            is_closing = is_spare or is_draining() or asyncio.get_running_loop().time() > close_at
            if message["type"] == "http.response.start" and is_closing:
                message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
            await send(message)

        if is_spare and scope["path"] not in _PROBES:
            error = unavailable("All connections of this server are in use: send it again.", retry_after=1)
            refusal = JSONResponse(error.body(), status_code=error.status, headers=error.headers)
            await refusal(scope, receive, send_head)
        else:
            await app(scope, receive, send_head)

    return wrapped
