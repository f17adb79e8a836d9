"""Replies in OpenAI's format, whole and as events of a stream."""

from __future__ import annotations

import json
import time
import uuid
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, count, islice
from typing import Any, ClassVar

from turbo_runtime.messages import TokenLogprob
from turbo_runtime.server.preprocessing import ServedModel
from turbo_runtime.server.request_output import OutputDelta, RequestOutput, join
from turbo_runtime.version import turbo_version

MAX_ENTRIES = 64  # of a list in one part of a document
MIN_LOGPROB = -9999.0  # stands for minus infinity, which JSON lacks; as in vLLM

Json = dict[str, Any]
TokenBytes = Callable[[int], bytes]


class Reply(ABC):
    """One reply being written; `id` and `created` are the same in all of its events."""

    id_prefix: ClassVar[str]
    object_type: ClassVar[str]
    event_type: ClassVar[str]

    def __init__(self, model: ServedModel, output: RequestOutput) -> None:
        self.output = output
        self._model = model
        self._request = output.request
        self._token_bytes = model.tokenizer.token_bytes
        self._id = f"{self.id_prefix}{uuid.uuid4().hex}"
        self._created = int(time.time())

    @abstractmethod
    def _content(self, delta: OutputDelta, *, whole: bool) -> Json:
        """Return a whole answer, or a part of one in a stream, as part of its choice."""

    @abstractmethod
    def _opening_content(self, index: int) -> Json | None:
        """Return what precedes a choice's text in a stream, as part of it."""

    @property
    def has_logprobs(self) -> bool:
        """Whether writing the reply may take long."""
        params = self._request.params[0]
        return params.logprobs is not None or params.prompt_logprobs is not None

    def whole(self, deltas: list[list[OutputDelta]]) -> bytes:
        """Return the body of a reply that is not streamed, built choice by choice to save memory."""
        choices = (self._choice(answer, whole=True) for answer in map(join, deltas))
        document = {**self._head(self.object_type, choices), "usage": self.usage(), "turbo": self.turbo()}
        return "".join(json_parts(document)).encode()

    def opening(self, index: int) -> Json | None:
        """Return the event of a stream that precedes the text of a choice, if there is one."""
        content = self._opening_content(index)
        if content is None:
            return None
        return self._head(self.event_type, [{"index": index, **content, "finish_reason": None}])

    def event(self, delta: OutputDelta) -> Json:
        """Return one event of a stream."""
        return self._head(self.event_type, [self._choice(delta, whole=False)])

    def closing(self) -> Json:
        """Return the event after the last choice: no choices, the usage of all."""
        return {**self._head(self.event_type, []), "usage": self.usage(), "turbo": self.turbo()}

    def usage(self) -> Json:
        """Return OpenAI's counts; rejected draft tokens cost time but are no completion tokens."""
        output, num_prompt_tokens = self.output, self._request.num_prompt_tokens
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

    def turbo(self) -> Json:
        """Return Turbo's own fields: with `seed`, the same request gives the same text again."""
        output = self.output
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

    def __init__(self, model: ServedModel, output: RequestOutput) -> None:
        super().__init__(model, output)
        self._call_numbers: defaultdict[int, Iterator[int]] = defaultdict(count)  # in a stream, by choice

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
            message["tool_calls"] = [
                {
                    **({} if whole else {"index": next(self._call_numbers[delta.index])}),
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in parsed.calls
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

    def __init__(self, model: ServedModel, output: RequestOutput) -> None:
        super().__init__(model, output)
        self._offsets: dict[int, int] = {}  # where the next text starts, by choice

    def _content(self, delta: OutputDelta, *, whole: bool) -> Json:
        text = delta.parsed.content
        text = self._echo(delta.index) + text if whole else text
        return {"text": text, "logprobs": self._logprobs(delta)}

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
        start = self._offsets.get(delta.index, len(self._echo(delta.index)))
        if request.echoes and delta.prompt_logprobs is not None:
            ids = (*request.prompts[delta.index // request.n], *ids)
            logprobs, start = [None, *delta.prompt_logprobs, *logprobs], 0
        document, self._offsets[delta.index] = completion_logprobs(ids, logprobs, start, self._token_bytes)
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
    """Return `choices[].logprobs` of a completion, and where the text behind it starts. `offset` is where the
    first token's text starts, in characters; the logprob of a prompt's first token is None.
    """

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


def json_parts(value: Any, *, ascii_only: bool = False) -> Iterator[str]:
    """Yield the JSON of a large document in small parts: between two of them other threads get their turn,
    which one call of `json.dumps` would not give them. An iterator is a list whose entries are made in turn.
    """
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
