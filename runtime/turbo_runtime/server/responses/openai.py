"""Replies in OpenAI's form, whole and as events of a stream."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from turbo_runtime.server.json_parts import json_parts
from turbo_runtime.server.responses.logprobs import prompt_logprobs
from turbo_runtime.server.responses.output import OutputDelta, joined
from turbo_runtime.server.responses.request_output import RequestOutput
from turbo_runtime.server.responses.serializers import ChatShape, CompletionShape
from turbo_runtime.server.served_model import ServedModel
from turbo_runtime.version import turbo_version

Json = dict[str, Any]


@dataclass(slots=True)
class Reply:
    """One reply being written; `id` and `created` are the same in all of its events."""

    shape: ChatShape | CompletionShape
    model: ServedModel
    answers: RequestOutput
    id: str = field(init=False)
    created: int = field(init=False)

    def __post_init__(self) -> None:
        self.id = f"{self.shape.id_prefix}{uuid.uuid4().hex}"
        self.created = int(time.time())

    @property
    def tells_logprobs(self) -> bool:
        """Whether writing it may take long."""
        params = self.answers.job.params[0]
        return params.logprobs is not None or params.prompt_logprobs is not None

    def whole(self, pieces: list[list[OutputDelta]]) -> bytes:
        """The body of a reply that is not streamed; the lists are in the order of the choices. One choice is
        built after the other, since a document of logprobs takes many times the room of its text.
        """
        answers = (joined(one) for one in pieces)
        choices = (self._choice(one, self.shape.whole(one)) for one in answers)
        head = self._head(self.shape.whole_kind, choices)
        return "".join(json_parts({**head, "usage": self.usage(), "turbo": self.turbo()})).encode()

    def opening(self, index: int) -> list[Json]:
        """The events of a stream before the first text of a choice: one or none."""
        content = self.shape.opening(index)
        if content is None:
            return []
        return [self._head(self.shape.event_kind, [{"index": index, **content, "finish_reason": None}])]

    def event(self, piece: OutputDelta) -> Json:
        """One event of a stream."""
        return self._head(self.shape.event_kind, [self._choice(piece, self.shape.event(piece))])

    def closing(self) -> Json:
        """The event after the last choice: no choices, the usage of all."""
        return {**self._head(self.shape.event_kind, []), "usage": self.usage(), "turbo": self.turbo()}

    def usage(self) -> Json:
        """OpenAI's counts; drafted tokens that were rejected cost time but are no completion tokens."""
        tally, prompt = self.answers.tally, self.answers.job.prompt_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": tally.completion_tokens,
            "total_tokens": prompt + tally.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": tally.cached_tokens},
            "completion_tokens_details": {
                "reasoning_tokens": tally.reasoning_tokens,
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
            "speedup": self.answers.speedup,
        }

    def _choice(self, piece: OutputDelta, content: Json) -> Json:
        choice = {
            "index": piece.index,
            **content,
            "finish_reason": piece.finish_reason,
            "stop_reason": piece.stop_reason,
        }
        if self.answers.job.tells_prompt and piece.prompt_logprobs is not None:
            choice["prompt_logprobs"] = prompt_logprobs(piece.prompt_logprobs, self.model.tokenizer.bytes_of)
        return choice

    def _head(self, kind: str, choices: list[Json] | Iterator[Json]) -> Json:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model.name,
            "system_fingerprint": f"turbo-{turbo_version()}-{self.model.facts.guarantee}",
            "choices": choices,
        }


def sse(document: Json) -> str:
    """A server-sent event: one line, also for clients that end lines where Unicode does."""
    return f"data: {''.join(json_parts(document, ascii_only=True))}\n\n"


SSE_DONE = "data: [DONE]\n\n"
