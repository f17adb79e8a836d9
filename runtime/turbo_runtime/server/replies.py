"""Replies in OpenAI's shapes, whole and as events of a stream."""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from turbo_runtime.server.answers import Answers, Piece
from turbo_runtime.server.model import ServedModel
from turbo_runtime.version import turbo_version

Json = dict[str, Any]


class ChatShape:
    """`/v1/chat/completions`: text is an assistant's message."""

    whole_kind = "chat.completion"
    event_kind = "chat.completion.chunk"
    id_prefix = "chatcmpl-"

    def whole(self, text: str) -> Json:
        """A finished answer's text, as part of its choice."""
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def opening(self) -> Json | None:
        """What comes before a choice's text, as part of it: the role."""
        return {"delta": {"role": "assistant", "content": ""}}

    def event(self, text: str) -> Json:
        """A piece of text, as part of its choice."""
        return {"delta": {"content": text} if text else {}}


class CompletionShape:
    """`/v1/completions`: text is text."""

    whole_kind = "text_completion"
    event_kind = "text_completion"
    id_prefix = "cmpl-"

    def whole(self, text: str) -> Json:
        """A finished answer's text, as part of its choice."""
        return {"text": text}

    def opening(self) -> Json | None:
        """What comes before a choice's text, as part of it: nothing."""
        return None

    def event(self, text: str) -> Json:
        """A piece of text, as part of its choice."""
        return {"text": text}


@dataclass(slots=True)
class Reply:
    """One reply being written; `id` and `created` are the same in all of its events."""

    shape: ChatShape | CompletionShape
    model: ServedModel
    answers: Answers
    id: str = field(init=False)
    created: int = field(init=False)

    def __post_init__(self) -> None:
        self.id = f"{self.shape.id_prefix}{uuid.uuid4().hex}"
        self.created = int(time.time())

    def whole(self, texts: list[str], reasons: list[str]) -> Json:
        """The body of a reply that is not streamed; both lists are in the order of the choices."""
        choices = [
            _choice(index, self.shape.whole(text), reason)
            for index, (text, reason) in enumerate(zip(texts, reasons, strict=True))
        ]
        return {**self._head(self.shape.whole_kind, choices), "usage": self.usage(), "turbo": self.turbo()}

    def opening(self, index: int) -> list[Json]:
        """The events of a stream before the first text of a choice: one or none."""
        content = self.shape.opening()
        if content is None:
            return []
        return [self._head(self.shape.event_kind, [_choice(index, content, None)])]

    def event(self, piece: Piece) -> Json:
        """One event of a stream."""
        choice = _choice(piece.index, self.shape.event(piece.text), piece.finish_reason)
        return self._head(self.shape.event_kind, [choice])

    def closing(self) -> Json:
        """The event after the last choice: no choices, the usage of all."""
        return {**self._head(self.shape.event_kind, []), "usage": self.usage(), "turbo": self.turbo()}

    def usage(self) -> Json:
        """OpenAI's counts; drafted tokens that were rejected cost time but are no completion tokens."""
        tally, prompt = self.answers.tally, self.answers.prompt_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": tally.completion_tokens,
            "total_tokens": prompt + tally.completion_tokens,
            "completion_tokens_details": {
                "accepted_prediction_tokens": tally.accepted_tokens,
                "rejected_prediction_tokens": tally.drafted_tokens - tally.accepted_tokens,
            },
        }

    def turbo(self) -> Json:
        """What only Turbo tells: with `seed`, the same request gives the same text again."""
        tally = self.answers.tally
        return {
            "seed": self.answers.job.seed,
            "guarantee": self.model.facts.guarantee,
            "acceptance_length": tally.acceptance_length,
            "drafted_tokens": tally.drafted_tokens,
            "accepted_tokens": tally.accepted_tokens,
        }

    def _head(self, kind: str, choices: list[Json]) -> Json:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model.name,
            "system_fingerprint": f"turbo-{turbo_version()}-{self.model.facts.guarantee}",
            "choices": choices,
        }


def _choice(index: int, content: Json, finish_reason: str | None) -> Json:
    return {"index": index, **content, "logprobs": None, "finish_reason": finish_reason}


def sse(document: Json) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(document, separators=(',', ':'))}\n\n"


SSE_DONE = "data: [DONE]\n\n"
