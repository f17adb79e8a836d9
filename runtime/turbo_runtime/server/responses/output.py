"""One answer as its tokens come: from token events to parts of text, reasoning and calls."""

from __future__ import annotations

from dataclasses import dataclass, field

from turbo_runtime.messages import SamplingParams, TokenEvent, TokenLogprob
from turbo_runtime.parsers import OutputParser, ParsedDelta
from turbo_runtime.parsers.stop_strings import StopScanner
from turbo_runtime.tokenization.detokenizer import Detokenizer


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
    """Join parts of one answer."""
    if len(deltas) == 1:
        return deltas[0]
    last = deltas[-1]
    prompt_logprobs = (delta.prompt_logprobs for delta in deltas)
    return OutputDelta(
        last.index,
        ParsedDelta(
            "".join(delta.parsed.content for delta in deltas),
            "".join(delta.parsed.reasoning for delta in deltas),
            tuple(call for delta in deltas for call in delta.parsed.calls),
        ),
        last.finish_reason,
        last.stop_reason,
        tuple(token for delta in deltas for token in delta.tokens),
        tuple(logprob for delta in deltas for logprob in delta.logprobs),
        next((logprobs for logprobs in prompt_logprobs if logprobs is not None), None),
    )


@dataclass(slots=True)
class CompletionOutput:
    """One answer so far. `end_ids` are the model's own; no stop reason names them."""

    index: int
    params: SamplingParams
    detokenizer: Detokenizer
    scanner: StopScanner
    parser: OutputParser
    end_ids: frozenset[int]
    num_tokens: int = 0
    num_reasoning_tokens: int = 0
    first_token_time: float | None = None
    last_token_time: float = 0.0
    speedup: float | None = None  # so far, as the engine measures it
    _stop_reason: str | int | None = field(default=None, init=False)

    def update(self, event: TokenEvent) -> OutputDelta:
        """Return what an event adds.

        Tokens go through one by one, so that an answer is cut at the same token however many a step brings.
        """
        parsed, num_before, reason = ParsedDelta(), self.num_tokens, None
        for position, token in enumerate(event.tokens):
            self.num_tokens += 1
            is_final = event.finish_reason == "stop" and position == len(event.tokens) - 1
            if is_final and token in self.params.stop_token_ids:
                self._stop_reason = None if token in self.end_ids else token
                break  # an end-of-sequence token counts but is no text
            self.num_reasoning_tokens += self.parser.is_reasoning
            added, reason = self._parse(self.detokenizer.push(token))
            parsed += added
            if reason:
                break
        if reason is None and event.finish_reason is not None:
            added, reason = self._parse(self.detokenizer.flush())
            parsed += added + self.parser.push(self.scanner.flush())
            reason = reason or event.finish_reason
        if reason is not None:
            parsed += self.parser.flush()
            if self.parser.has_called and reason == "stop":
                reason = "tool_calls"
        num_new = self.num_tokens - num_before
        return OutputDelta(
            self.index,
            parsed,
            reason,
            self._stop_reason,
            event.tokens[:num_new],
            event.logprobs[:num_new],
            event.prompt_logprobs,
        )

    def _parse(self, text: str) -> tuple[ParsedDelta, str | None]:
        """Parse new text, and return why the answer ends with it, or None."""
        if self.num_tokens < self.params.min_tokens:
            return self.parser.push(text), None  # no stop string counts yet
        text, is_stopped = self.scanner.push(text)
        self._stop_reason = self.scanner.match or self._stop_reason
        parsed = self.parser.push(text)
        return parsed, "stop" if is_stopped or self.parser.is_complete else None
