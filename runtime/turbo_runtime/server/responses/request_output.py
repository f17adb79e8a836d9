"""The answers to one HTTP request as they come, and what they cost."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from turbo_runtime.messages import GenerationRequest, TokenEvent
from turbo_runtime.parsers.stop_strings import StopScanner
from turbo_runtime.protocol.errors import failed, invalid, timed_out, unavailable
from turbo_runtime.server.engine_client.client import ABANDONED, EngineClient
from turbo_runtime.server.engine_client.event_buffer import Arrival
from turbo_runtime.server.preprocessing import PreparedRequest
from turbo_runtime.server.responses.output import CompletionOutput, OutputDelta, joined
from turbo_runtime.server.served_model import ServedModel
from turbo_runtime.tokenization.detokenizer import Detokenizer


class Watch(Protocol):
    """Whoever measures answers; times are in seconds."""

    def queued(self, seconds: float) -> None:
        """The engine took a request in after so long."""

    def tokens(self, seconds: float, first: bool) -> None:
        """A step brought tokens, `seconds` after the request came (`first`) or after the step before."""

    def finished(self, reason: str, prompt: int, tokens: int, to_first: float | None, total: float) -> None:
        """An answer of so many tokens ended; `to_first` is None when no token ever came."""


@dataclass(slots=True)
class Tally:
    """What a request's answers cost so far."""

    completion_tokens: int = 0
    reasoning_tokens: int = 0
    cached_tokens: int = 0  # of the prompts, each counted once
    drafts: int = 0  # verification passes with at least one drafted token
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    verified_tokens: int = 0  # that those passes brought: what was accepted, and the bonus tokens

    @property
    def acceptance_length(self) -> float | None:
        """Tokens committed per verified draft, the bonus token included; None before the first draft."""
        return self.verified_tokens / self.drafts if self.drafts else None


class RequestOutput:
    """All answers of one request, handed to the engine at once.

    To be used as a context manager: leaving it, early or not, cancels what is unfinished and calls `left`.
    `seconds` is how long they may take together.
    """

    def __init__(
        self,
        job: PreparedRequest,
        model: ServedModel,
        engine: EngineClient,
        watch: Watch,
        seconds: float,
        left: Callable[[], None],
    ) -> None:
        self.job = job
        self.tally = Tally()
        self._engine = engine
        self._watch = watch
        self._seconds = seconds
        self._left = left
        self._started = time.monotonic()
        submits = _submits(job)
        self._answers = [
            CompletionOutput(
                index,
                submit.params,
                Detokenizer(model.tokenizer.decode, model.tokenizer.is_silent),
                StopScanner(job.stops),
                job.reader(),
                model.stop_token_ids,
            )
            for index, submit in enumerate(submits)
        ]
        self._open = {
            submit.request_id: answer for submit, answer in zip(submits, self._answers, strict=True)
        }
        self._arrivals = engine.submit(submits)

    @property
    def speedup(self) -> float | None:
        """Of these answers: tokens per second over those that speculation off would give; None while nothing
        was measured.

        With speculation off a token takes a while, and an answer's while over its speed-up with it: so the
        means are of times, not of ratios.
        """
        known = [(each.tokens, each.speedup) for each in self._answers if each.tokens and each.speedup]
        if not known:
            return None
        return sum(tokens for tokens, _ in known) / sum(tokens / speedup for tokens, speedup in known)

    async def pieces(self) -> AsyncIterator[OutputDelta]:
        """Text as it comes, until all answers are finished. What came while the client was busy with the text
        before is one piece of each answer: a client that lags costs less, not more.

        Raises ApiError: 400 when the engine refuses one, 408 when they take too long, 500 when the engine
        fails one, 503 when it is gone.
        """
        while self._open:
            pieces, error = self._hear(await self._news())
            for piece in pieces:
                yield piece
            if error is not None:
                raise error

    def __enter__(self) -> RequestOutput:
        return self

    def __exit__(self, *_: object) -> None:
        for request_id in list(self._open):
            self._finish(request_id, "abort", time.monotonic())
        self._left()

    async def _news(self) -> list[Arrival]:
        try:
            async with asyncio.timeout(self._started + self._seconds - time.monotonic()):
                return await self._arrivals.take()
        except TimeoutError:
            raise timed_out(self._seconds) from None

    def _hear(self, arrivals: Iterable[Arrival]) -> tuple[list[OutputDelta], Exception | None]:
        """One piece of each answer that has news, and what went wrong behind them."""
        news: dict[int, list[OutputDelta]] = {}
        error = None
        for event, at in arrivals:
            answer = self._open.get(event.request_id)
            if answer is None:
                continue  # a stop string ended it, and this event was already on its way
            if event.error is not None:
                self._finish(event.request_id, "error", at)
                error = _error(event)
                break
            piece = self._take(event, answer, at)
            if piece.finish_reason is not None:
                self._finish(event.request_id, piece.finish_reason, at)
            if piece:
                news.setdefault(answer.index, []).append(piece)
        return [joined(pieces) for pieces in news.values()], error

    def _take(self, event: TokenEvent, answer: CompletionOutput, at: float) -> OutputDelta:
        before, thought = answer.tokens, answer.reasoning_tokens
        piece = answer.take(event)
        kept = answer.tokens - before
        # Accepted tokens come before the bonus token; those behind a stop string are no part of the reply.
        accepted = min(event.accepted, kept)
        tally = self.tally
        tally.completion_tokens += kept
        tally.reasoning_tokens += answer.reasoning_tokens - thought
        tally.accepted_tokens += accepted
        tally.drafted_tokens += event.drafted - (event.accepted - accepted)
        if event.drafted:
            tally.drafts += 1
            tally.verified_tokens += kept
        if answer.index % self.job.n == 0:  # the other answers to a prompt find what the first computed
            tally.cached_tokens += event.cached_tokens or 0
        if event.speedup is not None:
            answer.speedup = event.speedup
        self._time(event, answer, at)
        return piece

    def _time(self, event: TokenEvent, answer: CompletionOutput, at: float) -> None:
        if event.queued_seconds is not None:
            self._watch.queued(event.queued_seconds)
        if not event.tokens:
            return
        if answer.first_at is None:
            answer.first_at = at
            self._watch.tokens(at - self._started, first=True)
        else:
            self._watch.tokens(at - answer.last_at, first=False)
        answer.last_at = at

    def _finish(self, request_id: str, reason: str, at: float) -> None:
        answer = self._open.pop(request_id)
        self._engine.cancel([request_id])  # does nothing where the engine itself ended it
        to_first = None if answer.first_at is None else answer.first_at - self._started
        prompt = len(self.job.prompts[answer.index // self.job.n])
        told = "stop" if reason == "tool_calls" else reason
        self._watch.finished(told, prompt, answer.tokens, to_first, at - self._started)


def _error(event: TokenEvent) -> Exception:
    sentence = event.error or ""
    if event.finish_reason == ABANDONED:
        return unavailable(sentence)
    return invalid(None, sentence, "invalid_request") if event.refused else failed(sentence)


def _submits(job: PreparedRequest) -> list[GenerationRequest]:
    """One for each answer. Equal prompts count their choices on, so that repeating one draws anew."""
    request_id = uuid.uuid4().hex
    submits: list[GenerationRequest] = []
    seen: Counter[tuple[int, ...]] = Counter()
    for index, (prompt, params) in enumerate(zip(job.prompts, job.params, strict=True)):
        first = seen[prompt] * job.n
        seen[prompt] += 1
        submits += [
            GenerationRequest(
                f"{request_id}-{index}-{choice}",
                prompt,
                params,
                first + choice,
                job.tenant,
                job.salt,
                job.draft,
            )
            for choice in range(job.n)
        ]
    return submits
