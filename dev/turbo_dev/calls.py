"""Clients of a served model that never retry, and what became of each of their requests."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import openai

PAUSE_SECONDS = 1.0  # after a failure: what fails at once should not be asked for without end


@dataclass(frozen=True, slots=True)
class Call:
    """One request, by the monotonic clock; `error` is empty where a whole answer came."""

    start: float
    end: float
    error: str = ""

    def overlaps(self, start: float, end: float) -> bool:
        """Whether it was under way at any instant between the two."""
        return self.start <= end and self.end >= start


@dataclass(frozen=True)
class Target:
    """What is asked, and how long an answer may take."""

    url: str
    model: str
    timeout_seconds: float
    num_tokens: int = 8
    prompts: tuple[str, ...] = ("Count to five.",)  # one after the other
    temperature: float = 1.0


class Crowd:
    """Clients that ask, wait for the whole answer and ask again, for as long as the context lasts.

    Of `keeping`, each keeps its connection; of `reconnecting`, each opens one for every request.
    """

    def __init__(self, target: Target, keeping: int, reconnecting: int = 0) -> None:
        """Nothing is asked before the context is entered."""
        self._target = target
        self._stop = threading.Event()
        self.calls: list[Call] = []
        self._threads = [threading.Thread(target=self._ask, args=(True,)) for _ in range(keeping)]
        self._threads += [threading.Thread(target=self._ask, args=(False,)) for _ in range(reconnecting)]

    @property
    def failures(self) -> list[Call]:
        """Of the requests so far, those without an answer."""
        return [call for call in self.calls if call.error]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, is_keeping: bool) -> None:
        with _client(self._target, is_keeping) as client:
            while not self._stop.is_set():
                call = _call(client, self._target, len(self.calls))
                self.calls.append(call)
                if call.error:
                    self._stop.wait(PAUSE_SECONDS)


class Pulse:
    """One request a second, each over a connection of its own and whatever became of those before it."""

    def __init__(self, target: Target, period_seconds: float = 1.0) -> None:
        """Nothing is asked before the context is entered."""
        self._target, self._period = target, period_seconds
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._clock = threading.Thread(target=self._beat)
        self.calls: list[Call] = []

    @property
    def failures(self) -> list[Call]:
        """Of the requests so far, those without an answer."""
        return [call for call in self.calls if call.error]

    def answered_since(self, start: float) -> bool:
        """Whether a request that was made after `start` was answered."""
        return any(call.start >= start and not call.error for call in list(self.calls))

    def __enter__(self) -> Self:
        self._clock.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._clock.join()
        for thread in self._threads:
            thread.join()

    def _beat(self) -> None:
        while not self._stop.is_set():
            thread = threading.Thread(target=self._ask)
            thread.start()
            self._threads.append(thread)
            self._stop.wait(self._period)

    def _ask(self) -> None:
        with _client(self._target, is_keeping=False) as client:
            self.calls.append(_call(client, self._target, len(self.calls)))


def describe(calls: Iterable[Call], start: float) -> str:
    """One line for each: when it began and ended, in seconds after `start`, and its error."""
    return "\n".join(f"{call.start - start:.1f} to {call.end - start:.1f} s: {call.error}" for call in calls)


def _client(target: Target, is_keeping: bool) -> openai.OpenAI:
    # No proxy of the user's lies between this machine and the cluster's address.
    http = openai.DefaultHttpxClient(trust_env=False, timeout=target.timeout_seconds)
    headers = {} if is_keeping else {"Connection": "close"}
    return openai.OpenAI(
        base_url=target.url, api_key="none", http_client=http, max_retries=0, default_headers=headers
    )


def _call(client: openai.OpenAI, target: Target, number: int) -> Call:
    start, error = time.monotonic(), ""
    try:
        reply = client.chat.completions.create(
            model=target.model,
            messages=[{"role": "user", "content": target.prompts[number % len(target.prompts)]}],
            max_tokens=target.num_tokens,
            temperature=target.temperature,
        )
        if reply.choices[0].finish_reason not in ("stop", "length"):
            error = f"it ended with {reply.choices[0].finish_reason}"
    except openai.OpenAIError as failure:
        error = f"{failure!r} caused by {failure.__cause__!r}"
    return Call(start, time.monotonic(), error)
