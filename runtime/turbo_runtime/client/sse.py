"""One streamed answer as it comes, and its figures."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from turbo_runtime.client.client import ConnectionGroup, Server


@dataclass(slots=True)
class Progress:
    """Figures of an answer so far; `tokens` is the server's count if it sends one, else the events'."""

    tokens: int = 0
    events: int = 0
    first_tokens: int = 0  # that the first event brought: speculation may bring several
    first_token_seconds: float | None = None
    seconds: float = 0.0
    acceptance_length: float | None = None
    speedup: float | None = None  # of the answer, over speculation off

    @property
    def tokens_per_second(self) -> float | None:
        """Rate of the tokens after the first ones; None before there are more."""
        if self.first_token_seconds is None or self.tokens <= self.first_tokens:
            return None
        seconds = self.seconds - self.first_token_seconds
        return (self.tokens - self.first_tokens) / seconds if seconds > 0 else None

    @property
    def seconds_per_token(self) -> float | None:
        """Time per output token (TPOT)."""
        rate = self.tokens_per_second
        return None if rate is None else 1 / rate

    def update(self, event: Mapping[str, Any], seconds: float, has_text: bool) -> None:
        """Update the figures with an event that came after `seconds`."""
        self.seconds = seconds
        self.events += has_text
        usage, turbo = event.get("usage"), event.get("turbo")
        self.tokens = usage["completion_tokens"] if usage else max(self.tokens, self.events)
        if turbo:
            self.acceptance_length = turbo.get("acceptance_length")
            self.speedup = turbo.get("speedup")
        if has_text and self.first_token_seconds is None:
            self.first_token_seconds, self.first_tokens = seconds, self.tokens


def stream_chat(
    server: Server,
    body: Mapping[str, Any],
    progress: Progress,
    connections: ConnectionGroup | None = None,
) -> Generator[tuple[str, str], None, None]:
    """Yield an answer as parts of (reasoning, text), and keep `progress` up to date. Raises ServerError.

    Closing the generator stops the answer; another thread closes `connections`.
    """
    start_time = time.monotonic()
    with closing(server.stream(body, connections)) as events:
        for event in events:
            deltas = [choice.get("delta") or {} for choice in event.get("choices") or ()]
            parts = [(delta.get("reasoning_content") or "", delta.get("content") or "") for delta in deltas]
            parts = [part for part in parts if any(part)]
            progress.update(event, time.monotonic() - start_time, bool(parts))
            yield from parts
