"""What an answer must match, as masks over the vocabulary: JSON schemas, regular expressions, Lark.

llguidance turns a grammar and the tokenizer into a matcher whose steps cost some 0.05 ms; compiling takes
from a millisecond to most of a second, so it happens on a thread of its own, after a trial that bounds time
and memory.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from torch import Tensor

from turbo_runtime.engine.grammar_text import GrammarError, compile_grammar, read_tokenizer, sentence
from turbo_runtime.engine.grammar_trial import GrammarTrial
from turbo_runtime.engine.request import Grammar

MOST_CHARACTERS = 1 << 18  # of a grammar's text
COMPILE_SECONDS = 10.0
_CACHED = 64  # compiled grammars kept for answers to come


class SpentError(GrammarError):
    """The matcher gave up at its limits, which all answers under one grammar share, and what was drafted for
    them: whether this answer alone is too much shows once it is renewed.
    """


class GrammarMatcher:
    """How far one answer is in its grammar. Advances with tokens that the engine has drawn, never back."""

    def __init__(self, matcher: LLMatcher, vocabulary: int, end_ids: Sequence[int]) -> None:
        self.end_ids = frozenset(end_ids)  # of them one may come where the grammar is fulfilled
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._ends = list(end_ids)
        self._told: list[int] = []
        self._costly = False  # whether it was ever renewed
        self._fresh = False  # whether nothing but the answer's tokens went into it

    def read(self, tokens: Sequence[int]) -> None:
        """The answer goes on with these tokens, all of which were allowed. A matcher that gives up here, at
        one of its limits, says so when it is asked what is allowed; until then it only drafts badly.
        """
        self._told.extend(tokens)
        self._matcher.consume_tokens(list(tokens))

    def allowed(self) -> Tensor:
        """(vocabulary,) bool: the tokens that may come now. Raises SpentError: once renewed, ask again; and
        GrammarError where that did not help. So it is the answer's tokens that decide whether it fails, and
        neither drafts nor other answers.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():
            raise (GrammarError if self._fresh else SpentError)(
                f"the grammar became too costly: {sentence(self._matcher.get_error())}; simplify it"
            )
        self._fresh = False
        mask = np.unpackbits(bits, count=self._vocabulary, bitorder="little")
        return torch.from_numpy(mask.view(np.bool_))

    def renew(self, matcher: LLMatcher) -> None:
        """Go on with one at the beginning of the same grammar that no other answer has."""
        matcher.consume_tokens(self._told)
        self._matcher = matcher
        self._costly = self._fresh = True

    def allowed_prefix(self, tokens: Sequence[int]) -> int:
        """How many of these tokens, from the first on, may follow: the others would be drafted in vain. Of a
        costly grammar it may be more: to look ahead costs as much as to go on.
        """
        return len(tokens) if self._costly else int(self._matcher.validate_tokens(list(tokens)))

    def forced(self) -> list[int]:
        """The tokens that must follow whatever the model thinks, as the tokenizer would write them."""
        if self._matcher.is_stopped():
            return self._ends[:1]
        return list(self._matcher.compute_ff_tokens())


@dataclass(frozen=True, slots=True)
class Compiling:
    """A grammar on its way to a matcher."""

    grammars: Grammars
    future: Future[LLMatcher]

    @property
    def done(self) -> bool:
        """Whether `matcher` answers at once."""
        return self.future.done()

    def matcher(self) -> GrammarMatcher:
        """A matcher at the beginning of the grammar; waits until done. Raises GrammarError."""
        compiled = self.future.result()
        return GrammarMatcher(compiled.deep_copy(), self.grammars.vocabulary, self.grammars.end_ids)


class Grammars:
    """Compiles grammars for one tokenizer, and keeps the latest."""

    def __init__(self, tokenizer_file: Path, vocabulary: int, end_ids: Collection[int]) -> None:
        """`tokenizer_file` is a tokenizer.json, read with the first grammar; `vocabulary` is the model's, and
        one of `end_ids`, its end-of-sequence tokens, ends an answer that is complete.
        """
        self.vocabulary = vocabulary
        self.end_ids = tuple(sorted(end_ids))
        self._file = tokenizer_file
        self._tokenizer: LLTokenizer | None = None
        self._trial = GrammarTrial(tokenizer_file, vocabulary, self.end_ids)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammar")
        self._cache: OrderedDict[Grammar, Future[LLMatcher]] = OrderedDict()

    def compile(self, grammar: Grammar) -> Compiling:
        """Begin to compile, or find it done. Raises GrammarError for a text that is too long."""
        if len(grammar.text) > MOST_CHARACTERS:
            raise GrammarError(
                f"the {grammar.kind} has {len(grammar.text)} characters; at most {MOST_CHARACTERS} are taken"
            )
        future = self._cache.pop(grammar, None) or self._thread.submit(self._compile, grammar)
        self._cache[grammar] = future
        if len(self._cache) > _CACHED:
            self._cache.popitem(last=False)
        return Compiling(self, future)

    def compile_alone(self, grammar: Grammar) -> Future[LLMatcher]:
        """Once more, for one answer. The one that was kept has spent its limits, and is kept no longer."""
        self._cache.pop(grammar, None)
        return self._thread.submit(self._compile_tried, grammar)

    def has(self, grammar: Grammar) -> bool:
        """Whether it is compiled, so that `compile` keeps nobody waiting."""
        future = self._cache.get(grammar)
        return future is not None and future.done()

    def close(self) -> None:
        """Take no more; what is being compiled is not waited for."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._trial.close()

    def _compile(self, grammar: Grammar) -> LLMatcher:
        """On the thread, which `COMPILE_SECONDS` bound from here on: those before it have had their own."""
        self._trial.begin(grammar, COMPILE_SECONDS)
        if self._tokenizer is None:
            self._tokenizer = read_tokenizer(self._file, self.vocabulary, self.end_ids)
        self._trial.end(grammar, COMPILE_SECONDS)
        return self._compile_tried(grammar)

    def _compile_tried(self, grammar: Grammar) -> LLMatcher:
        assert self._tokenizer is not None
        return compile_grammar(self._tokenizer, grammar)
