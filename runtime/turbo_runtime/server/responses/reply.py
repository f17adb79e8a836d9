"""Replies in OpenAI's format, whole and as events of a stream."""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

from turbo_runtime.messages import TokenLogprob
from turbo_runtime.parsers import ToolCall
from turbo_runtime.server.json_parts import json_parts
from turbo_runtime.server.responses.logprobs import (
    chat_logprobs,
    completion_logprobs,
    prompt_logprobs,
    text_length,
)
from turbo_runtime.server.responses.output import OutputDelta, join
from turbo_runtime.server.responses.request_output import RequestOutput
from turbo_runtime.server.served_model import ServedModel
from turbo_runtime.version import turbo_version

Json = dict[str, Any]


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
    def _whole_content(self, delta: OutputDelta) -> Json:
        """Return a finished answer, as part of its choice."""

    @abstractmethod
    def _opening_content(self, index: int) -> Json | None:
        """Return what precedes a choice's text in a stream, as part of it."""

    @abstractmethod
    def _event_content(self, delta: OutputDelta) -> Json:
        """Return a part of an answer, as part of its choice."""

    @property
    def has_logprobs(self) -> bool:
        """Whether writing the reply may take long."""
        params = self._request.params[0]
        return params.logprobs is not None or params.prompt_logprobs is not None

    def whole(self, deltas: list[list[OutputDelta]]) -> bytes:
        """Return the body of a reply that is not streamed, built choice by choice to save memory."""
        answers = map(join, deltas)
        choices = (self._choice(answer, self._whole_content(answer)) for answer in answers)
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
        return self._head(self.event_type, [self._choice(delta, self._event_content(delta))])

    def closing(self) -> Json:
        """Return the event after the last choice: no choices, the usage of all."""
        return {**self._head(self.event_type, []), "usage": self.usage(), "turbo": self.turbo()}

    def usage(self) -> Json:
        """Return OpenAI's counts; rejected draft tokens cost time but are no completion tokens."""
        tally, num_prompt_tokens = self.output.tally, self._request.num_prompt_tokens
        return {
            "prompt_tokens": num_prompt_tokens,
            "completion_tokens": tally.completion_tokens,
            "total_tokens": num_prompt_tokens + tally.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": tally.cached_tokens},
            "completion_tokens_details": {
                "reasoning_tokens": tally.reasoning_tokens,
                "accepted_prediction_tokens": tally.accepted_tokens,
                "rejected_prediction_tokens": tally.drafted_tokens - tally.accepted_tokens,
            },
        }

    def turbo(self) -> Json:
        """Return Turbo's own fields: with `seed`, the same request gives the same text again."""
        tally = self.output.tally
        return {
            "seed": self._request.seed,
            "guarantee": self._model.info.guarantee,
            "acceptance_length": tally.acceptance_length,
            "drafted_tokens": tally.drafted_tokens,
            "accepted_tokens": tally.accepted_tokens,
            "speedup": self.output.speedup,
        }

    def _choice(self, delta: OutputDelta, content: Json) -> Json:
        choice = {
            "index": delta.index,
            **content,
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
        self._num_calls: dict[int, int] = {}  # that the stream has sent, by choice

    def _whole_content(self, delta: OutputDelta) -> Json:
        parsed = delta.parsed
        message: Json = {"role": "assistant", "content": parsed.content, "refusal": None}
        if parsed.reasoning:
            message["reasoning_content"] = parsed.reasoning
        if parsed.calls:
            message["content"] = parsed.content or None
            message["tool_calls"] = [_format_call(call) for call in parsed.calls]
        return {"message": message, "logprobs": self._logprobs(delta)}

    def _opening_content(self, index: int) -> Json | None:  # noqa: ARG002  the same for all choices
        return {"delta": {"role": "assistant", "content": ""}, "logprobs": None}

    def _event_content(self, delta: OutputDelta) -> Json:
        parsed = delta.parsed
        message: Json = {}
        if parsed.content:
            message["content"] = parsed.content
        if parsed.reasoning:
            message["reasoning_content"] = parsed.reasoning
        if parsed.calls:
            first = self._num_calls.get(delta.index, 0)
            self._num_calls[delta.index] = first + len(parsed.calls)
            message["tool_calls"] = [
                {"index": index, **_format_call(call)} for index, call in enumerate(parsed.calls, first)
            ]
        return {"delta": message, "logprobs": self._logprobs(delta)}

    def _logprobs(self, delta: OutputDelta) -> Json | None:
        if self._request.params[0].logprobs is None:
            return None
        return chat_logprobs(delta.logprobs, self._token_bytes)


class CompletionReply(Reply):
    """Reply of `/v1/completions`: plain text, behind the prompt's where it is echoed."""

    id_prefix = "cmpl-"
    object_type = event_type = "text_completion"

    def __init__(self, model: ServedModel, output: RequestOutput) -> None:
        super().__init__(model, output)
        self._offsets: dict[int, int] = {}  # where the next text starts, by choice

    def _whole_content(self, delta: OutputDelta) -> Json:
        return {"text": self._echo(delta.index) + delta.parsed.content, "logprobs": self._logprobs(delta)}

    def _opening_content(self, index: int) -> Json | None:
        echo = self._echo(index)
        return {"text": echo, "logprobs": None} if echo else None

    def _event_content(self, delta: OutputDelta) -> Json:
        return {"text": delta.parsed.content, "logprobs": self._logprobs(delta)}

    def _echo(self, index: int) -> str:
        return self._request.echoes[index // self._request.n] if self._request.echoes else ""

    def _logprobs(self, delta: OutputDelta) -> Json | None:
        request = self._request
        if request.params[0].logprobs is None:
            return None
        ids, logprobs = delta.tokens, list[TokenLogprob | None](delta.logprobs)
        start = self._offsets.setdefault(delta.index, len(self._echo(delta.index)))
        if request.echoes and delta.prompt_logprobs is not None:
            ids = (*request.prompts[delta.index // request.n], *ids)
            logprobs, start = [None, *delta.prompt_logprobs, *logprobs], 0
        self._offsets[delta.index] = start + text_length(ids, self._token_bytes)
        return completion_logprobs(ids, logprobs, start, self._token_bytes)


def _format_call(call: ToolCall) -> Json:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
