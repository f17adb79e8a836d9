"""Replies on their way to the client, whole or as a stream.

Both hold the answers until the client has them: when it leaves, or reads nothing any more, the engine is told
at once, and what it has not read counts against the queue.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from functools import partial

from fastapi.responses import Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from turbo_runtime.protocol.base import StreamOptions
from turbo_runtime.protocol.errors import ApiError
from turbo_runtime.server.connections import send_in_time, send_whole
from turbo_runtime.server.disconnect import unless_client_leaves
from turbo_runtime.server.responses.openai import SSE_DONE, Json, Reply, sse
from turbo_runtime.server.responses.output import OutputDelta
from turbo_runtime.server.thread_offload import ThreadOffload, Wanted


class WholeReply(Response):
    """Sent when all answers are finished. Raises ApiError, before anything is sent."""

    def __init__(self, reply: Reply, writing: ThreadOffload) -> None:
        super().__init__()
        self._reply = reply
        self._writing = writing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""

        with self._reply.answers, contextlib.suppress(ConnectionError):
            whole = await unless_client_leaves(receive, _collect(self._reply, self._writing))
            if whole is not None:
                await send_whole(scope, send, Response(whole, media_type="application/json"))


class EventStream(StreamingResponse):
    """Sent piece by piece. Raises ApiError, before anything is sent, for a grammar that is refused: since the
    engine says so when it has compiled it, nothing is sent before the first piece.
    """

    def __init__(self, reply: Reply, options: StreamOptions, writing: ThreadOffload) -> None:
        self._waits = any(params.grammar for params in reply.answers.job.params)
        self._events = _events(reply, options, writing, begun=not self._waits)
        super().__init__(self._events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._reply = reply

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""

        async def send_on(message: Message) -> None:
            await send_in_time(scope, send, message)

        with self._reply.answers, contextlib.suppress(ConnectionError):
            if self._waits:
                first = await unless_client_leaves(receive, _next(self._events))
                if first is None:
                    return
                self.body_iterator = _behind(first, self._events)
            await super().__call__(scope, receive, send_on)


async def _next(events: AsyncIterator[str]) -> str:
    return await anext(events)


async def _behind(first: str, events: AsyncIterator[str]) -> AsyncIterator[str]:
    yield first
    async for event in events:
        yield event


async def _collect(reply: Reply, writing: ThreadOffload) -> bytes:
    pieces: list[list[OutputDelta]] = [[] for _ in range(reply.answers.job.choices)]
    async for piece in reply.answers.pieces():
        pieces[piece.index].append(piece)
    return await writing.run(lambda _: reply.whole(pieces)) if reply.tells_logprobs else reply.whole(pieces)


async def _events(
    reply: Reply, options: StreamOptions, writing: ThreadOffload, *, begun: bool
) -> AsyncIterator[str]:
    """The stream's events; an error midway is its last one, since the status line is long gone. Where the
    stream has not `begun` before its first event, an error before that is raised.
    """
    started: set[int] = set()
    unfinished = reply.answers.job.choices
    try:
        async for piece in reply.answers.pieces():
            if piece.index not in started:
                started.add(piece.index)
                for opening in reply.opening(piece.index):
                    yield sse(_with_figures(opening, reply, options, last=False))
            unfinished -= piece.finish_reason is not None
            if piece.prompt_logprobs is None:
                yield sse(_with_figures(reply.event(piece), reply, options, last=unfinished == 0))
            else:  # of all tokens of the prompt at once
                yield await writing.run(partial(_written, reply, piece, options, unfinished == 0))
    except ApiError as error:
        if not (begun or started):
            raise
        yield sse(error.body())
        return
    if options.include_usage:
        yield sse(reply.closing())
    yield SSE_DONE


def _with_figures(event: Json, reply: Reply, options: StreamOptions, *, last: bool) -> Json:
    """An event with what its stream's options ask for; `last`: it ends the last answer."""
    if options.continuous_usage_stats:
        return {**event, "usage": reply.usage(), "turbo": reply.turbo()}
    if options.include_usage:
        return {**event, "usage": None}
    return {**event, "turbo": reply.turbo()} if last else event


def _written(reply: Reply, piece: OutputDelta, options: StreamOptions, last: bool, _: Wanted) -> str:
    return sse(_with_figures(reply.event(piece), reply, options, last=last))
