"""One answer's sampler: from a row of logits and the tokens before it to the engine's token; and many at
once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from llguidance import LLMatcher
from torch import Tensor

from turbo_runtime.messages import SamplingParams
from turbo_runtime.sampling.draw import NOTHING, greedy_tokens, sampled_tokens
from turbo_runtime.sampling.grammar.matcher import GrammarMatcher
from turbo_runtime.sampling.logprobs import PromptLogprobs
from turbo_runtime.sampling.noise import Noise, position_key
from turbo_runtime.sampling.processors import Processors
from turbo_runtime.sampling.truncation import cuts, excess, keep_candidates

GREEDY_BELOW = 1e-6  # a lower temperature is 0: float64 would not resolve the quotient

NOT_FINITE = "the model's logits are not finite: its weights or its precision are broken"


class NoTokenError(ValueError):
    """No token can be drawn; the text is a sentence for the user."""


class Sampler:
    """Draws the tokens of one answer, row by row, and never goes back: a row is drawn only where the drafts
    before it were right, which makes them part of the answer.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt: Sequence[int],
        key: int,
        noise: Noise,
        grammar: GrammarMatcher | None = None,
    ) -> None:
        """`key`: `noise.answer_key`. Raises ValueError with a sentence for an unknown token in `params`."""
        self.params = params
        self.key = key
        self.greedy = params.temperature < GREEDY_BELOW
        self.stop_ids = params.stop_token_ids | (grammar.end_ids if grammar else frozenset())
        self._noise = noise
        self._grammar = grammar
        self._processors = Processors(params, prompt, self.stop_ids, noise)
        self._cuts = not self.greedy and cuts(params)
        self._length = len(prompt)  # tokens of prompt and answer that were read
        self.prompt_logprobs = PromptLogprobs(prompt, params.prompt_logprobs)

    @property
    def plain(self) -> bool:
        """Whether a row's token depends only on the row, its position and the temperature."""
        return self._processors.idle and self._grammar is None and not self._cuts

    def token(self, logits: Tensor, tokens: Sequence[int], drafts: Sequence[int] = ()) -> int:
        """The token of the row (vocabulary,) after `tokens`, prompt and answer so far, and then `drafts`.
        Raises NoTokenError, SpentError (ask again after `renew`), or GrammarError if the grammar is too
        costly.
        """
        row = self._process(logits, tokens, drafts)
        if self._cuts:
            row = keep_candidates(row, self.params)
        if self.greedy:
            return self.require(int(greedy_tokens(row[None])))
        key = torch.tensor([position_key(self.key, len(tokens) + len(drafts))], device=row.device)
        temperature = torch.tensor([self.params.temperature], dtype=torch.float64, device=row.device)
        return self.require(int(sampled_tokens(row[None], temperature, key, self._noise)))

    def excess(self, logits: Tensor, tokens: Sequence[int], token: int, off: float) -> float:
        """Above 0 where `token` cannot be this row's (vocabulary,) after `tokens`, though each of its logits
        may be off by `off` (see `truncation.excess`). Raises GrammarError.
        """
        row = self._process(logits, tokens, ())
        gumbel = None
        if not self.greedy:
            ids = torch.arange(len(row), device=row.device)
            gumbel = self._noise.gumbel(position_key(self.key, len(tokens)), ids)
        return excess(row, token, self.params, gumbel, off * self._processors.gain)

    def require(self, token: int) -> int:
        """Return the token; raise NoTokenError if it is `NOTHING`."""
        if token != NOTHING:
            return token
        if self.plain:
            raise NoTokenError(NOT_FINITE)
        raise NoTokenError(
            "no token is left to choose from: response_format, bad_words and min_tokens together forbid "
            "every one; relax one of them"
        )

    def allowed_prefix(self, tokens: Sequence[int], drafts: Sequence[int]) -> Sequence[int]:
        """The drafts after `tokens` up to the first that the grammar forbids."""
        if self._grammar is None or not drafts:
            return drafts
        self._read(tokens, ())
        return drafts[: self._grammar.allowed_prefix(drafts)]

    def forced(self, tokens: Sequence[int]) -> list[int]:
        """Tokens that the grammar forces after `tokens`: the best drafts, often none."""
        if self._grammar is None:
            return []
        self._read(tokens, ())
        return self._grammar.forced()

    def renew(self, matcher: LLMatcher | None) -> None:
        """Continue with this matcher after a SpentError; the row may be asked for again."""
        if self._grammar is not None:
            self._grammar.renew(matcher)

    def _process(self, logits: Tensor, tokens: Sequence[int], drafts: Sequence[int]) -> Tensor:
        """Apply everything but the temperature and the cuts."""
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


TokenAt = Callable[[int], int]


@dataclass(frozen=True, slots=True)
class AnswerRows:
    """One answer's rows of a step: one after its tokens, and one after each draft."""

    sampler: Sampler
    tokens: Sequence[int]  # prompt and answer so far
    drafts: Sequence[int]
    first: int  # of its len(drafts) + 1 rows among the step's


def tokens_of_step(logits: Tensor, parts: Sequence[AnswerRows], noise: Noise) -> list[TokenAt]:
    """For each part a function from its row to the engine's token, for `verify`; `logits` (rows, vocabulary)
    float32. Plain rows are drawn at once; every token is the one that `Sampler.token` gives for the row
    alone.
    """
    drawn: dict[int, int] = {}
    greedy = [row for part in parts if part.sampler.plain and part.sampler.greedy for row in _rows(part)]
    if greedy:
        drawn.update(zip(greedy, greedy_tokens(_picked(logits, greedy)).tolist(), strict=True))
    sampled = [
        (row, part.sampler.params.temperature, position_key(part.sampler.key, len(part.tokens) + i))
        for part in parts
        if part.sampler.plain and not part.sampler.greedy
        for i, row in enumerate(_rows(part))
    ]
    if sampled:
        rows, temperatures, keys = zip(*sampled, strict=True)
        tokens = sampled_tokens(
            _picked(logits, rows),
            torch.tensor(temperatures, dtype=torch.float64, device=logits.device),
            torch.tensor(keys, device=logits.device),
            noise,
        )
        drawn.update(zip(rows, tokens.tolist(), strict=True))
    return [_token_at(logits, part, drawn) for part in parts]


def _token_at(logits: Tensor, part: AnswerRows, drawn: dict[int, int]) -> TokenAt:
    if part.sampler.plain:
        return lambda i: part.sampler.require(drawn[part.first + i])
    return lambda i: part.sampler.token(logits[part.first + i], part.tokens, part.drafts[:i])


def _rows(part: AnswerRows) -> range:
    return range(part.first, part.first + len(part.drafts) + 1)


def _picked(logits: Tensor, rows: Sequence[int]) -> Tensor:
    return logits if len(rows) == len(logits) else logits[torch.tensor(rows, device=logits.device)]
