"""One answer's law: from a row of logits and the tokens before it to the token that the engine says."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from llguidance import LLMatcher
from torch import Tensor

from turbo_runtime.messages import SamplingParams, TokenLogprob
from turbo_runtime.sampling.draw import NOTHING, greedy_tokens, sampled_tokens
from turbo_runtime.sampling.grammar.matcher import GrammarMatcher
from turbo_runtime.sampling.logprobs import PromptLogprobs
from turbo_runtime.sampling.noise import Noise, position_key
from turbo_runtime.sampling.processors import Processors
from turbo_runtime.sampling.tolerance import excess
from turbo_runtime.sampling.truncation import cuts, keep_candidates

GREEDY_BELOW = 1e-6  # a temperature below this is 0: the quotient would leave what float64 resolves

NOT_FINITE = "the model's logits are not finite: its weights or its precision are broken"


class NoTokenError(ValueError):
    """There is no token where one is wanted; the text is a sentence for the user."""


class Sampler:
    """Draws the tokens of one answer, row by row. It reads the tokens before a row as they come, never back:
    a row is asked for only where the drafts before it were right, which makes them part of the answer.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt: Sequence[int],
        key: int,
        noise: Noise,
        grammar: GrammarMatcher | None = None,
    ) -> None:
        """`key` is the answer's, of `noise.answer_key`. Raises ValueError with a sentence for parameters that
        name a token which the model does not have.
        """
        self.params = params
        self.key = key
        self.greedy = params.temperature < GREEDY_BELOW
        self.stop_ids = params.stop_token_ids | (grammar.end_ids if grammar else frozenset())
        self._noise = noise
        self._grammar = grammar
        self._processors = Processors(params, prompt, self.stop_ids, noise)
        self._cuts = not self.greedy and cuts(params)
        self._length = len(prompt)  # tokens of prompt and answer that were read
        top = params.prompt_logprobs
        self._prompt = None if top is None else PromptLogprobs(prompt, top)

    @property
    def plain(self) -> bool:
        """Whether a row's token depends on nothing but the row, its position and the temperature."""
        return self._processors.idle and self._grammar is None and not self._cuts

    def token(self, logits: Tensor, tokens: Sequence[int], drafts: Sequence[int] = ()) -> int:
        """The token of the row (vocabulary,) that has seen `tokens`, prompt and answer so far, and then
        `drafts`. Raises NoTokenError, SpentError where it should be asked again after `renew`, and
        GrammarError where the grammar becomes too costly.
        """
        row = self._processed(logits, tokens, drafts)
        if self._cuts:
            row = keep_candidates(row, self.params)
        return self.known(int(self._draw(row[None], len(tokens) + len(drafts))))

    def excess(self, logits: Tensor, tokens: Sequence[int], token: int, off: float) -> float:
        """Above 0 where `token` cannot be the one of this row (vocabulary,), which has seen `tokens`, though
        each of its logits may be off by so much; see `nearness`. Raises GrammarError.
        """
        row = self._processed(logits, tokens, ())
        gumbel = None
        if not self.greedy:
            ids = torch.arange(len(row), device=row.device)
            gumbel = self._noise.gumbel(position_key(self.key, len(tokens)), ids)
        return excess(row, token, self.params, gumbel, off * self._processors.gain)

    def known(self, token: int) -> int:
        """The token; raises NoTokenError where it is `NOTHING`."""
        if token != NOTHING:
            return token
        if self.plain:
            raise NoTokenError(NOT_FINITE)
        raise NoTokenError(
            "no token is left to choose from: response_format, bad_words and min_tokens together forbid "
            "every one; relax one of them"
        )

    def prompt_rows(self, start: int, count: int) -> range:
        """Positions among `count` from `start` whose rows `read_prompt` wants: none, unless the prompt's log
        probabilities were asked for.
        """
        return self._prompt.rows(start, count) if self._prompt else range(0)

    def read_prompt(self, logits: Tensor, positions: range) -> None:
        """The logits (rows, vocabulary) of those positions."""
        if self._prompt:
            self._prompt.read(logits, positions)

    def take_prompt_logprobs(self) -> tuple[TokenLogprob, ...] | None:
        """Of the prompt from its second token on: once, when its last row was read. Else None."""
        found = self._prompt.take() if self._prompt else None
        if found is not None:
            self._prompt = None
        return found

    def allowed_prefix(self, tokens: Sequence[int], drafts: Sequence[int]) -> Sequence[int]:
        """The drafts after `tokens` up to the first that the grammar forbids: the others are in vain."""
        if self._grammar is None or not drafts:
            return drafts
        self._read(tokens, ())
        return drafts[: self._grammar.allowed_prefix(drafts)]

    def forced(self, tokens: Sequence[int]) -> list[int]:
        """Tokens after `tokens` that the grammar leaves no choice about: the best of drafts, often none."""
        if self._grammar is None:
            return []
        self._read(tokens, ())
        return self._grammar.forced()

    def renew(self, matcher: LLMatcher | None) -> None:
        """After a SpentError: the answer's grammar goes on with this, and the row may be asked for again."""
        if self._grammar is not None:
            self._grammar.renew(matcher)

    def _processed(self, logits: Tensor, tokens: Sequence[int], drafts: Sequence[int]) -> Tensor:
        """The row after everything but the temperature and the cuts."""
        row = logits
        if self._grammar is not None or not self._processors.idle:
            self._read(tokens, drafts)
        if self._grammar is not None:
            row = torch.where(self._grammar.allowed().to(row.device), row, -torch.inf)
        return row if self._processors.idle else self._processors.apply(row)

    def _read(self, tokens: Sequence[int], drafts: Sequence[int]) -> None:
        fresh = [*tokens[self._length :], *drafts[max(0, self._length - len(tokens)) :]]
        if fresh:
            self._length += len(fresh)
            self._processors.read(fresh)
            if self._grammar is not None:
                self._grammar.read(fresh)

    def _draw(self, rows: Tensor, position: int) -> Tensor:
        if self.greedy:
            return greedy_tokens(rows)
        key = torch.tensor([position_key(self.key, position)], device=rows.device)
        temperature = torch.tensor([self.params.temperature], dtype=torch.float64, device=rows.device)
        return sampled_tokens(rows, temperature, key, self._noise)
