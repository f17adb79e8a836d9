"""The samplers of live requests: from a row of logits and the tokens before it to the engine's token."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass

import torch
from llguidance import LLMatcher
from torch import Tensor

from turbo_runtime.messages import GenerationRequest, SamplingParams
from turbo_runtime.sampling.draw import NOTHING, excess, greedy_tokens, sampled_tokens, truncate, truncates
from turbo_runtime.sampling.grammar.compiler import GrammarError
from turbo_runtime.sampling.grammar.matcher import GrammarMatcher, Grammars
from turbo_runtime.sampling.logprobs import PromptLogprobs
from turbo_runtime.sampling.noise import Noise, answer_key, position_key
from turbo_runtime.sampling.processors import Processors

log = logging.getLogger(__name__)

GREEDY_BELOW = 1e-6  # a lower temperature is 0: float64 would not resolve the quotient

NOT_FINITE = "the model's logits are not finite: its weights or its precision are broken"


class NoTokenError(ValueError):
    """No token can be drawn; the text is a sentence for the user."""


class Sampler:
    """Draws the tokens of one output, row by row; a row only once the drafts before it are accepted."""

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
        self._truncates = not self.greedy and truncates(params)
        self._length = len(prompt)  # tokens of prompt and answer that were read
        self.prompt_logprobs = PromptLogprobs(prompt, params.prompt_logprobs)

    @property
    def plain(self) -> bool:
        """Whether a row's token depends only on the row, its position and the temperature."""
        return self._processors.idle and self._grammar is None and not self._truncates

    def token(self, logits: Tensor, tokens: Sequence[int], drafts: Sequence[int] = ()) -> int:
        """Return the token of the row (vocabulary,) after `tokens`, from the prompt on, and then `drafts`.
        Raises NoTokenError, SpentError (call again after `renew`), GrammarError for a too costly grammar.
        """
        row = self._process(logits, tokens, drafts)
        if self._truncates:
            row = truncate(row, self.params)
        if self.greedy:
            return self.require(int(greedy_tokens(row[None])))
        key = torch.tensor([position_key(self.key, len(tokens) + len(drafts))], device=row.device)
        temperature = torch.tensor([self.params.temperature], dtype=torch.float64, device=row.device)
        return self.require(int(sampled_tokens(row[None], temperature, key, self._noise)))

    def excess(self, logits: Tensor, tokens: Sequence[int], token: int, off: float) -> float:
        """Return `draw.excess` for `token` in the row after `tokens`; raises GrammarError."""
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
    plain = [
        (part.first + i, part.sampler, len(part.tokens) + i)
        for part in parts
        if part.sampler.plain
        for i in range(len(part.drafts) + 1)
    ]
    greedy = [row for row, sampler, _ in plain if sampler.greedy]
    if greedy:
        drawn.update(zip(greedy, greedy_tokens(_picked(logits, greedy)).tolist(), strict=True))
    sampled = [
        (row, sampler.params.temperature, position_key(sampler.key, position))
        for row, sampler, position in plain
        if not sampler.greedy
    ]
    if sampled:
        rows, temperatures, keys = zip(*sampled, strict=True)
        heat = torch.tensor(temperatures, dtype=torch.float64, device=logits.device)
        tokens = sampled_tokens(_picked(logits, rows), heat, torch.tensor(keys, device=logits.device), noise)
        drawn.update(zip(rows, tokens.tolist(), strict=True))
    return [_token_at(logits, part, drawn) for part in parts]


def _token_at(logits: Tensor, part: AnswerRows, drawn: dict[int, int]) -> TokenAt:
    if part.sampler.plain:
        return lambda i: part.sampler.require(drawn[part.first + i])
    return lambda i: part.sampler.token(logits[part.first + i], part.tokens, part.drafts[:i])


def _picked(logits: Tensor, rows: Sequence[int]) -> Tensor:
    return logits if len(rows) == len(logits) else logits[torch.tensor(rows, device=logits.device)]


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
