"""From rows of logits and the tokens before them to the engine's tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from llguidance import LLMatcher
from torch import Tensor

from turbo_runtime.messages import SamplingParams, TokenLogprob
from turbo_runtime.models.transfer import Array, upload
from turbo_runtime.sampling.dense import forbid
from turbo_runtime.sampling.grammar.matcher import GrammarMatcher
from turbo_runtime.sampling.logprobs import PromptLogprobs, read_scores, score
from turbo_runtime.sampling.noise import Noise, position_key, signed
from turbo_runtime.sampling.processors import Edits, Processors
from turbo_runtime.sampling.rows import NOTHING, DrawnRows, RowKernels, rule_of
from turbo_runtime.sampling.search import SEARCH
from turbo_runtime.sampling.truncation import excess

NOT_FINITE = "the model's logits are not finite: its weights or its precision are broken"


class NoTokenError(ValueError):
    """No token can be drawn; the text is a sentence for the user."""


class NotFiniteError(NoTokenError):
    """The model is at fault, and not the request."""


class NotDrawnError(ValueError):
    """The row waits for the next step, in which it is the first."""


class Sampler:
    """The law of one output's tokens. Its state follows the committed tokens; drafts leave it as it was."""

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
        self.key, self.signed_key = key, signed(key)
        self.rule = rule_of(params)
        self.stop_ids = params.stop_token_ids | (grammar.end_ids if grammar else frozenset())
        self._noise = noise
        self._grammar = grammar
        self._processors = Processors(params, prompt, self.stop_ids, noise.vocabulary)
        # whether logits may be changed before a token is drawn from them
        self.edits = grammar is not None or not self._processors.idle
        self._length = len(prompt)  # tokens of prompt and answer that were read
        self.prompt_logprobs = PromptLogprobs(prompt, params.prompt_logprobs)

    def token(self, logits: Tensor, tokens: Sequence[int], kernels: RowKernels = SEARCH) -> int:
        """Return the token of the row (vocabulary,) after `tokens`, from the prompt on. Raises NoTokenError,
        SpentError (call again after `renew`), GrammarError for a too costly grammar.
        """
        rows = [AnswerRows(self, tokens, (), 0)]
        (token_at,) = tokens_of_step(logits[None].clone(), rows, self._noise, kernels)
        return token_at(0)

    def excess(self, logits: Tensor, tokens: Sequence[int], token: int, off: float) -> float:
        """Return `truncation.excess` for `token` in the row after `tokens`; raises GrammarError."""
        row, edits, drawn = logits.clone(), Edits(len(logits)), DrawnRows()
        self.collect(edits, drawn, AnswerRows(self, tokens, (), 0))
        edits.apply(row[None])
        forbid(row[None], drawn)
        gumbel = None
        if self.rule.temperature > 0.0:
            ids = torch.arange(len(row), device=row.device)
            gumbel = self._noise.gumbel(position_key(self.key, len(tokens)), ids)
        return excess(row, token, self.rule, gumbel, off * self._processors.gain)

    def collect(self, edits: Edits, drawn: DrawnRows, rows: AnswerRows) -> int:
        """Add the changes to its `rows` and their masks, and return how many of them, from the first on, may
        be drawn in this step. Raises SpentError, GrammarError.
        """
        self._read(rows.tokens)
        count = len(rows.drafts) + 1
        if self._grammar is not None:
            masks = self._grammar.masks(rows.drafts)
            count = len(masks)
            for number, mask in enumerate(masks):
                drawn.keep(rows.first + number, mask)
        if not self._processors.idle:
            self._processors.collect(edits, rows.first, rows.drafts[: count - 1])
        return count

    def require(self, token: int) -> int:
        """Return the token; raise NoTokenError if it is `NOTHING`."""
        if token != NOTHING:
            return token
        if not self.edits:  # truncation leaves a token always
            raise NotFiniteError(NOT_FINITE)
        raise NoTokenError(
            "no token is left to choose from: response_format, bad_words and min_tokens together forbid "
            "every one; relax one of them"
        )

    def allowed_prefix(self, tokens: Sequence[int], drafts: Sequence[int]) -> Sequence[int]:
        """The drafts after `tokens` up to the first that the grammar forbids."""
        if self._grammar is None or not drafts:
            return drafts
        self._read(tokens)
        return drafts[: self._grammar.allowed_prefix(drafts)]

    def forced(self, tokens: Sequence[int]) -> list[int]:
        """Tokens that the grammar forces after `tokens`: the best drafts, often none."""
        if self._grammar is None:
            return []
        self._read(tokens)
        return self._grammar.forced()

    def renew(self, matcher: LLMatcher | None) -> None:
        """Continue with this matcher after a SpentError; the row may be asked for again."""
        if self._grammar is not None:
            self._grammar.renew(matcher)

    def _read(self, tokens: Sequence[int]) -> None:
        fresh = tokens[self._length :]
        if fresh:
            self._length += len(fresh)
            self._processors.read(fresh)
            if self._grammar is not None:
                self._grammar.read(fresh)


TokenAt = Callable[[int], int]


class AnswerRows(NamedTuple):
    """One answer's rows of a step: one after its tokens, and one after each draft. Before them may come rows
    of its prompt, whose tokens are known and only scored.
    """

    sampler: Sampler
    tokens: Sequence[int]  # prompt and answer so far
    drafts: Sequence[int]
    first: int  # of its len(drafts) + 1 rows among the step's
    scored: Sequence[int] = ()  # tokens of the rows before `first`
    draws: bool = True  # else it has no rows but those


class SamplingMetadata:
    """What a step's rows are drawn by: what the host may prepare while a device computes the logits."""

    def __init__(self, parts: Sequence[AnswerRows], vocabulary: int) -> None:
        """What fails for one part is raised where its row is asked for."""
        self._parts = parts
        self._edits = Edits(vocabulary)
        self._rows = DrawnRows()
        self._failures: dict[int, Exception] = {}  # by the first row of their part
        self._counts: list[int] = []  # of rows that may be drawn, of each part
        self._scored = _ScoredRows()
        self._num_scored = list(map(_num_scored, parts))
        for part, num_scored in zip(parts, self._num_scored, strict=True):
            self._counts.append(self._collect(part) if part.draws else 0)
            if num_scored:
                self._scored.add(part, num_scored)

    def _collect(self, part: AnswerRows) -> int:
        """Add a part's rows; how many of them may be drawn."""
        sampler, count = part.sampler, len(part.drafts) + 1
        if sampler.edits:
            try:
                count = sampler.collect(self._edits, self._rows, part)
            except Exception as error:  # of this request alone
                self._failures[part.first] = error
                return 0
        self._rows.add(part.first, count, sampler.rule, sampler.signed_key, len(part.tokens))
        return count

    @torch.inference_mode()
    def sample(self, logits: Tensor, noise: Noise, kernels: RowKernels) -> tuple[Tensor, ...]:
        """Draw all rows of `logits` (rows, vocabulary) float32, which it changes, those after drafts as if
        these were right. Returns tensors to download: tokens (rows,) int64, and columns of `logprobs.score`.
        """
        scored, device = self._scored, logits.device
        index = upload(np.array(scored.rows, np.int64), device) if scored.rows else None
        unprocessed = None if index is None else logits.index_select(0, index)
        self._edits.apply(logits)
        drawn = kernels.draw(logits, self._rows, noise)
        if index is None or unprocessed is None:
            return (drawn,)
        known = upload(np.array(scored.tokens, np.int64), device)
        tokens = torch.where(known == NOTHING, drawn.index_select(0, index).clamp_(min=0), known)
        return drawn, *score(unprocessed, tokens, scored.top, kernels)

    def read(self, drawn: Array, *scores: Array) -> list[SampledTokens]:
        """Give each part what `sample` has for it, once downloaded."""
        tokens, place = drawn.tolist(), 0
        read = list[SampledTokens]()
        for part, count, num_scored in zip(self._parts, self._counts, self._num_scored, strict=True):
            failure = self._failures.get(part.first) if part.draws else None
            read.append(SampledTokens(part, tokens, part.first + count, failure, scores, place))
            place += num_scored
        return read


def _num_scored(part: AnswerRows) -> int:
    """The number of a part's rows whose tokens need a log probability."""
    if part.sampler.params.logprobs is None or not part.draws:
        return len(part.scored)
    return len(part.scored) + len(part.drafts) + 1


@dataclass(slots=True)
class _ScoredRows:
    """Rows whose tokens need a log probability."""

    rows: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)  # `NOTHING`: the one that is drawn
    top: int = 0  # likeliest tokens that come with it, at most

    def add(self, part: AnswerRows, count: int) -> None:
        """Add those of a part: of its prompt, and of its answer if its request wants them."""
        params = part.sampler.params
        first = part.first - len(part.scored)
        self.rows.extend(range(first, first + count))
        self.tokens.extend([*part.scored, *[NOTHING] * (count - len(part.scored))])
        self.top = max(self.top, params.logprobs or 0, params.prompt_logprobs or 0)


class SampledTokens(NamedTuple):
    """What a step has drawn and scored for one part."""

    part: AnswerRows
    drawn: Sequence[int]  # of all rows of the step
    end: int  # the first row behind those of the part that were drawn
    failure: Exception | None
    scores: Sequence[Array]  # columns of all scored rows
    first_score: int

    def token_at(self, number: int) -> int:
        """Return the engine's token of the part's row; raises what keeps it from having one."""
        if self.failure is not None:
            raise self.failure
        if self.part.first + number >= self.end:
            raise NotDrawnError
        return self.part.sampler.require(self.drawn[self.part.first + number])

    def logprobs(self, tokens: Sequence[int]) -> tuple[TokenLogprob, ...]:
        """Return those of the committed `tokens`; empty if not requested."""
        top = self.part.sampler.params.logprobs
        if top is None:
            return ()
        return tuple(read_scores(self.scores, tokens, self.first_score + len(self.part.scored), top))

    def prompt_logprobs(self) -> list[TokenLogprob]:
        """Return those of the prompt's tokens that the step has scored."""
        scored, top = self.part.scored, self.part.sampler.params.prompt_logprobs
        return read_scores(self.scores, scored, self.first_score, top or 0) if scored else []


def tokens_of_step(
    logits: Tensor, parts: Sequence[AnswerRows], noise: Noise, kernels: RowKernels = SEARCH
) -> list[TokenAt]:
    """For each part a function from its row to the engine's token, for `verify`; `logits` (rows, vocabulary)
    float32, which it changes. Every token is the one that `Sampler.token` gives for the row alone.
    """
    metadata = SamplingMetadata(parts, noise.vocabulary)
    return [part.token_at for part in metadata.read(*kernels.fetch(*metadata.sample(logits, noise, kernels)))]
