"""What an answer must match, as masks over the vocabulary: JSON schemas, regular expressions, Lark.

llguidance turns a grammar and the tokenizer into a matcher whose steps cost some 0.05 ms; compiling takes
from a millisecond to most of a second, so it happens on a thread of its own, after a trial that bounds time
and memory.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from torch import Tensor

from turbo_runtime.messages import Grammar
from turbo_runtime.sampling.grammar.compiler import GrammarError, compile_grammar, read_tokenizer, sentence
from turbo_runtime.sampling.grammar.sandbox import GrammarTrial, SlowGrammarError

log = logging.getLogger(__name__)

MOST_CHARACTERS = 1 << 18  # of a grammar's text
COMPILE_SECONDS = 10.0
QUICK_SECONDS = 0.5  # what takes longer goes on behind others of its kind, and keeps no quick one waiting
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

    def renew(self, matcher: LLMatcher | None) -> None:
        """Go on with one at the beginning of the same grammar that no other answer has; without one, this
        answer fails when it asks.
        """
        if matcher is not None:
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
        try:
            compiled = self.future.result()
        except GrammarError:
            raise
        except Exception as error:  # memory, processes or files are short: no fault of the grammar
            log.exception("a grammar was not compiled")
            raise GrammarError(f"the grammar could not be compiled just now ({error}); try again") from error
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
        lanes = (_Lane(GrammarTrial(tokenizer_file, vocabulary, self.end_ids)) for _ in range(2))
        self._quick, self._slow = lanes
        self._cache: OrderedDict[Grammar, Future[LLMatcher]] = OrderedDict()

    def compile(self, grammar: Grammar) -> Compiling:
        """Begin to compile, or find it done. Raises GrammarError for a text that is too long."""
        if len(grammar.text) > MOST_CHARACTERS:
            raise GrammarError(
                f"the {grammar.kind} has {len(grammar.text)} characters; at most {MOST_CHARACTERS} are taken"
            )
        future = self._cache.pop(grammar, None)
        if future is None or _may_pass(future):
            future = self._begin(grammar)
        self._cache[grammar] = future
        if len(self._cache) > _CACHED:
            self._cache.popitem(last=False)
        return Compiling(self, future)

    def compile_alone(self, grammar: Grammar) -> Future[LLMatcher]:
        """Once more, for one answer. The one that was kept has spent its limits, and is kept no longer."""
        self._cache.pop(grammar, None)
        return self._begin(grammar)

    def has(self, grammar: Grammar) -> bool:
        """Whether it is compiled, so that `compile` keeps nobody waiting."""
        future = self._cache.get(grammar)
        return future is not None and future.done() and future.exception() is None

    def close(self) -> None:
        """Take no more; what is being compiled is not waited for."""
        for lane in (self._quick, self._slow):
            lane.thread.shutdown(wait=False, cancel_futures=True)
            lane.trial.close()

    def _begin(self, grammar: Grammar) -> Future[LLMatcher]:
        future: Future[LLMatcher] = Future()
        self._quick.thread.submit(self._compile_quickly, grammar, future)
        return future

    def _compile_quickly(self, grammar: Grammar, future: Future[LLMatcher]) -> None:
        try:
            future.set_result(self._compile(self._quick, grammar, min(QUICK_SECONDS, COMPILE_SECONDS)))
        except SlowGrammarError as error:
            if COMPILE_SECONDS > QUICK_SECONDS:
                self._slow.thread.submit(self._compile_slowly, grammar, future)
            else:
                future.set_exception(error)
        except BaseException as error:  # as an executor does: whoever waits is told
            future.set_exception(error)

    def _compile_slowly(self, grammar: Grammar, future: Future[LLMatcher]) -> None:
        try:
            future.set_result(self._compile(self._slow, grammar, COMPILE_SECONDS))
        except BaseException as error:
            future.set_exception(error)

    def _compile(self, lane: _Lane, grammar: Grammar, seconds: float) -> LLMatcher:
        """On the lane's thread; its time begins here, since those before it have had their own."""
        if self._tokenizer is None:  # the quick lane sees every grammar first
            lane.trial.start()
            self._tokenizer = read_tokenizer(self._file, self.vocabulary, self.end_ids)
        lane.trial.begin(grammar, seconds)
        lane.trial.end(grammar, seconds)
        return compile_grammar(self._tokenizer, grammar)


def _may_pass(future: Future[LLMatcher]) -> bool:
    """Whether the grammar failed for a reason that may have passed: what is wrong with a text stays so."""
    failed = future.exception() if future.done() else None
    return failed is not None and (
        not isinstance(failed, GrammarError) or isinstance(failed, SlowGrammarError)
    )


class _Lane:
    """A thread on which one grammar at a time is tried, then compiled."""

    def __init__(self, trial: GrammarTrial) -> None:
        self.trial = trial
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="grammar")
