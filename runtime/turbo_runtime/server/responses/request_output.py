"""The answers to one HTTP request as they come, and what they cost."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass

from turbo_runtime.messages import GenerationRequest, TokenEvent
from turbo_runtime.parsers.stop_strings import StopScanner
from turbo_runtime.protocol.errors import failed, invalid, timed_out, unavailable
from turbo_runtime.server.engine_client import ABANDONED, EngineClient, TimedEvent
from turbo_runtime.server.metrics import Metrics
from turbo_runtime.server.preprocessing import PreparedRequest
from turbo_runtime.server.responses.output import CompletionOutput, OutputDelta, join
from turbo_runtime.server.served_model import ServedModel
from turbo_runtime.tokenization.detokenizer import Detokenizer


@dataclass(slots=True)
class Tally:
    """Token counts of a request's answers so far."""

    completion_tokens: int = 0
    reasoning_tokens: int = 0
    cached_tokens: int = 0  # of the prompts, each counted once
    drafts: int = 0  # verification passes with at least one drafted token
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    verified_tokens: int = 0  # that those passes brought: accepted tokens and bonus tokens

    @property
    def acceptance_length(self) -> float | None:
        """Tokens committed per verified draft, the bonus token included; None before the first draft."""
        return self.verified_tokens / self.drafts if self.drafts else None


class RequestOutput:
    """All answers of one request. Leaving the context cancels what is unfinished and calls `on_exit`."""

    def __init__(
        self,
        request: PreparedRequest,
        model: ServedModel,
        engine: EngineClient,
        metrics: Metrics,
        timeout_seconds: float,
        on_exit: Callable[[], None],
    ) -> None:
        self.request = request
        self.tally = Tally()
        self._engine = engine
        self._metrics = metrics
        self._timeout_seconds = timeout_seconds
        self._on_exit = on_exit
        self._start_time = time.monotonic()
        generations = _generation_requests(request)
        self._answers = [
            CompletionOutput(
                index,
                generation.params,
                Detokenizer(model.tokenizer.decode, model.tokenizer.is_skipped),
                StopScanner(request.stops),
                request.build_parser(),
                model.stop_token_ids,
            )
            for index, generation in enumerate(generations)
        ]
        ids = (generation.request_id for generation in generations)
        self._unfinished = dict(zip(ids, self._answers, strict=True))
        self._events = engine.submit(generations)

    @property
    def speedup(self) -> float | None:
        """Tokens per second of these answers over those without speculation; None before a measurement.

        Without speculation a token takes some time, and an answer's token that time over its speed-up: so
        the means are of times, not of ratios.
        """
        answers = (answer for answer in self._answers if answer.num_tokens)
        measured = [(answer.num_tokens, answer.speedup) for answer in answers if answer.speedup]
        if not measured:
            return None
        return sum(tokens for tokens, _ in measured) / sum(tokens / speedup for tokens, speedup in measured)

    async def deltas(self) -> AsyncIterator[OutputDelta]:
        """Yield text as it comes, until all answers are finished. What arrives while the client is busy is
        one delta of each answer: a slow client costs less, not more.

        Raises ApiError: 400 when the engine rejects an answer, 408 when they take too long, 500 when the
        engine fails one, 503 when it is gone.
        """
        while self._unfinished:
            deltas, error = self._process(await self._take_events())
            for delta in deltas:
                yield delta
            if error is not None:
                raise error

    def __enter__(self) -> RequestOutput:
        return self

    def __exit__(self, *_: object) -> None:
        for request_id in list(self._unfinished):
            self._finish(request_id, "abort", time.monotonic())
        self._on_exit()

    async def _take_events(self) -> list[TimedEvent]:
        try:
            async with asyncio.timeout(self._start_time + self._timeout_seconds - time.monotonic()):
                return await self._events.take()
        except TimeoutError:
            raise timed_out(self._timeout_seconds) from None

    def _process(self, events: Iterable[TimedEvent]) -> tuple[list[OutputDelta], Exception | None]:
        """Return one delta of each answer that has news, and the error that follows them."""
        deltas: dict[int, list[OutputDelta]] = {}
        error = None
        for event, event_time in events:
            answer = self._unfinished.get(event.request_id)
            if answer is None:
                continue  # a stop string ended it, and this event was already on its way
            if event.error is not None:
                self._finish(event.request_id, "error", event_time)
                error = _to_api_error(event, event.error)
                break
            delta = self._update(event, answer, event_time)
            if delta.finish_reason is not None:
                self._finish(event.request_id, delta.finish_reason, event_time)
            if delta:
                deltas.setdefault(answer.index, []).append(delta)
        return list(map(join, deltas.values())), error

    def _update(self, event: TokenEvent, answer: CompletionOutput, event_time: float) -> OutputDelta:
        num_before, num_reasoning_before = answer.num_tokens, answer.num_reasoning_tokens
        delta = answer.update(event)
        num_new = answer.num_tokens - num_before
        # Accepted tokens precede the bonus token; those behind a stop string are no part of the reply.
        accepted = min(event.accepted, num_new)
        tally = self.tally
        tally.completion_tokens += num_new
        tally.reasoning_tokens += answer.num_reasoning_tokens - num_reasoning_before
        tally.accepted_tokens += accepted
        tally.drafted_tokens += event.drafted - (event.accepted - accepted)
        if event.drafted:
            tally.drafts += 1
            tally.verified_tokens += num_new
        if answer.index % self.request.n == 0:  # the other answers to a prompt find what the first computed
            tally.cached_tokens += event.cached_tokens or 0
        if event.speedup is not None:
            answer.speedup = event.speedup
        if event.queued_seconds is not None:
            self._metrics.observe_queue_time(event.queued_seconds)
        if event.tokens:
            is_first = answer.first_token_time is None
            last_time = self._start_time if is_first else answer.last_token_time
            self._metrics.observe_tokens(event_time - last_time, first=is_first)
            if is_first:
                answer.first_token_time = event_time
            answer.last_token_time = event_time
        return delta

    def _finish(self, request_id: str, reason: str, end_time: float) -> None:
        answer = self._unfinished.pop(request_id)
        self._engine.cancel([request_id])  # does nothing where the engine itself ended it
        first_time = answer.first_token_time
        self._metrics.observe_finish(
            "stop" if reason == "tool_calls" else reason,
            len(self.request.prompts[answer.index // self.request.n]),
            answer.num_tokens,
            None if first_time is None else first_time - self._start_time,
            end_time - self._start_time,
        )


def _to_api_error(event: TokenEvent, message: str) -> Exception:
    if event.finish_reason == ABANDONED:
        return unavailable(message)
    return invalid(None, message, "invalid_request") if event.refused else failed(message)


def _generation_requests(request: PreparedRequest) -> list[GenerationRequest]:
    """Equal prompts continue the numbers of their choices, so that repeating one draws anew."""
    request_id = uuid.uuid4().hex
    num_seen: Counter[tuple[int, ...]] = Counter()
    generations: list[GenerationRequest] = []
    for index, (prompt, params) in enumerate(zip(request.prompts, request.params, strict=True)):
        first = num_seen[prompt] * request.n
        num_seen[prompt] += 1
        generations += [
            GenerationRequest(
                f"{request_id}-{index}-{choice}",
                prompt,
                params,
                first + choice,
                request.tenant,
                request.salt,
                request.draft,
            )
            for choice in range(request.n)
        ]
    return generations
