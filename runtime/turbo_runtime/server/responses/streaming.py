"""Replies on their way to the client, whole or as a stream.

Both hold the answers until the client has them: when it leaves or stops reading, the engine is told at once,
and what it has not read counts against the queue.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from fastapi.responses import Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from turbo_runtime.protocol.base import StreamOptions
from turbo_runtime.protocol.errors import ApiError
from turbo_runtime.server.connections import run_until_disconnect, send_in_time, send_whole
from turbo_runtime.server.json_parts import json_parts
from turbo_runtime.server.responses.output import OutputDelta
from turbo_runtime.server.responses.reply import Json, Reply
from turbo_runtime.server.thread_offload import ThreadOffload


class WholeReply(Response):
    """Reply sent when all answers are finished. Raises ApiError before anything is sent."""

    def __init__(self, reply: Reply, offload: ThreadOffload) -> None:
        super().__init__()
        self._reply = reply
        self._offload = offload

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        with self._reply.output, contextlib.suppress(ConnectionError):
            body = await run_until_disconnect(receive, self._build_body())
            if body is not None:
                await send_whole(scope, send, Response(body, media_type="application/json"))

    async def _build_body(self) -> bytes:
        reply = self._reply
        deltas: list[list[OutputDelta]] = [[] for _ in range(reply.output.request.num_answers)]
        async for delta in reply.output.deltas():
            deltas[delta.index].append(delta)
        if reply.has_logprobs:
            return await self._offload.run(lambda _: reply.whole(deltas))
        return reply.whole(deltas)


class EventStream(StreamingResponse):
    """Reply sent as server-sent events. A grammar is rejected only once the engine has compiled it, so a
    request with one sends nothing before the first event, and raises ApiError.
    """

    def __init__(self, reply: Reply, options: StreamOptions, offload: ThreadOffload) -> None:
        self._reply = reply
        self._options = options
        self._offload = offload
        self._may_fail_first = any(params.grammar for params in reply.output.request.params)
        self._events = self._generate_events()
        super().__init__(self._events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""

        async def send_message(message: Message) -> None:
            await send_in_time(scope, send, message)

        async def first_event() -> str:
            return await anext(self._events)

        with self._reply.output, contextlib.suppress(ConnectionError):
            if self._may_fail_first:
                first = await run_until_disconnect(receive, first_event())
                if first is None:
                    return
                self.body_iterator = _prepend(first, self._events)
            await super().__call__(scope, receive, send_message)

    async def _generate_events(self) -> AsyncIterator[str]:
        """Yield the events; an error midway is the last one, since the status line is long gone."""
        reply = self._reply
        started: set[int] = set()
        num_unfinished = reply.output.request.num_answers
        try:
            async for delta in reply.output.deltas():
                if delta.index not in started:
                    started.add(delta.index)
                    if (opening := reply.opening(delta.index)) is not None:
                        yield format_sse(self._add_usage(opening, last=False))
                num_unfinished -= delta.finish_reason is not None
                is_last = num_unfinished == 0
                if delta.prompt_logprobs is None:
                    yield self._format_delta(delta, is_last)
                else:  # of all tokens of the prompt at once
                    yield await self._format_in_thread(delta, is_last)
        except ApiError as error:
            if self._may_fail_first and not started:
                raise
            yield format_sse(error.body())
            return
        if self._options.include_usage:
            yield format_sse(reply.closing())
        yield SSE_DONE

    async def _format_in_thread(self, delta: OutputDelta, is_last: bool) -> str:
        return await self._offload.run(lambda _: self._format_delta(delta, is_last))

    def _format_delta(self, delta: OutputDelta, is_last: bool) -> str:
        return format_sse(self._add_usage(self._reply.event(delta), last=is_last))

    def _add_usage(self, event: Json, *, last: bool) -> Json:
        """Add what the stream's options ask for; `last`: the event ends the last answer."""
        if self._options.continuous_usage_stats:
            return {**event, "usage": self._reply.usage(), "turbo": self._reply.turbo()}
        if self._options.include_usage:
            return {**event, "usage": None}
        return {**event, "turbo": self._reply.turbo()} if last else event


async def _prepend(first: str, events: AsyncIterator[str]) -> AsyncIterator[str]:
    yield first
    async for event in events:
        yield event


SSE_DONE = "data: [DONE]\n\n"


def format_sse(document: Json) -> str:
    """Format a server-sent event: one line, also for clients that end lines where Unicode does."""
    return f"data: {''.join(json_parts(document, ascii_only=True))}\n\n"
