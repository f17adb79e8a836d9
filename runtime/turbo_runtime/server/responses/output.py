"""One answer as its tokens come: from token events to pieces of text, reasoning and calls."""

from __future__ import annotations

from dataclasses import dataclass, field

from turbo_runtime.messages import SamplingParams, TokenEvent, TokenLogprob
from turbo_runtime.parsers import AnswerReader, ParsedDelta
from turbo_runtime.parsers.stop_strings import StopScanner
from turbo_runtime.tokenization.detokenizer import Detokenizer


@dataclass(frozen=True, slots=True)
class OutputDelta:
    """What is new of one answer; `finish_reason` ends it. Logprobs are of `tokens`."""

    index: int
    said: ParsedDelta
    finish_reason: str | None = None
    stop_reason: str | int | None = None  # the stop string or the request's own stop token that ended it
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None

    def __bool__(self) -> bool:
        return bool(self.said or self.logprobs or self.finish_reason or self.prompt_logprobs)


def joined(pieces: list[OutputDelta]) -> OutputDelta:
    """One answer's pieces as one."""
    if len(pieces) == 1:
        return pieces[0]
    last, said = pieces[-1], [piece.said for piece in pieces]
    prompts = (piece.prompt_logprobs for piece in pieces)
    return OutputDelta(
        last.index,
        ParsedDelta(
            "".join(one.content for one in said),
            "".join(one.reasoning for one in said),
            tuple(call for one in said for call in one.calls),
        ),
        last.finish_reason,
        last.stop_reason,
        tuple(token for piece in pieces for token in piece.tokens),
        tuple(one for piece in pieces for one in piece.logprobs),
        next((told for told in prompts if told is not None), None),
    )


@dataclass(slots=True)
class CompletionOutput:
    """One answer's text so far."""

    index: int
    params: SamplingParams
    detokenizer: Detokenizer
    scanner: StopScanner
    reader: AnswerReader
    end_ids: frozenset[int]  # the model's own; a stop that is told by name is not one of them
    tokens: int = 0
    reasoning_tokens: int = 0
    first_at: float | None = None
    last_at: float = 0.0
    speedup: float | None = None  # so far, as the engine has it
    _stop: str | int | None = field(default=None, init=False)

    def take(self, event: TokenEvent) -> OutputDelta:
        """What an event brings.

        Tokens go through one by one, so that an answer is cut at the same token however many a step brought.
        """
        said, before, reason = ParsedDelta(), self.tokens, None
        for position, token in enumerate(event.tokens):
            self.tokens += 1
            final = event.finish_reason == "stop" and position == len(event.tokens) - 1
            if final and token in self.params.stop_token_ids:
                self._stop = None if token in self.end_ids else token
                break  # an end-of-sequence token is counted but is no text
            self.reasoning_tokens += self.reader.reasoning
            more, reason = self._hear(self.detokenizer.push(token))
            said += more
            if reason:
                break
        if reason is None and event.finish_reason is not None:
            more, reason = self._hear(self.detokenizer.flush())
            said += more + self.reader.push(self.scanner.flush())
            reason = reason or event.finish_reason
        if reason is not None:
            said += self.reader.flush()
            if self.reader.called and reason == "stop":
                reason = "tool_calls"
        kept = self.tokens - before
        return OutputDelta(
            self.index,
            said,
            reason,
            self._stop,
            event.tokens[:kept],
            event.logprobs[:kept],
            event.prompt_logprobs,
        )

    def _hear(self, text: str) -> tuple[ParsedDelta, str | None]:
        """What new text says, and why the answer ends with it, or None."""
        if self.tokens < self.params.min_tokens:
            return self.reader.push(text), None  # no stop string counts yet
        passed, stopped = self.scanner.push(text)
        self._stop = self.scanner.found or self._stop
        said = self.reader.push(passed)
        return said, "stop" if stopped or self.reader.complete else None
