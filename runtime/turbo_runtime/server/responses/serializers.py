"""The two shapes of a choice: a chat's message and a completion's text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from turbo_runtime.messages import TokenLogprob
from turbo_runtime.parsers import ToolCall
from turbo_runtime.server.preprocessing import PreparedRequest
from turbo_runtime.server.responses.logprobs import BytesOf, chat_logprobs, completion_logprobs, text_length
from turbo_runtime.server.responses.output import OutputDelta

Json = dict[str, Any]


class ChatShape:
    """`/v1/chat/completions`: text is an assistant's message. One for each reply."""

    whole_kind = "chat.completion"
    event_kind = "chat.completion.chunk"
    id_prefix = "chatcmpl-"

    def __init__(self, job: PreparedRequest, bytes_of: BytesOf) -> None:
        self._told = job.params[0].logprobs is not None
        self._bytes_of = bytes_of
        self._calls: dict[int, int] = {}  # of each choice, how many have been told

    def whole(self, piece: OutputDelta) -> Json:
        """A finished answer, as part of its choice."""
        said = piece.said
        message: Json = {"role": "assistant", "content": said.content, "refusal": None}
        if said.reasoning:
            message["reasoning_content"] = said.reasoning
        if said.calls:
            message["content"] = said.content or None
            message["tool_calls"] = [_call(call) for call in said.calls]
        return {"message": message, "logprobs": self._logprobs(piece)}

    def opening(self, index: int) -> Json | None:  # noqa: ARG002  of all choices the same
        """What comes before a choice's text, as part of it: the role."""
        return {"delta": {"role": "assistant", "content": ""}, "logprobs": None}

    def event(self, piece: OutputDelta) -> Json:
        """A piece of an answer, as part of its choice."""
        said = piece.said
        delta: Json = {}
        if said.content:
            delta["content"] = said.content
        if said.reasoning:
            delta["reasoning_content"] = said.reasoning
        if said.calls:
            first = self._calls.get(piece.index, 0)
            self._calls[piece.index] = first + len(said.calls)
            delta["tool_calls"] = [{"index": first + i, **_call(call)} for i, call in enumerate(said.calls)]
        return {"delta": delta, "logprobs": self._logprobs(piece)}

    def _logprobs(self, piece: OutputDelta) -> Json | None:
        return chat_logprobs(piece.logprobs, self._bytes_of) if self._told else None


@dataclass(slots=True)
class CompletionShape:
    """`/v1/completions`: text is text, behind the prompt's where it is to be echoed. One for each reply."""

    job: PreparedRequest
    bytes_of: BytesOf
    _offsets: dict[int, int] = field(default_factory=dict)  # of each choice, where its next text starts

    whole_kind = "text_completion"
    event_kind = "text_completion"
    id_prefix = "cmpl-"

    def whole(self, piece: OutputDelta) -> Json:
        """A finished answer, as part of its choice."""
        return {"text": self._echo(piece.index) + piece.said.content, "logprobs": self._logprobs(piece)}

    def opening(self, index: int) -> Json | None:
        """What comes before a choice's text, as part of it: the prompt, where it is to be echoed."""
        echo = self._echo(index)
        return {"text": echo, "logprobs": None} if echo else None

    def event(self, piece: OutputDelta) -> Json:
        """A piece of an answer, as part of its choice."""
        return {"text": piece.said.content, "logprobs": self._logprobs(piece)}

    def _echo(self, index: int) -> str:
        return self.job.echoes[index // self.job.n] if self.job.echoes else ""

    def _logprobs(self, piece: OutputDelta) -> Json | None:
        if self.job.params[0].logprobs is None:
            return None
        ids, told = piece.tokens, list[TokenLogprob | None](piece.logprobs)
        start = self._offsets.setdefault(piece.index, len(self._echo(piece.index)))
        if self.job.echoes and piece.prompt_logprobs is not None:
            ids = (*self.job.prompts[piece.index // self.job.n], *ids)
            told, start = [None, *piece.prompt_logprobs, *told], 0
        self._offsets[piece.index] = start + text_length(ids, self.bytes_of)
        return completion_logprobs(ids, told, start, self.bytes_of)


def _call(call: ToolCall) -> Json:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
