"""Conversations with a real model: each turn brings all that was said before."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from .ways import Way

CLIENTS, TOKENS = 4, 48


@dataclass
class Done:
    """What clients have got."""

    tokens: int = 0
    seconds: float = 0.0
    failed: int = 0
    first_tokens: list[float] = field(default_factory=list)  # seconds


def converse(way: Way, openings: Sequence[str], turns: int) -> Done:
    """Hold a conversation from each opening, so many at a time, each over connections of its own."""
    done, lock = Done(), threading.Lock()
    left = list(openings)

    def client() -> None:
        while True:
            with lock:
                if not left:
                    return
                opening = left.pop(0)
            messages = [{"role": "user", "content": opening}]
            for _ in range(turns):
                start = time.perf_counter()
                text, first, tokens = _ask(way(), messages)
                with lock:
                    done.failed += tokens == 0
                    done.tokens += tokens
                    done.first_tokens.append(first - start)
                messages += [
                    {"role": "assistant", "content": text},
                    {"role": "user", "content": "Say that again, and go on."},
                ]

    threads = [threading.Thread(target=client) for _ in range(CLIENTS)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done.seconds = time.perf_counter() - begin
    return done


def _ask(url: str, messages: Sequence[dict[str, str]]) -> tuple[str, float, int]:
    """The text of an answer, when its first token came, and how many it has."""
    body: dict[str, Any] = {"model": "m", "messages": list(messages), "max_tokens": TOKENS, "temperature": 0}
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    text, first, tokens = "", 0.0, 0
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=300) as stream:
        for line in stream.iter_lines():
            if line.startswith("data: {"):
                first = first or time.perf_counter()
                event = json.loads(line[6:])
                tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
                text += "".join(choice["delta"].get("content") or "" for choice in event.get("choices", ()))
    return text, first, tokens
