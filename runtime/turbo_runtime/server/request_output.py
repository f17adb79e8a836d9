"""The answers to one HTTP request as they come: from token events to parts of text, and what they cost."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, replace

from turbo_runtime.messages import GenerationRequest, TokenEvent, TokenLogprob
from turbo_runtime.parsers import ParsedDelta, StopScanner
from turbo_runtime.protocol.errors import ApiError, invalid, unavailable
from turbo_runtime.server import metrics
from turbo_runtime.server.engine_client import ABANDONED, TimedEvent
from turbo_runtime.server.preprocessing import PreparedRequest, ServedModel
from turbo_runtime.server.service import Service
from turbo_runtime.tokenization.tokenizer import Detokenizer

MAX_EVENTS = 64  # taken at once: a few milliseconds of work


@dataclass(frozen=True, slots=True)
class OutputDelta:
    """New part of one answer; `finish_reason` ends it. Logprobs are of `tokens`."""

    index: int
    parsed: ParsedDelta
    finish_reason: str | None = None
    stop_reason: str | int | None = None  # the stop string or the request's own stop token that ended it
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None

    def __bool__(self) -> bool:
        return bool(self.parsed or self.logprobs or self.finish_reason or self.prompt_logprobs)


def join(deltas: list[OutputDelta]) -> OutputDelta:
    """Join parts of one output."""
    parsed = [delta.parsed for delta in deltas]
    return replace(
        deltas[-1],
        parsed=ParsedDelta(
            "".join(part.content for part in parsed),
            "".join(part.reasoning for part in parsed),
            tuple(call for part in parsed for call in part.calls),
        ),
        tokens=tuple(token for delta in deltas for token in delta.tokens),
        logprobs=tuple(logprob for delta in deltas for logprob in delta.logprobs),
        prompt_logprobs=next(
            (found for delta in deltas if (found := delta.prompt_logprobs) is not None), None
        ),
    )


class CompletionOutput:
    """One answer so far."""

    def __init__(self, index: int, request: PreparedRequest, model: ServedModel) -> None:
        self.index = index
        self.num_tokens = 0
        self.num_reasoning_tokens = 0
        self.ttft: float | None = None  # seconds from the request to the first token
        self.last_token_time = 0.0
        self.speedup: float | None = None  # so far, as the engine measures it
        self._params = request.params[index // request.n]
        self._end_ids = model.stop_token_ids  # no stop reason names them
        self._detokenizer = Detokenizer(model.tokenizer.decode, model.tokenizer.is_skipped)
        self._scanner = StopScanner(request.stops)
        self._parser = request.build_parser()
        self._stop_reason: str | int | None = None

    def update(self, event: TokenEvent) -> OutputDelta:
        """Return what an event adds, token by token: an answer ends at the same one in steps of any size."""
        parsed, num_before, reason = ParsedDelta(), self.num_tokens, None
        for position, token in enumerate(event.tokens):
            self.num_tokens += 1
            is_final = event.finish_reason == "stop" and position == len(event.tokens) - 1
            if is_final and token in self._params.stop_token_ids:
                self._stop_reason = None if token in self._end_ids else token
                break  # an end-of-sequence token counts but is no text
            self.num_reasoning_tokens += self._parser.is_reasoning
            added, reason = self._parse(self._detokenizer.push(token))
            parsed += added
            if reason:
                break
        if reason is None and event.finish_reason is not None:
            added, reason = self._parse(self._detokenizer.flush())
            parsed += added + self._parser.push(self._scanner.flush())
            reason = reason or event.finish_reason
        if reason is not None:
            parsed += self._parser.flush()
            if self._parser.has_called and reason == "stop":
                reason = "tool_calls"
        num_new = self.num_tokens - num_before
        tokens, logprobs = event.tokens[:num_new], event.logprobs[:num_new]
        return OutputDelta(
            self.index, parsed, reason, self._stop_reason, tokens, logprobs, event.prompt_logprobs
        )

    def _parse(self, text: str) -> tuple[ParsedDelta, str | None]:
        """Parse new text, and return why the answer ends with it, or None."""
        if self.num_tokens < self._params.min_tokens:
            return self._parser.push(text), None  # no stop string counts yet
        text, is_stopped = self._scanner.push(text)
        self._stop_reason = self._scanner.match or self._stop_reason
        parsed = self._parser.push(text)
        return parsed, "stop" if is_stopped or self._parser.is_complete else None


class RequestOutput:
    """All answers of one request. Leaving the context cancels what is unfinished and calls `on_exit`."""

    def __init__(
        self, request: PreparedRequest, model: ServedModel, service: Service, on_exit: Callable[[], None]
    ) -> None:
        self.request = request
        self.completion_tokens = 0
        self.reasoning_tokens = 0
        self.cached_tokens = 0  # of the prompts, each counted once
        self.drafted_tokens = 0
        self.accepted_tokens = 0
        self._drafts = 0  # verification passes with at least one drafted token
        self._verified_tokens = 0  # that those passes brought: accepted tokens and bonus tokens
        self._engine, self._metrics = service.engine, service.metrics
        self._timeout_seconds = service.config.request_timeout_seconds
        self._on_exit = on_exit
        self._start_time = time.monotonic()
        generations = _generation_requests(request)
        self._unfinished = {
            generation.request_id: CompletionOutput(index, request, model)
            for index, generation in enumerate(generations)
        }
        self._outputs = list(self._unfinished.values())
        self._events = self._engine.submit(generations)

    @property
    def acceptance_length(self) -> float | None:
        """Tokens committed per verified draft, the bonus token included; None before the first draft."""
        return self._verified_tokens / self._drafts if self._drafts else None

    @property
    def speedup(self) -> float | None:
        """Ratio of mean token times without speculation and with it; None before a measurement."""
        outputs = (output for output in self._outputs if output.num_tokens)
        measured = [(output.num_tokens, output.speedup) for output in outputs if output.speedup]
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
        """Wait for events, `MAX_EVENTS` at most. Others always run: a queue may never empty."""
        try:
            async with asyncio.timeout(self._start_time + self._timeout_seconds - time.monotonic()):
                await asyncio.sleep(0)
                events = [await self._events.get()]
        except TimeoutError:
            message = (
                f"The answer was not complete after {self._timeout_seconds:g} s, the most that this server "
                "gives a request: ask for fewer tokens."
            )
            # else OpenAI's clients would retry
            raise ApiError(408, message, headers={"x-should-retry": "false"}) from None
        while len(events) < MAX_EVENTS and not self._events.empty():
            events.append(self._events.get_nowait())
        return events

    def _process(self, events: Iterable[TimedEvent]) -> tuple[list[OutputDelta], ApiError | None]:
        """Return one delta of each answer that has news, and the error that follows them."""
        deltas: dict[int, list[OutputDelta]] = {}
        error = None
        for event, event_time in events:
            output = self._unfinished.get(event.request_id)
            if output is None:
                continue  # a stop string ended it, and this event was already on its way
            if event.error is not None:
                self._finish(event.request_id, "error", event_time)
                if event.finish_reason == ABANDONED:
                    error = unavailable(event.error)
                elif event.refused:
                    field = self.request.grammar_field if event.refused == "grammar" else None
                    error = invalid(field, f"'{field}': {event.error}" if field else event.error)
                else:
                    error = ApiError(500, event.error)
                break
            delta = self._update(event, output, event_time)
            if delta.finish_reason is not None:
                self._finish(event.request_id, delta.finish_reason, event_time)
            if delta:
                deltas.setdefault(output.index, []).append(delta)
        return list(map(join, deltas.values())), error

    def _update(self, event: TokenEvent, output: CompletionOutput, event_time: float) -> OutputDelta:
        self.reasoning_tokens -= output.num_reasoning_tokens
        delta = output.update(event)
        self.reasoning_tokens += output.num_reasoning_tokens
        num_new = len(delta.tokens)
        # Accepted tokens precede the bonus token; those behind a stop string are no part of the reply.
        accepted = min(event.accepted, num_new)
        self.completion_tokens += num_new
        self.accepted_tokens += accepted
        self.drafted_tokens += event.drafted - (event.accepted - accepted)
        if event.drafted:
            self._drafts += 1
            self._verified_tokens += num_new
        if output.index % self.request.n == 0:  # the other answers to a prompt find what the first computed
            self.cached_tokens += event.cached_tokens or 0
        if event.speedup is not None:
            output.speedup = event.speedup
        if event.queued_seconds is not None:
            self._metrics.observe(metrics.REQUEST_QUEUE_TIME, event.queued_seconds)
        if event.tokens:
            if output.ttft is None:
                output.ttft = event_time - self._start_time
                self._metrics.observe_first_token(output.ttft)
            else:
                self._metrics.observe(metrics.INTER_TOKEN_LATENCY, event_time - output.last_token_time)
            output.last_token_time = event_time
        return delta

    def _finish(self, request_id: str, reason: str, end_time: float) -> None:
        output = self._unfinished.pop(request_id)
        self._engine.cancel([request_id])  # does nothing where the engine itself ended it
        reason = "stop" if reason == "tool_calls" else reason
        num_prompt_tokens = len(self.request.prompts[output.index // self.request.n])
        seconds = end_time - self._start_time
        self._metrics.observe_finish(reason, num_prompt_tokens, output.num_tokens, output.ttft, seconds)


def _generation_requests(request: PreparedRequest) -> list[GenerationRequest]:
    """Equal prompts continue the numbers of their choices, so that repeating one draws anew."""
    request_id = uuid.uuid4().hex
    num_seen: Counter[tuple[int, ...]] = Counter()
    generations: list[GenerationRequest] = []
    scope = request.tenant, request.salt, request.draft, request.lora_id
    for prompt, params in zip(request.prompts, request.params, strict=True):
        for _ in range(request.n):
            output_id = f"{request_id}-{len(generations)}"
            generations.append(GenerationRequest(output_id, prompt, params, num_seen[prompt], *scope))
            num_seen[prompt] += 1
    return generations
