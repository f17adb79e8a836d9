"""The answers to one HTTP request as they come: text pieces, finish reasons, and what they cost."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from turbo_runtime.engine.request import Submit, TokenEvent
from turbo_runtime.server.detokenize import Detokenizer
from turbo_runtime.server.engine_link import EngineLink
from turbo_runtime.server.errors import failed
from turbo_runtime.server.jobs import Job
from turbo_runtime.server.model import ServedModel
from turbo_runtime.server.stop_strings import StopScanner


class Watch(Protocol):
    """Whoever measures answers; times are in seconds."""

    def tokens(self, seconds: float, first: bool) -> None:
        """A step brought tokens, `seconds` after the request came (`first`) or after the step before."""

    def finished(self, reason: str, tokens: int, to_first: float | None, total: float) -> None:
        """An answer ended; `to_first` is None when no token ever came."""


@dataclass(frozen=True, slots=True)
class Piece:
    """New text of one answer; `finish_reason` ends it."""

    index: int
    text: str
    finish_reason: str | None = None


@dataclass(slots=True)
class Tally:
    """What a request's answers cost so far."""

    completion_tokens: int = 0
    drafts: int = 0  # verification passes with at least one drafted token
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    verified_tokens: int = 0  # that those passes brought: what was accepted, and the bonus tokens

    @property
    def acceptance_length(self) -> float | None:
        """Tokens committed per verified draft, the bonus token included; None before the first draft."""
        return self.verified_tokens / self.drafts if self.drafts else None


@dataclass(slots=True)
class _Answer:
    """One answer's text so far."""

    index: int
    detokenizer: Detokenizer
    scanner: StopScanner
    stop_token_ids: frozenset[int]
    tokens: int = 0
    first_at: float | None = None
    last_at: float = 0.0

    def take(self, event: TokenEvent) -> tuple[str, str | None]:
        """New text, and why the answer ends with it, or None.

        Tokens go through one by one, so that an answer is cut at the same token however many a step brought.
        """
        text = ""
        for position, token in enumerate(event.tokens):
            self.tokens += 1
            final = event.finish_reason == "stop" and position == len(event.tokens) - 1
            if final and token in self.stop_token_ids:
                break  # the end-of-sequence token is counted but is no text
            passed, stopped = self.scanner.push(self.detokenizer.push(token))
            text += passed
            if stopped:
                return text, "stop"
        if event.finish_reason is None:
            return text, None
        passed, stopped = self.scanner.push(self.detokenizer.flush())
        text += passed
        return (text, "stop") if stopped else (text + self.scanner.flush(), event.finish_reason)


class Answers:
    """All answers of one request, handed to the engine at once.

    To be used as a context manager: leaving it, early or not, cancels what is unfinished.
    """

    def __init__(self, job: Job, model: ServedModel, engine: EngineLink, watch: Watch) -> None:
        self.job = job
        self.tally = Tally()
        self._engine = engine
        self._watch = watch
        self._started = time.monotonic()
        submits = _submits(job)
        self._open = {
            submit.request_id: _Answer(
                index, Detokenizer(model.tokenizer.decode), StopScanner(job.stops), model.stop_token_ids
            )
            for index, submit in enumerate(submits)
        }
        self.choices = len(submits)
        self._events = engine.submit(submits)

    @property
    def prompt_tokens(self) -> int:
        """Of all prompts, each counted once however many answers it has."""
        return sum(len(prompt) for prompt in self.job.prompts)

    async def pieces(self) -> AsyncIterator[Piece]:
        """Text as it comes, until all answers are finished.

        Raises ApiError (500) when the engine fails one.
        """
        while self._open:
            event = await self._events.get()
            answer = self._open.get(event.request_id)
            if answer is None:
                continue  # a stop string ended it, and this event was already on its way
            if event.error is not None:
                self._finish(event.request_id, "error")
                raise failed(event.error)
            before = answer.tokens
            text, reason = answer.take(event)
            self._count(event, answer, before)
            if reason is not None:
                self._finish(event.request_id, reason)
            if text or reason is not None:
                yield Piece(answer.index, text, reason)

    def __enter__(self) -> Answers:
        return self

    def __exit__(self, *_: object) -> None:
        for request_id in list(self._open):
            self._finish(request_id, "abort")

    def _count(self, event: TokenEvent, answer: _Answer, before: int) -> None:
        kept = answer.tokens - before
        # Accepted tokens come before the bonus token; those behind a stop string are no part of the reply.
        accepted = min(event.accepted, kept)
        self.tally.completion_tokens += kept
        self.tally.accepted_tokens += accepted
        self.tally.drafted_tokens += event.drafted - (event.accepted - accepted)
        if event.drafted:
            self.tally.drafts += 1
            self.tally.verified_tokens += kept
        if not event.tokens:
            return
        now = time.monotonic()
        if answer.first_at is None:
            answer.first_at = now
            self._watch.tokens(now - self._started, first=True)
        else:
            self._watch.tokens(now - answer.last_at, first=False)
        answer.last_at = now

    def _finish(self, request_id: str, reason: str) -> None:
        answer = self._open.pop(request_id)
        self._engine.cancel([request_id])  # does nothing where the engine itself ended it
        to_first = None if answer.first_at is None else answer.first_at - self._started
        self._watch.finished(reason, answer.tokens, to_first, time.monotonic() - self._started)


def _submits(job: Job) -> list[Submit]:
    """One for each answer. Equal prompts count their choices on, so that repeating one draws anew."""
    request_id = uuid.uuid4().hex
    submits: list[Submit] = []
    for index, (prompt, params) in enumerate(zip(job.prompts, job.params, strict=True)):
        first = job.prompts[:index].count(prompt) * job.n
        submits += [
            Submit(f"{request_id}-{index}-{choice}", prompt, params, first + choice)
            for choice in range(job.n)
        ]
    return submits
