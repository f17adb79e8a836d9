"""The samplers of live requests: from a row of logits and the tokens before it to the engine's token."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field

import torch
from llguidance import LLMatcher
from torch import Tensor

from turbo_runtime.messages import GenerationRequest, SamplingParams
from turbo_runtime.sampling.draw import NOTHING, BlockedLogits, greedy_tokens, sampled_tokens
from turbo_runtime.sampling.grammar.compiler import GrammarError
from turbo_runtime.sampling.grammar.matcher import GrammarMatcher, Grammars
from turbo_runtime.sampling.logprobs import PromptLogprobs
from turbo_runtime.sampling.noise import Noise, answer_key, position_key
from turbo_runtime.sampling.processors import Edits, Processors
from turbo_runtime.sampling.truncation import excess, truncated_tokens, truncates

log = logging.getLogger(__name__)

GREEDY_BELOW = 1e-6  # a lower temperature is 0: float64 would not resolve the quotient

NOT_FINITE = "the model's logits are not finite: its weights or its precision are broken"


class NoTokenError(ValueError):
    """No token can be drawn; the text is a sentence for the user."""


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
        self.key = key
        self.greedy = params.temperature < GREEDY_BELOW
        self.truncates = not self.greedy and truncates(params)
        self.stop_ids = params.stop_token_ids | (grammar.end_ids if grammar else frozenset())
        self._noise = noise
        self._grammar = grammar
        self._processors = Processors(params, prompt, self.stop_ids, noise.vocabulary)
        self._length = len(prompt)  # tokens of prompt and answer that were read
        self.prompt_logprobs = PromptLogprobs(prompt, params.prompt_logprobs)

    @property
    def edits(self) -> bool:
        """Whether logits may be changed before a token is drawn from them."""
        return self._grammar is not None or not self._processors.idle

    def token(self, logits: Tensor, tokens: Sequence[int]) -> int:
        """Return the token of the row (vocabulary,) after `tokens`, from the prompt on. Raises NoTokenError,
        SpentError (call again after `renew`), GrammarError for a too costly grammar.
        """
        (token_at,) = tokens_of_step(logits[None].clone(), [AnswerRows(self, tokens, (), 0)], self._noise)
        return token_at(0)

    def excess(self, logits: Tensor, tokens: Sequence[int], token: int, off: float) -> float:
        """Return `truncation.excess` for `token` in the row after `tokens`; raises GrammarError."""
        row, edits = logits.clone(), Edits(len(logits))
        self.collect(edits, AnswerRows(self, tokens, (), 0))
        edits.apply(row[None])
        gumbel = None
        if not self.greedy:
            ids = torch.arange(len(row), device=row.device)
            gumbel = self._noise.gumbel(position_key(self.key, len(tokens)), ids)
        return excess(row, token, self.params, gumbel, off * self._processors.gain)

    def collect(self, edits: Edits, rows: AnswerRows) -> int:
        """Add the changes to its `rows`, and return how many of them, from the first on, may be drawn in this
        step. Raises SpentError, GrammarError.
        """
        self._read(rows.tokens)
        count = len(rows.drafts) + 1
        if self._grammar is not None:
            masks = self._grammar.masks(rows.drafts)
            count = len(masks)
            for number, mask in enumerate(masks):
                edits.allow(rows.first + number, mask)
        if not self._processors.idle:
            self._processors.collect(edits, rows.first, rows.drafts[: count - 1])
        return count

    def require(self, token: int) -> int:
        """Return the token; raise NoTokenError if it is `NOTHING`."""
        if token != NOTHING:
            return token
        if not (self.edits or self.truncates):
            raise NoTokenError(NOT_FINITE)
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


@dataclass(frozen=True, slots=True)
class AnswerRows:
    """One answer's rows of a step: one after its tokens, and one after each draft."""

    sampler: Sampler
    tokens: Sequence[int]  # prompt and answer so far
    drafts: Sequence[int]
    first: int  # of its len(drafts) + 1 rows among the step's


@torch.inference_mode()
def tokens_of_step(logits: Tensor, parts: Sequence[AnswerRows], noise: Noise) -> list[TokenAt]:
    """For each part a function from its row to the engine's token, for `verify`; `logits` (rows, vocabulary)
    float32, which it changes. All rows are drawn at once, those after drafts as if the drafts were right;
    every token is the one that `Sampler.token` gives for the row alone. What fails for one part is raised
    where its row is asked for.
    """
    edits, failures, counts = Edits(noise.vocabulary), dict[int, Exception](), list[int]()
    for part in parts:
        count = len(part.drafts) + 1
        if part.sampler.edits:
            try:
                count = part.sampler.collect(edits, part)
            except Exception as error:  # of this request alone
                failures[part.first], count = error, 0
        counts.append(count)
    edits.apply(logits)
    drawn = _draw(logits, parts, counts, noise)
    return [
        _token_at(part, drawn, part.first + count, failures.get(part.first))
        for part, count in zip(parts, counts, strict=True)
    ]


def _draw(logits: Tensor, parts: Sequence[AnswerRows], counts: Sequence[int], noise: Noise) -> list[int]:
    """Return the token of each row, `NOTHING` for those not among the first `counts` of their part."""
    greedy, plain, truncated = list[int](), _SampledRows(), _SampledRows()
    for part, count in zip(parts, counts, strict=True):
        sampler = part.sampler
        rows = range(part.first, part.first + count)
        if sampler.greedy:
            greedy += rows
        else:
            (truncated if sampler.truncates else plain).add(sampler, rows, len(part.tokens))
    blocks, device = BlockedLogits(logits), logits.device
    drawn = torch.full((len(logits),), NOTHING, device=device)
    if greedy:
        rows_of = torch.tensor(greedy, device=device)
        drawn.index_copy_(0, rows_of, greedy_tokens(blocks, rows_of))
    if plain.rows:
        rows_of, keys = plain.columns(device)
        heat = torch.tensor([p.temperature for p in plain.params], dtype=torch.float64, device=device)
        drawn.index_copy_(0, rows_of, sampled_tokens(blocks, heat, keys, noise, rows_of))
    if truncated.rows:
        rows_of, keys = truncated.columns(device)
        drawn.index_copy_(0, rows_of, truncated_tokens(blocks, truncated.params, keys, noise, rows_of))
    return drawn.tolist()


@dataclass(frozen=True, slots=True)
class _SampledRows:
    """The rows of a step that are drawn by noise."""

    rows: list[int] = field(default_factory=list)
    params: list[SamplingParams] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)

    def add(self, sampler: Sampler, rows: range, position: int) -> None:
        """Add an answer's rows, the first of which gives the token at `position`."""
        self.rows.extend(rows)
        self.params.extend([sampler.params] * len(rows))
        self.keys.extend(position_key(sampler.key, position + i) for i in range(len(rows)))

    def columns(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the rows and their keys, each (n,) int64."""
        return torch.tensor(self.rows, device=device), torch.tensor(self.keys, device=device)


def _token_at(part: AnswerRows, drawn: Sequence[int], end: int, failure: Exception | None) -> TokenAt:
    def token_at(number: int) -> int:
        if failure is not None:
            raise failure
        if part.first + number >= end:
            raise NotDrawnError
        return part.sampler.require(drawn[part.first + number])

    return token_at


class SamplerRegistry:
    """Samplers by request; a request under a grammar waits until that is compiled."""

    def __init__(self, noise: Noise, grammars: Grammars | None) -> None:
        """Without `grammars`, requests under a grammar are rejected."""
        self._noise = noise
        self._grammars = grammars
        self._samplers: dict[str, Sampler] = {}
        self._compiling: dict[str, tuple[GenerationRequest, Future[LLMatcher]]] = {}
        self._renewing: dict[str, Future[LLMatcher]] = {}

    def __getitem__(self, request_id: str) -> Sampler:
        return self._samplers[request_id]

    def __contains__(self, request_id: str) -> bool:
        """Whether that answer has its sampler or waits for it."""
        return request_id in self._samplers or request_id in self._compiling

    @property
    def compiling(self) -> bool:
        """Whether any answer waits for a grammar."""
        return bool(self._compiling or self._renewing)

    def begin(self, request: GenerationRequest) -> bool:
        """Return whether the sampler is built; else `compiled` tells later. Raises ValueError."""
        if request.params.grammar is None:
            self._samplers[request.request_id] = self._build(request, None)
            return True
        if self._grammars is None:
            raise GrammarError("this engine was started without a tokenizer, which a grammar needs")
        self._compiling[request.request_id] = request, self._grammars.compile(request.params.grammar)
        return False

    def again(self, request: GenerationRequest) -> Sampler | None:
        """Build the caller a fresh sampler for an ended answer; None if its grammar is no longer cached."""
        grammar = request.params.grammar
        if grammar is None:
            return self._build(request, None)
        if self._grammars is None or not self._grammars.has(grammar):
            return None
        return self._build(request, self._grammars.matcher(self._grammars.compile(grammar)))

    def compiled(self) -> list[tuple[GenerationRequest, ValueError | None]]:
        """Answers that waited and have their sampler now, or the reason why they get none."""
        outcomes: list[tuple[GenerationRequest, ValueError | None]] = []
        for name in [name for name, (_, compiling) in self._compiling.items() if compiling.done()]:
            request, compiling = self._compiling.pop(name)
            assert self._grammars is not None
            try:
                self._samplers[name] = self._build(request, self._grammars.matcher(compiling))
                outcomes.append((request, None))
            except ValueError as error:
                outcomes.append((request, error))
        return outcomes

    def wait(self, seconds: float) -> None:
        """Wait for a grammar, at most `seconds`."""
        futures = [compiling for _, compiling in self._compiling.values()]
        wait([*futures, *self._renewing.values()], seconds, FIRST_COMPLETED)

    def renew(self, request_id: str) -> None:
        """Compile the answer's spent grammar again for it alone; the answer waits."""
        grammar = self._samplers[request_id].params.grammar
        assert grammar is not None
        assert self._grammars is not None
        self._renewing[request_id] = self._grammars.compile_alone(grammar)

    def ready(self, request_id: str) -> bool:
        """Whether the answer can go on, which it does as soon as it can."""
        future = self._renewing.get(request_id)
        if future is None:
            return True
        if not future.done():
            return False
        del self._renewing[request_id]
        error = future.exception()
        if error is not None and not isinstance(error, GrammarError):
            log.error("a grammar that was compiled before was not again: %s", error)
        self._samplers[request_id].renew(None if error else future.result())
        return True

    def end(self, request_id: str) -> None:
        """Forget an answer that ended or never began."""
        self._compiling.pop(request_id, None)
        self._samplers.pop(request_id, None)
        self._renewing.pop(request_id, None)

    def _build(self, request: GenerationRequest, grammar: GrammarMatcher | None) -> Sampler:
        key = answer_key(request.params.seed, request.prompt, request.choice)
        return Sampler(request.params, request.prompt, key, self._noise, grammar)
