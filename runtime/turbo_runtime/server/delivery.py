"""Replies on their way to the client, whole or as a stream.

Both hold the answers until the client has them: when it leaves, or reads nothing any more, the engine is told
at once, and what it has not read counts against the queue.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from turbo_runtime.server.answer import Piece
from turbo_runtime.server.connections import send_in_time
from turbo_runtime.server.errors import ApiError
from turbo_runtime.server.replies import SSE_DONE, Reply, sse
from turbo_runtime.server.requests.base import StreamOptions


class WholeReply(Response):
    """Sent when all answers are finished. Raises ApiError, before anything is sent."""

    def __init__(self, reply: Reply) -> None:
        super().__init__()
        self._reply = reply

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""

        async def send_on(message: Message) -> None:
            await send_in_time(scope, send, message)

        with self._reply.answers, contextlib.suppress(ConnectionError):
            whole = await _unless_client_leaves(receive, _collect(self._reply))
            if whole is not None:
                await JSONResponse(whole)(scope, receive, send_on)


class EventStream(StreamingResponse):
    """Sent piece by piece."""

    def __init__(self, reply: Reply, options: StreamOptions) -> None:
        super().__init__(
            _events(reply, options),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-cache"},
        )
        self._reply = reply

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""

        async def send_on(message: Message) -> None:
            await send_in_time(scope, send, message)

        with self._reply.answers, contextlib.suppress(ConnectionError):
            await super().__call__(scope, receive, send_on)


async def _collect(reply: Reply) -> dict[str, Any]:
    pieces: list[list[Piece]] = [[] for _ in range(reply.answers.job.choices)]
    async for piece in reply.answers.pieces():
        pieces[piece.index].append(piece)
    return reply.whole(pieces)


async def _events(reply: Reply, options: StreamOptions) -> AsyncIterator[str]:
    """The stream's events; an error midway is its last one, since the status line is long gone."""
    started: set[int] = set()
    unfinished = reply.answers.job.choices
    try:
        async for piece in reply.answers.pieces():
            if piece.index not in started:
                started.add(piece.index)
                for opening in reply.opening(piece.index):
                    yield sse(_with_figures(opening, reply, options, last=False))
            event = reply.event(piece)
            unfinished -= piece.finish_reason is not None
            yield sse(_with_figures(event, reply, options, last=unfinished == 0))
    except ApiError as error:
        yield sse(error.body())
        return
    if options.include_usage:
        yield sse(reply.closing())
    yield SSE_DONE


def _with_figures(
    event: dict[str, Any], reply: Reply, options: StreamOptions, *, last: bool
) -> dict[str, Any]:
    """An event with what its stream's options ask for; `last`: it ends the last answer."""
    if options.continuous_usage_stats:
        return {**event, "usage": reply.usage(), "turbo": reply.turbo()}
    if options.include_usage:
        return {**event, "usage": None}
    return {**event, "turbo": reply.turbo()} if last else event


async def _unless_client_leaves(
    receive: Receive, work: Coroutine[Any, Any, dict[str, Any]]
) -> dict[str, Any] | None:
    """The result of `work`, or None when the client closed the connection first; `work` is then cancelled."""
    task = asyncio.create_task(work)
    leaving = asyncio.create_task(_client_left(receive))
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for unfinished in (task, leaving):
            unfinished.cancel()
        await asyncio.wait({task, leaving})


async def _client_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
