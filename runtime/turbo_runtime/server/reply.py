"""Replies in OpenAI's format, and their way to the client, whole or as a stream.

A reply keeps the outputs until the client has them: when it leaves or stops reading, the engine is told at
once, and what it has not read counts against the queue.
"""

from __future__ import annotations

import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate, islice
from typing import Any, ClassVar

from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from turbo_runtime.messages import TokenLogprob
from turbo_runtime.protocol.errors import ApiError
from turbo_runtime.protocol.sampling import StreamOptions
from turbo_runtime.server.connections import run_until_disconnect, send_whole
from turbo_runtime.server.preprocessing import ServedModel
from turbo_runtime.server.request_output import OutputDelta, RequestOutput, join
from turbo_runtime.server.service import ThreadOffload
from turbo_runtime.version import turbo_version

MAX_ENTRIES = 64  # of a list in one part of a document
MIN_LOGPROB = -9999.0  # stands for minus infinity, which JSON lacks; as in vLLM

Json = dict[str, Any]
TokenBytes = Callable[[int], bytes]


_STREAM_HEAD = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"cache-control", b"no-cache"), (b"content-type", b"text/event-stream; charset=utf-8")],
}


class Reply(Response, ABC):
    """Reply sent when all outputs are finished or, with `options`, as server-sent events.

    Raises ApiError before anything is sent. A grammar is rejected only once the engine has compiled it, so a
    stream with one sends nothing before the first event.
    """

    id_prefix: ClassVar[str]
    object_type: ClassVar[str]
    event_type: ClassVar[str]

    def __init__(
        self,
        model: ServedModel,
        output: RequestOutput,
        offload: ThreadOffload,
        options: StreamOptions | None = None,
    ) -> None:
        super().__init__()
        self._output, self._request, self._model = output, output.request, model
        self._offload, self._options = offload, options
        self._token_bytes = model.tokenizer.token_bytes
        self._id = f"{self.id_prefix}{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._sent: dict[int, int] = {}  # of a choice: its tool calls, or the end of its text with logprobs

    @abstractmethod
    def _content(self, delta: OutputDelta, *, whole: bool) -> Json:
        """Return a whole output, or a part of one in a stream, as part of its choice."""

    @abstractmethod
    def _opening_content(self, index: int) -> Json | None:
        """Return what precedes a choice's text in a stream, as part of it; None for nothing."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """See the ASGI specification."""
        work = self._send_body if self._options is None else self._send_events
        with self._output:
            await run_until_disconnect(receive, work(send))

    async def _send_body(self, send: Send) -> None:
        deltas: list[list[OutputDelta]] = [[] for _ in range(self._request.num_answers)]
        async for delta in self._output.deltas():
            deltas[delta.index].append(delta)
        params = self._request.params[0]
        if params.logprobs is None and params.prompt_logprobs is None:
            body = self._format_body(deltas)
        else:
            body = await self._offload.run(lambda _: self._format_body(deltas))
        await send_whole(send, Response(body, media_type="application/json"))

    async def _send_events(self, send: Send) -> None:
        is_started = False
        async for event in self._generate_events():
            if not is_started:
                await send(_STREAM_HEAD)
                is_started = True
            if event:
                await send({"type": "http.response.body", "body": event.encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _generate_events(self) -> AsyncIterator[str]:
        """Yield the events; an error midway is the last one, since the status line is long gone."""
        may_fail_first = any(params.grammar for params in self._request.params)
        if not may_fail_first:
            yield ""  # starts the response
        started: set[int] = set()
        num_unfinished = self._request.num_answers
        try:
            async for delta in self._output.deltas():
                if delta.index not in started:
                    started.add(delta.index)
                    if (opening := self._opening_content(delta.index)) is not None:
                        choice = {"index": delta.index, **opening, "finish_reason": None}
                        yield self._format_event([choice])
                num_unfinished -= delta.finish_reason is not None
                write = partial(self._format_delta, delta, is_last=num_unfinished == 0)
                # logprobs of a prompt are of all its tokens at once
                yield write() if delta.prompt_logprobs is None else await self._offload.run(write)
        except ApiError as error:
            if may_fail_first and not started:
                raise
            yield format_sse(error.body())
            return
        if self._options and self._options.include_usage:
            yield format_sse({**self._head(self.event_type, []), **self._totals()})
        yield "data: [DONE]\n\n"

    def _format_body(self, deltas: list[list[OutputDelta]]) -> bytes:
        """Format the whole reply, choice by choice to save memory."""
        choices = (self._choice(delta, whole=True) for delta in map(join, deltas))
        return "".join(json_parts({**self._head(self.object_type, choices), **self._totals()})).encode()

    def _format_delta(self, delta: OutputDelta, _: object = None, *, is_last: bool) -> str:
        return self._format_event([self._choice(delta, whole=False)], is_last=is_last)

    def _format_event(self, choices: list[Json], *, is_last: bool = False) -> str:
        """Format an event with what the stream's options ask for; the last one ends the last output."""
        event, options = self._head(self.event_type, choices), self._options
        if options and options.continuous_usage_stats:
            event |= self._totals()
        elif options and options.include_usage:
            event["usage"] = None
        elif is_last:
            event["turbo"] = self._turbo()
        return format_sse(event)

    def _totals(self) -> Json:
        return {"usage": self._usage(), "turbo": self._turbo()}

    def _usage(self) -> Json:
        """Return OpenAI's counts; rejected draft tokens cost time but are no completion tokens."""
        output, num_prompt_tokens = self._output, self._request.num_prompt_tokens
        return {
            "prompt_tokens": num_prompt_tokens,
            "completion_tokens": output.completion_tokens,
            "total_tokens": num_prompt_tokens + output.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": output.cached_tokens},
            "completion_tokens_details": {
                "reasoning_tokens": output.reasoning_tokens,
                "accepted_prediction_tokens": output.accepted_tokens,
                "rejected_prediction_tokens": output.drafted_tokens - output.accepted_tokens,
            },
        }

    def _turbo(self) -> Json:
        """Return Turbo's own fields: with `seed`, the same request gives the same text again."""
        output = self._output
        return {
            "seed": self._request.seed,
            "guarantee": self._model.info.guarantee,
            "acceptance_length": output.acceptance_length,
            "drafted_tokens": output.drafted_tokens,
            "accepted_tokens": output.accepted_tokens,
            "speedup": output.speedup,
        }

    def _choice(self, delta: OutputDelta, *, whole: bool) -> Json:
        choice = {
            "index": delta.index,
            **self._content(delta, whole=whole),
            "finish_reason": delta.finish_reason,
            "stop_reason": delta.stop_reason,
        }
        if self._request.wants_prompt_logprobs and delta.prompt_logprobs is not None:
            choice["prompt_logprobs"] = prompt_logprobs(delta.prompt_logprobs, self._token_bytes)
        return choice

    def _head(self, object_type: str, choices: list[Json] | Iterator[Json]) -> Json:
        return {
            "id": self._id,
            "object": object_type,
            "created": self._created,
            "model": self._model.name,
            "system_fingerprint": f"turbo-{turbo_version()}-{self._model.info.guarantee}",
            "choices": choices,
        }


class ChatReply(Reply):
    """Reply of `/v1/chat/completions`: text is an assistant's message."""

    id_prefix = "chatcmpl-"
    object_type = "chat.completion"
    event_type = "chat.completion.chunk"

    def _content(self, delta: OutputDelta, *, whole: bool) -> Json:
        parsed = delta.parsed
        message: Json = {}
        if whole:
            content = None if parsed.calls and not parsed.content else parsed.content
            message = {"role": "assistant", "content": content, "refusal": None}
        elif parsed.content:
            message["content"] = parsed.content
        if parsed.reasoning:
            message["reasoning_content"] = parsed.reasoning
        if parsed.calls:
            first = self._sent.get(delta.index, 0)
            self._sent[delta.index] = first + len(parsed.calls)
            message["tool_calls"] = [
                {
                    **({} if whole else {"index": number}),
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for number, call in enumerate(parsed.calls, first)
            ]
        wants_logprobs = self._request.params[0].logprobs is not None
        logprobs = chat_logprobs(delta.logprobs, self._token_bytes) if wants_logprobs else None
        return {"message" if whole else "delta": message, "logprobs": logprobs}

    def _opening_content(self, index: int) -> Json | None:  # noqa: ARG002  the same for all choices
        return {"delta": {"role": "assistant", "content": ""}, "logprobs": None}


class CompletionReply(Reply):
    """Reply of `/v1/completions`: plain text, behind the prompt's where it is echoed."""

    id_prefix = "cmpl-"
    object_type = event_type = "text_completion"

    def _content(self, delta: OutputDelta, *, whole: bool) -> Json:
        echo = self._echo(delta.index) if whole else ""
        return {"text": echo + delta.parsed.content, "logprobs": self._logprobs(delta)}

    def _opening_content(self, index: int) -> Json | None:
        echo = self._echo(index)
        return {"text": echo, "logprobs": None} if echo else None

    def _echo(self, index: int) -> str:
        return self._request.echoes[index // self._request.n] if self._request.echoes else ""

    def _logprobs(self, delta: OutputDelta) -> Json | None:
        request = self._request
        if request.params[0].logprobs is None:
            return None
        ids, logprobs = delta.tokens, list[TokenLogprob | None](delta.logprobs)
        start = self._sent.get(delta.index, len(self._echo(delta.index)))
        if request.echoes and delta.prompt_logprobs is not None:
            ids = (*request.prompts[delta.index // request.n], *ids)
            logprobs, start = [None, *delta.prompt_logprobs, *logprobs], 0
        document, self._sent[delta.index] = completion_logprobs(ids, logprobs, start, self._token_bytes)
        return document


def chat_logprobs(logprobs: Sequence[TokenLogprob], token_bytes: TokenBytes) -> Json:
    """Return `choices[].logprobs` of a chat."""

    def entry(token: int, logprob: float) -> Json:
        raw = token_bytes(token)
        return {"token": _text(raw), "logprob": max(logprob, MIN_LOGPROB), "bytes": list(raw)}

    content = [
        {**entry(item.token, item.logprob), "top_logprobs": [entry(*likely) for likely in item.top]}
        for item in logprobs
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(
    ids: Sequence[int], logprobs: Sequence[TokenLogprob | None], offset: int, token_bytes: TokenBytes
) -> tuple[Json, int]:
    """Return `choices[].logprobs` of a completion whose text starts at `offset`, and where that text ends."""

    def top(item: TokenLogprob) -> dict[str, float]:  # the token itself need not be one of the likeliest
        entries = (*item.top, (item.token, item.logprob))
        return {_name(token_bytes(token)): max(logprob, MIN_LOGPROB) for token, logprob in entries}

    *offsets, end = accumulate((len(_text(token_bytes(token))) for token in ids), initial=offset)
    document = {
        "tokens": [_name(token_bytes(token)) for token in ids],
        "token_logprobs": [item and max(item.logprob, MIN_LOGPROB) for item in logprobs],
        "top_logprobs": [item and top(item) for item in logprobs],
        "text_offset": offsets,
    }
    return document, end


def prompt_logprobs(logprobs: Sequence[TokenLogprob], token_bytes: TokenBytes) -> list[Json | None]:
    """Return vLLM's `prompt_logprobs`: the likely tokens at each position; null for the first."""

    def by_id(item: TokenLogprob) -> Json:
        ranked = {token: (logprob, rank) for rank, (token, logprob) in enumerate(item.top, start=1)}
        ranked[item.token] = item.logprob, item.rank
        return {
            str(token): {
                "logprob": max(logprob, MIN_LOGPROB),
                "rank": rank,
                "decoded_token": _text(token_bytes(token)),
            }
            for token, (logprob, rank) in ranked.items()
        }

    return [None, *map(by_id, logprobs)]


def _text(raw: bytes) -> str:
    return raw.decode(errors="replace")


def _name(raw: bytes) -> str:
    """Text, or OpenAI's notation of bytes that are none: two halves of characters must not look alike."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def format_sse(document: Json) -> str:
    """Format a server-sent event: one line, also for clients that end lines where Unicode does."""
    return f"data: {''.join(json_parts(document, ascii_only=True))}\n\n"


def json_parts(value: Any, *, ascii_only: bool = False) -> Iterator[str]:
    """Yield JSON in small parts, between which other threads run; an iterator stands for a list."""
    if isinstance(value, dict):
        for index, (name, item) in enumerate(value.items()):
            yield ("," if index else "{") + json.dumps(name) + ":"
            yield from json_parts(item, ascii_only=ascii_only)
        yield "}" if value else "{}"
    elif isinstance(value, list) and len(value) > MAX_ENTRIES:
        entries, separator = iter(value), "["
        while batch := list(islice(entries, MAX_ENTRIES)):
            yield separator + _dump(batch, ascii_only)[1:-1]
            separator = ","
        yield "]"
    elif isinstance(value, Iterator):
        yield "["
        for index, item in enumerate(value):
            yield "," if index else ""
            yield from json_parts(item, ascii_only=ascii_only)
        yield "]"
    else:
        yield _dump(value, ascii_only)


def _dump(value: Any, ascii_only: bool) -> str:
    return json.dumps(value, ensure_ascii=ascii_only, allow_nan=False, separators=(",", ":"))
