"""Replies on their way to the client, whole or as a stream.

Both hold the answers until the client has them: when it leaves or stops reading, the engine is told at once,
and what it has not read counts against the queue.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from turbo_runtime.protocol.errors import ApiError
from turbo_runtime.protocol.sampling import StreamOptions
from turbo_runtime.server.connections import run_until_disconnect, send_whole
from turbo_runtime.server.reply import Json, Reply, json_parts
from turbo_runtime.server.request_output import OutputDelta
from turbo_runtime.server.thread_offload import ThreadOffload

SSE_DONE = "data: [DONE]\n\n"

_STREAM_HEAD = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"cache-control", b"no-cache"), (b"content-type", b"text/event-stream; charset=utf-8")],
}


class ReplyResponse(Response):
    """Reply sent when all answers are finished or, with `options`, as server-sent events.

    Raises ApiError before anything is sent. A grammar is rejected only once the engine has compiled it, so a
    stream with one sends nothing before the first event.
    """

    def __init__(self, reply: Reply, offload: ThreadOffload, options: StreamOptions | None = None) -> None:
        super().__init__()
        self._reply = reply
        self._offload = offload
        self._options = options
        self._may_fail_first = any(params.grammar for params in reply.output.request.params)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """See the ASGI specification."""
        work = self._send_whole if self._options is None else self._send_events
        with self._reply.output:
            await run_until_disconnect(receive, work(send))

    async def _send_whole(self, send: Send) -> None:
        reply = self._reply
        deltas: list[list[OutputDelta]] = [[] for _ in range(reply.output.request.num_answers)]
        async for delta in reply.output.deltas():
            deltas[delta.index].append(delta)
        if reply.has_logprobs:
            body = await self._offload.run(lambda _: reply.whole(deltas))
        else:
            body = reply.whole(deltas)
        await send_whole(send, Response(body, media_type="application/json"))

    async def _send_events(self, send: Send) -> None:
        is_started = not self._may_fail_first
        if is_started:
            await send(_STREAM_HEAD)
        async for event in self._generate_events():
            if not is_started:
                await send(_STREAM_HEAD)
                is_started = True
            part = {"type": "http.response.body", "body": event.encode(), "more_body": True}
            await send(part)
        await send({"type": "http.response.body", "body": b""})

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
                        yield format_sse(self._add_usage(opening, is_last=False))
                num_unfinished -= delta.finish_reason is not None
                yield await self._format_delta(delta, is_last=num_unfinished == 0)
        except ApiError as error:
            if self._may_fail_first and not started:
                raise
            yield format_sse(error.body())
            return
        if self._options and self._options.include_usage:
            yield format_sse(reply.closing())
        yield SSE_DONE

    async def _format_delta(self, delta: OutputDelta, *, is_last: bool) -> str:
        def work(_: object = None) -> str:
            return format_sse(self._add_usage(self._reply.event(delta), is_last=is_last))

        # logprobs of a prompt are of all its tokens at once
        return work() if delta.prompt_logprobs is None else await self._offload.run(work)

    def _add_usage(self, event: Json, *, is_last: bool) -> Json:
        """Add what the stream's options ask for; `is_last`: the event ends the last answer."""
        options = self._options
        if options and options.continuous_usage_stats:
            return {**event, "usage": self._reply.usage(), "turbo": self._reply.turbo()}
        if options and options.include_usage:
            return {**event, "usage": None}
        return {**event, "turbo": self._reply.turbo()} if is_last else event


def format_sse(document: Json) -> str:
    """Format a server-sent event: one line, also for clients that end lines where Unicode does."""
    return f"data: {''.join(json_parts(document, ascii_only=True))}\n\n"
