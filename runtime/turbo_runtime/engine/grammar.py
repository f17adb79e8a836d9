"""What an answer must match, as masks over the vocabulary: JSON schemas, regular expressions, Lark.

llguidance turns a grammar and the tokenizer into a matcher whose steps cost some 0.05 ms; compiling takes
from a millisecond to most of a second, so it happens on a thread of its own, within limits of size and time.
"""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from torch import Tensor

from turbo_runtime.engine.request import Grammar

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

MOST_CHARACTERS = 1 << 18  # of a grammar's text
COMPILE_SECONDS = 10.0
_CACHED = 64  # compiled grammars kept for answers to come
# Without a bound a model that has lost its way writes blanks for ever. `x-guidance` in a schema overrules it.
_WHITESPACE: JsonCompileOptions = {"whitespace_pattern": r"[ \t\n\r]{0,32}"}


class GrammarError(ValueError):
    """The grammar cannot be used; the text is a sentence for the user."""


class GrammarMatcher:
    """How far one answer is in its grammar. Advances with tokens that the engine has drawn, never back."""

    def __init__(self, matcher: LLMatcher, vocabulary: int, end_ids: Sequence[int]) -> None:
        self.end_ids = frozenset(end_ids)  # of them one may come where the grammar is fulfilled
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._ends = list(end_ids)

    def read(self, tokens: Sequence[int]) -> None:
        """The answer goes on with these tokens, all of which were allowed. A matcher that gives up here, at
        one of its limits, says so when it is asked what is allowed; until then it only drafts badly.
        """
        self._matcher.consume_tokens(list(tokens))

    def allowed(self) -> Tensor:
        """(vocabulary,) bool: the tokens that may come now. Raises GrammarError."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():
            raise GrammarError(
                f"the grammar became too costly: {_sentence(self._matcher.get_error())}; simplify it"
            )
        mask = np.unpackbits(bits, count=self._vocabulary, bitorder="little")
        return torch.from_numpy(mask.view(np.bool_))

    def allowed_prefix(self, tokens: Sequence[int]) -> int:
        """How many of these tokens, from the first on, may follow: the others would be drafted in vain."""
        return int(self._matcher.validate_tokens(list(tokens)))

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
    deadline: float  # monotonic

    @property
    def done(self) -> bool:
        """Whether `matcher` answers at once."""
        return self.future.done() or time.monotonic() >= self.deadline

    def matcher(self) -> GrammarMatcher:
        """A matcher at the beginning of the grammar; waits until done. Raises GrammarError."""
        try:
            compiled = self.future.result(max(0.0, self.deadline - time.monotonic()))
        except TimeoutError:
            raise GrammarError(
                f"the grammar takes more than {COMPILE_SECONDS:.0f} s to compile; simplify it"
            ) from None
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
        return Compiling(self, future, time.monotonic() + COMPILE_SECONDS)

    def has(self, grammar: Grammar) -> bool:
        """Whether it is compiled, so that `compile` keeps nobody waiting."""
        future = self._cache.get(grammar)
        return future is not None and future.done()

    def close(self) -> None:
        """Take no more; what is being compiled is not waited for."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _compile(self, grammar: Grammar) -> LLMatcher:
        tokenizer = self._tokenizer = self._tokenizer or self._read_tokenizer()
        try:
            text = _in_llguidance(grammar)
        except ValueError as error:
            raise _unusable(grammar, str(error)) from error
        matcher = LLMatcher(tokenizer, text, log_level=0, limits=LLParserLimits(verbose_errors=False))
        if matcher.is_error():
            raise _unusable(grammar, matcher.get_error())
        return matcher

    def _read_tokenizer(self) -> LLTokenizer:
        if not self.end_ids:
            raise GrammarError("the model has no end-of-sequence token, which a grammar needs")
        try:
            text = self._file.read_text(encoding="utf-8")
        except OSError as error:
            raise GrammarError(
                "the model's tokenizer has no tokenizer.json, which a grammar needs"
            ) from error
        try:
            return LLTokenizer(text, n_vocab=self.vocabulary, eos_token=list(self.end_ids))
        except ValueError as error:
            raise GrammarError(f"the model's tokenizer cannot be used with a grammar: {error}") from error


def _in_llguidance(grammar: Grammar) -> str:
    """The grammar in llguidance's own notation; ValueError for a schema that is no JSON object."""
    match grammar.kind:
        case "json_schema":
            return LLMatcher.grammar_from_json_schema(_schema(grammar.text), defaults=_WHITESPACE)
        case "json_object":
            return LLMatcher.grammar_from_json_schema('{"type": "object"}', defaults=_WHITESPACE)
        case "regex":
            return LLMatcher.grammar_from_regex(grammar.text)
        case "lark":
            return LLMatcher.grammar_from_lark(grammar.text)


def _schema(text: str) -> dict[str, Any]:
    try:
        schema = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"it is no JSON: {error}") from error
    if not isinstance(schema, dict):
        raise ValueError(f"it is of type {type(schema).__name__}, not an object")
    return schema


def _unusable(grammar: Grammar, error: str) -> GrammarError:
    return GrammarError(f"the {grammar.kind} cannot be used: {_sentence(error)}; mend or simplify it")


def _sentence(error: str) -> str:
    """Where it went wrong and why, of a message of many lines."""
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    causes = [line.removeprefix("error: ") for line in lines[1:] if line.startswith("error: ")]
    return ": ".join([lines[0].rstrip(":"), *causes])
