"""Grammars as masks over the vocabulary: JSON schemas, regular expressions, Lark.

llguidance turns a grammar and the tokenizer into a matcher whose steps cost about 0.05 ms. Compilation takes
from a millisecond to most of a second, so it runs on another thread, after a trial that bounds time and
memory.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Collection, Sequence
from concurrent.futures import Future
from pathlib import Path

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray

from turbo_runtime.messages import Grammar
from turbo_runtime.sampling.grammar import compiler

log = logging.getLogger(__name__)

MAX_CHARACTERS = 1 << 18  # of a grammar's text
COMPILE_SECONDS = 10.0
QUICK_SECONDS = 0.5  # a slower grammar queues behind its like and delays no quick one
_MAX_CACHED = 64  # compiled grammars


class SpentError(compiler.GrammarError):
    """The matcher reached its limits, which all that use one grammar share: renew it, then try again."""


class GrammarMatcher:
    """One answer's place in its grammar; only advances, by tokens that the engine has drawn."""

    def __init__(self, matcher: LLMatcher, vocabulary: int, end_ids: Sequence[int]) -> None:
        self.end_ids = frozenset(end_ids)  # allowed where the grammar is complete
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._ends = list(end_ids)
        self._tokens: list[int] = []
        self._costly = False  # whether it was ever renewed
        self._fresh = False  # whether it has read nothing but the answer's tokens

    def read(self, tokens: Sequence[int]) -> None:
        """Advance by allowed tokens. A matcher that reaches a limit here says so in `masks`."""
        self._tokens.extend(tokens)
        self._matcher.consume_tokens(list(tokens))

    def masks(self, drafts: Sequence[int]) -> list[NDArray[np.uint8]]:
        """Return the tokens that may follow, a bit each: after those read, and after each draft up to the
        first that may not follow. Raises SpentError (ask again once renewed), and GrammarError if a renewal
        did not help. So only the answer's tokens decide whether it fails, neither drafts nor other answers.
        """
        masks = [self._mask()]
        if self._matcher.is_error():
            raise (compiler.GrammarError if self._fresh else SpentError)(
                f"the grammar became too costly: {compiler.summarize(self._matcher.get_error())}; simplify it"
            )
        self._fresh = False
        num_read = 0
        for draft in () if self._costly else drafts:
            if not masks[-1][draft >> 3] >> (draft & 7) & 1:
                break
            num_read += 1
            self._matcher.consume_token(draft)
            mask = self._mask()
            if self._matcher.is_error():  # the next step tells it
                return masks
            masks.append(mask)
        if num_read:
            self._matcher.rollback(num_read)
        return masks

    def renew(self, matcher: LLMatcher | None) -> None:
        """Continue with an unshared matcher at the beginning of the same grammar; None fails the answer."""
        if matcher is not None:
            matcher.consume_tokens(self._tokens)
            self._matcher = matcher
        self._costly = self._fresh = True

    def allowed_prefix(self, tokens: Sequence[int]) -> int:
        """The number of leading tokens that may follow; none in a costly grammar, which reads none ahead."""
        return 0 if self._costly else int(self._matcher.validate_tokens(list(tokens)))

    def forced(self) -> list[int]:
        """The tokens that must follow, as the tokenizer would write them."""
        if self._matcher.is_stopped():
            return self._ends[:1]
        if self._costly:
            return []
        return list(self._matcher.compute_ff_tokens())

    def _mask(self) -> NDArray[np.uint8]:
        return np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)


class Grammars:
    """Compiles grammars for one tokenizer, and caches the latest."""

    def __init__(self, tokenizer_file: Path, vocabulary: int, end_ids: Collection[int]) -> None:
        """`tokenizer_file`: a tokenizer.json, read with the first grammar; `end_ids` complete an answer."""
        self.vocabulary = vocabulary
        self.end_ids = tuple(sorted(end_ids))
        self._file = tokenizer_file
        self._tokenizer: LLTokenizer | None = None
        self._quick, self._slow = (
            compiler.GrammarTrial(tokenizer_file, vocabulary, self.end_ids) for _ in range(2)
        )
        self._cache: OrderedDict[Grammar, Future[LLMatcher]] = OrderedDict()

    def compile(self, grammar: Grammar) -> Future[LLMatcher]:
        """Begin to compile, or use the cache. Raises GrammarError for a text that is too long."""
        if len(grammar.text) > MAX_CHARACTERS:
            raise compiler.GrammarError(
                f"the {grammar.kind} has {len(grammar.text)} characters; at most {MAX_CHARACTERS} are taken"
            )
        future = self._cache.pop(grammar, None)
        if future is None or _is_transient(future):
            future = self._begin(grammar)
        self._cache[grammar] = future
        if len(self._cache) > _MAX_CACHED:
            self._cache.popitem(last=False)
        return future

    def matcher(self, compiling: Future[LLMatcher]) -> GrammarMatcher:
        """Build a matcher at the beginning of a grammar; waits until compiled. Raises GrammarError."""
        try:
            compiled = compiling.result()
        except compiler.GrammarError:
            raise
        except Exception as error:  # no fault of the grammar: out of memory, processes or files
            log.exception("a grammar was not compiled")
            raise compiler.GrammarError(
                f"the grammar could not be compiled just now ({error}); try again"
            ) from error
        return GrammarMatcher(compiled.deep_copy(), self.vocabulary, self.end_ids)

    def compile_alone(self, grammar: Grammar) -> Future[LLMatcher]:
        """Compile again for one answer; the cached one has spent its limits and is dropped."""
        self._cache.pop(grammar, None)
        return self._begin(grammar)

    def has(self, grammar: Grammar) -> bool:
        """Whether it is compiled, so that `compile` returns at once."""
        future = self._cache.get(grammar)
        return future is not None and future.done() and future.exception() is None

    def close(self) -> None:
        """Stop without waiting for what is being compiled."""
        self._quick.close()
        self._slow.close()

    def _begin(self, grammar: Grammar) -> Future[LLMatcher]:
        future: Future[LLMatcher] = Future()
        self._quick.thread.submit(self._compile, self._quick, grammar, future)
        return future

    def _compile(self, trial: compiler.GrammarTrial, grammar: Grammar, future: Future[LLMatcher]) -> None:
        """Compile on the trial's thread; the time starts here, after the grammars before it."""
        is_quick = trial is self._quick
        seconds = min(QUICK_SECONDS, COMPILE_SECONDS) if is_quick else COMPILE_SECONDS
        try:
            if self._tokenizer is None:  # the quick trial sees every grammar first
                trial.start()
                self._tokenizer = compiler.read_tokenizer(self._file, self.vocabulary, self.end_ids)
            trial.check(grammar, seconds)
            future.set_result(compiler.compile_grammar(self._tokenizer, grammar))
        except BaseException as error:  # as an executor does: waiters get it
            if isinstance(error, compiler.SlowGrammarError) and is_quick and COMPILE_SECONDS > QUICK_SECONDS:
                self._slow.thread.submit(self._compile, self._slow, grammar, future)
            else:
                future.set_exception(error)


def _is_transient(future: Future[LLMatcher]) -> bool:
    """Whether the grammar failed for a reason that may have passed; an invalid text stays invalid."""
    error = future.exception() if future.done() else None
    return error is not None and (
        not isinstance(error, compiler.GrammarError) or isinstance(error, compiler.SlowGrammarError)
    )
