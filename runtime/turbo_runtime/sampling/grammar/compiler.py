"""From a grammar's text and a tokenizer's file to llguidance's matcher, or a sentence why not.

Imports no torch, so that the process which tries out grammars (`sandbox`) starts fast.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from turbo_runtime.messages import Grammar

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

# Without a bound a confused model writes blanks for ever. `x-guidance` in a schema overrides it.
_WHITESPACE: JsonCompileOptions = {"whitespace_pattern": r"[ \t\n\r]{0,32}"}

LIMITS = LLParserLimits(verbose_errors=False)


class GrammarError(ValueError):
    """The grammar cannot be used; the text is a sentence for the user."""


def read_tokenizer(file: Path, vocabulary: int, end_ids: Sequence[int]) -> LLTokenizer:
    """Read a tokenizer.json for llguidance. Raises GrammarError."""
    if not end_ids:
        raise GrammarError("the model has no end-of-sequence token, which a grammar needs")
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise GrammarError("the model's tokenizer has no tokenizer.json, which a grammar needs") from error
    try:
        return LLTokenizer(text, n_vocab=vocabulary, eos_token=list(end_ids))
    except ValueError as error:
        raise GrammarError(f"the model's tokenizer cannot be used with a grammar: {error}") from error


def compile_grammar(tokenizer: LLTokenizer, grammar: Grammar) -> LLMatcher:
    """Build a matcher at the grammar's beginning, whatever that takes. Raises GrammarError."""
    try:
        matcher = LLMatcher(tokenizer, _translate(grammar), log_level=0, limits=LIMITS)
        if matcher.is_error():
            raise ValueError(matcher.get_error())
    except ValueError as error:
        reason = summarize(str(error))
        raise GrammarError(f"the {grammar.kind} cannot be used: {reason}; mend or simplify it") from error
    return matcher


def summarize(error: str) -> str:
    """Reduce an error of many lines to the place and the causes."""
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    causes = [line.removeprefix("error: ") for line in lines[1:] if line.startswith("error: ")]
    return ": ".join([lines[0].rstrip(":"), *causes])


def _translate(grammar: Grammar) -> str:
    """Translate the grammar to llguidance's notation; ValueError for a schema that is no JSON object."""
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
