"""One streamed answer as it comes, and its figures."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from turbo_runtime.client.client import Server
from turbo_runtime.client.connections import Lines


@dataclass(slots=True)
class Progress:
    """Times are in seconds; `tokens` is the server's count where it tells one, else that of the events."""

    tokens: int = 0
    events: int = 0
    first_tokens: int = 0  # that the first event brought: speculation may bring several
    to_first: float | None = None
    seconds: float = 0.0
    acceptance_length: float | None = None
    speedup: float | None = None  # of the answer, over speculation off

    @property
    def tokens_per_second(self) -> float | None:
        """Of the tokens after the first ones; None before there are more."""
        if self.to_first is None or self.tokens <= self.first_tokens or self.seconds <= self.to_first:
            return None
        return (self.tokens - self.first_tokens) / (self.seconds - self.to_first)

    @property
    def seconds_per_token(self) -> float | None:
        """The time per output token (TPOT)."""
        rate = self.tokens_per_second
        return None if rate is None else 1 / rate

    def told(self, event: Mapping[str, Any], seconds: float, words: bool) -> None:
        """Take the figures of an event that came after so long; `words`: it brought a piece of the answer."""
        self.seconds = seconds
        self.events += words
        usage, turbo = event.get("usage"), event.get("turbo")
        self.tokens = usage["completion_tokens"] if usage else max(self.tokens, self.events)
        if turbo:
            self.acceptance_length = turbo.get("acceptance_length")
            self.speedup = turbo.get("speedup")
        if words and self.to_first is None:
            self.to_first, self.first_tokens = seconds, self.tokens


def answer(
    server: Server, body: Mapping[str, Any], progress: Progress, lines: Lines | None = None
) -> Generator[tuple[str, str], None, None]:
    """Pieces of an answer as (reasoning, text); `progress` is kept up to date.

    Raises ServerError. Closing the iterator stops the answer; from another thread, `lines` does.
    """
    began = time.monotonic()
    with closing(server.stream(body, lines)) as events:
        for event in events:
            deltas = [choice.get("delta") or {} for choice in event.get("choices") or ()]
            pieces = [(one.get("reasoning_content") or "", one.get("content") or "") for one in deltas]
            words = [piece for piece in pieces if any(piece)]
            progress.told(event, time.monotonic() - began, bool(words))
            yield from words
