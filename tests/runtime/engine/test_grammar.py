"""Answers under a grammar are valid, and the same with any drafts; what cannot be compiled is told why."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from turbo_dev import tiny_engine
from turbo_runtime.messages import Grammar, SamplingParams
from turbo_runtime.sampling.grammar.compiler import GrammarError
from turbo_runtime.sampling.grammar.matcher import MAX_CHARACTERS, GrammarMatcher, Grammars
from turbo_runtime.sampling.noise import Noise, answer_key
from turbo_runtime.sampling.sampler import AnswerRows, NoTokenError, Sampler, tokens_of_step
from turbo_runtime.speculation.verification import verify

END = 0
PROMPT = (5, 6)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """All bytes, and some merges of JSON; id 0 ends a text."""
    texts = [
        json.dumps({"name": f"n{i}", "items": [i, -i / 7], "größe": True, "kind": "alpha"}) for i in range(99)
    ]
    return tiny_engine.tokenizer(texts, 360)


@pytest.fixture(scope="module")
def vocabulary(tokenizer: Tokenizer) -> int:
    return int(tokenizer.get_vocab_size()) + 9  # models pad theirs


@pytest.fixture(scope="module")
def grammars(
    tokenizer: Tokenizer, vocabulary: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Grammars]:
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(file))
    grammars = Grammars(file, vocabulary, {END})
    yield grammars
    grammars.close()


@pytest.fixture(scope="module")
def table(vocabulary: int) -> torch.Tensor:
    """A model's logits after each token."""
    return torch.randn(vocabulary, vocabulary, generator=torch.Generator().manual_seed(2)) * 2


Guess = Callable[[Sampler, Sequence[int], int], Sequence[int]]


def no_drafts(law: Sampler, tokens: Sequence[int], step: int) -> Sequence[int]:
    return ()


def answer(
    grammars: Grammars, table: torch.Tensor, params: SamplingParams, guess: Guess = no_drafts
) -> tuple[list[int], str | None, int]:
    """The answer's tokens, why it ended, and in how many steps."""
    assert params.grammar is not None
    noise = Noise(len(table))
    matcher = grammars.matcher(grammars.compile(params.grammar))
    law = Sampler(params, PROMPT, answer_key(params.seed, PROMPT, 0), noise, matcher)
    tokens = list(PROMPT)
    for step in range(params.max_tokens):
        drafts = law.allowed_prefix(tokens, guess(law, tokens, step))
        rows = table[torch.tensor([tokens[-1], *drafts])]
        (token_at,) = tokens_of_step(rows, [AnswerRows(law, tokens, drafts, 0)], noise)
        room = params.max_tokens + len(PROMPT) - len(tokens)
        verdict = verify(token_at, drafts, stop_ids=law.stop_ids, room=room)
        tokens.extend(verdict.tokens)
        if verdict.finish_reason:
            return tokens[len(PROMPT) :], verdict.finish_reason, step + 1
    raise AssertionError("an answer without an end")


def spoilt(right: Sequence[int]) -> Guess:
    """What the answer will be, wrong now and then: sometimes with what the grammar forbids."""

    def guess(law: Sampler, tokens: Sequence[int], step: int) -> list[int]:
        drafts = list(right[len(tokens) - len(PROMPT) :][: step % 6])
        if step % 4 == 1 and drafts:
            drafts[-1] = (drafts[-1] + 1) % 256
        return drafts

    return guess


def in_range(value: Any) -> bool:
    return isinstance(value, int) and -3 <= value <= 120


SCHEMAS: dict[str, tuple[dict[str, Any], Callable[[Any], bool]]] = {
    "nested": (
        {
            "type": "object",
            "properties": {
                "name": {"type": "string", "maxLength": 6},
                "where": {
                    "type": "object",
                    "properties": {"x": {"type": "integer", "minimum": -3, "maximum": 120}},
                    "required": ["x"],
                    "additionalProperties": False,
                },
            },
            "required": ["name", "where"],
            "additionalProperties": False,
        },
        lambda v: list(v) == ["name", "where"] and len(v["name"]) <= 6 and in_range(v["where"]["x"]),
    ),
    "enum": (
        {
            "type": "object",
            "properties": {"kind": {"enum": ["alpha", "größe", 3, None]}},
            "required": ["kind"],
            "additionalProperties": False,
        },
        lambda v: list(v) == ["kind"] and v["kind"] in ["alpha", "größe", 3, None],
    ),
    "arrays": (
        {
            "type": "array",
            "items": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
            "minItems": 2,
            "maxItems": 4,
        },
        lambda v: 2 <= len(v) <= 4 and all(len(x) <= 3 and all(isinstance(y, bool) for y in x) for x in v),
    ),
    "numbers": (
        {
            "type": "array",
            "items": {"type": "integer", "minimum": -3, "maximum": 120},
            "minItems": 3,
            "maxItems": 3,
        },
        lambda v: len(v) == 3 and all(in_range(x) for x in v),
    ),
    "unicode": (
        {
            "type": "object",
            "properties": {"größe": {"type": "string", "pattern": "^[α-ω]{2,4}$"}},
            "required": ["größe"],
            "additionalProperties": False,
        },
        lambda v: list(v) == ["größe"] and re.fullmatch("[α-ω]{2,4}", v["größe"]) is not None,
    ),
}


@pytest.mark.parametrize("name", SCHEMAS)
@pytest.mark.parametrize("temperature", [0.0, 1.0, 2.0])
def test_answers_are_valid_under_their_schema_and_the_same_with_any_drafts(
    grammars: Grammars, tokenizer: Tokenizer, table: torch.Tensor, name: str, temperature: float
) -> None:
    schema, holds = SCHEMAS[name]
    grammar = Grammar("json_schema", json.dumps(schema))
    for seed in range(4):
        params = SamplingParams(temperature=temperature, seed=seed, grammar=grammar, max_tokens=900)
        tokens, reason, _ = answer(grammars, table, params)
        assert reason == "stop"
        assert tokens[-1] == END
        assert holds(json.loads(tokenizer.decode(tokens)))
        assert answer(grammars, table, params, spoilt(tokens))[0] == tokens
        assert answer(grammars, table, params, lambda law, told, _: law.forced(told))[0] == tokens


@pytest.mark.parametrize(
    ("grammar", "pattern"),
    [
        (Grammar("regex", r"[0-9]{3}-(ab|größe)?z{1,4}"), r"[0-9]{3}-(ab|größe)?z{1,4}"),
        (
            Grammar("lark", 'start: "<" word ("," word){0,3} ">"\nword: /[a-c]{1,4}/'),
            r"<[a-c]{1,4}(,[a-c]{1,4}){0,3}>",
        ),
    ],
    ids=["regex", "lark"],
)
def test_answers_match_their_expression(
    grammars: Grammars, tokenizer: Tokenizer, table: torch.Tensor, grammar: Grammar, pattern: str
) -> None:
    for seed in range(6):
        params = SamplingParams(temperature=2.0, seed=seed, grammar=grammar, max_tokens=90)
        tokens, reason, _ = answer(grammars, table, params)
        assert reason == "stop"
        assert re.fullmatch(pattern, tokenizer.decode(tokens))
        assert answer(grammars, table, params, spoilt(tokens))[0] == tokens


def test_a_json_object_begins_as_one_and_ends_where_it_is_closed(
    grammars: Grammars, tokenizer: Tokenizer, table: torch.Tensor
) -> None:
    closing = table.clone()
    closing[:, tokenizer.encode('"').ids] += 14.0
    closing[:, tokenizer.encode("}").ids] += 11.0
    params = SamplingParams(temperature=1.0, grammar=Grammar("json_object"), max_tokens=900)
    tokens, reason, _ = answer(grammars, closing, params)
    assert reason == "stop"
    assert isinstance(json.loads(tokenizer.decode(tokens)), dict)


def test_a_grammar_goes_with_every_other_parameter(
    grammars: Grammars, tokenizer: Tokenizer, table: torch.Tensor
) -> None:
    three = tokenizer.encode("3").ids[0]
    params = SamplingParams(
        temperature=1.5,
        top_k=5,
        top_p=0.9,
        frequency_penalty=0.5,
        repetition_penalty=1.2,
        min_tokens=4,
        logit_bias=((three, 5.0),),
        bad_words=((three, three),),
        grammar=Grammar("regex", "[0-9]{2,12}"),
        max_tokens=20,
    )
    tokens, _, _ = answer(grammars, table, params)
    text = tokenizer.decode(tokens)
    assert re.fullmatch("[0-9]{4,12}", text)
    assert "33" not in text
    assert answer(grammars, table, params, spoilt(tokens))[0] == tokens


def test_tokens_without_a_choice_are_drafted_and_save_steps(grammars: Grammars, table: torch.Tensor) -> None:
    schema = {
        "const": "a long sentence that nobody has to guess",
        "x-guidance": {"whitespace_flexible": False},
    }
    params = SamplingParams(grammar=Grammar("json_schema", json.dumps(schema)), max_tokens=90)
    plain, _, steps = answer(grammars, table, params)
    forced, _, fewer = answer(grammars, table, params, lambda law, tokens, _: law.forced(tokens))
    assert forced == plain
    assert fewer < steps


def test_drafts_are_cut_before_the_first_that_the_grammar_forbids(
    grammars: Grammars, tokenizer: Tokenizer, vocabulary: int
) -> None:
    matcher = grammars.matcher(grammars.compile(Grammar("regex", "abc[0-9]")))
    law = Sampler(SamplingParams(), PROMPT, 1, Noise(vocabulary), matcher)
    a, b, c, x = (tokenizer.encode(letter).ids[0] for letter in "abcx")
    assert list(law.allowed_prefix(PROMPT, [a, b, x, c])) == [a, b]
    assert list(law.allowed_prefix([*PROMPT, a], [b, c, vocabulary - 1])) == [b, c]
    assert list(law.allowed_prefix([*PROMPT, a], [x])) == []


def test_min_tokens_that_a_finished_grammar_cannot_reach_end_the_answer(
    grammars: Grammars, table: torch.Tensor
) -> None:
    params = SamplingParams(grammar=Grammar("regex", "ab"), min_tokens=9, max_tokens=20)
    with pytest.raises(NoTokenError, match="response_format, bad_words and min_tokens"):
        answer(grammars, table, params)


@pytest.mark.parametrize(
    ("grammar", "said"),
    [
        (
            Grammar("json_schema", '{"type": "objekt"}'),
            "the json_schema cannot be used: Invalid type: objekt; mend",
        ),
        (Grammar("json_schema", "{"), "the json_schema cannot be used: it is no JSON: Expecting .*; mend"),
        (Grammar("json_schema", "[" * 90_000), "the json_schema cannot be used: .*nested too deeply; mend"),
        (
            Grammar("json_schema", "[1]"),
            "the json_schema cannot be used: it is of type list, not an object; mend",
        ),
        (
            Grammar("json_schema", '{"type": "array", "contains": {"type": "string"}}'),
            'Unimplemented keys: ."contains".',
        ),
        (
            Grammar("json_schema", '{"type": "string", "minLength": 5, "maxLength": 3}'),
            "Unsatisfiable schema",
        ),
        (Grammar("regex", "(a"), "the regex cannot be used: .*unclosed group; mend"),
        (Grammar("regex", "(?=x)a"), "look-around.* is not supported; mend"),
        (Grammar("lark", "start: foo"), 'the lark cannot be used: .*unknown name: "foo"; mend'),
        (Grammar("regex", "a" * (MAX_CHARACTERS + 1)), "has 262145 characters; at most 262144 are taken"),
    ],
)
def test_a_grammar_that_cannot_be_used_is_refused_by_one_sentence(
    grammars: Grammars, grammar: Grammar, said: str
) -> None:
    with pytest.raises(GrammarError, match=said) as refusal:
        grammars.matcher(grammars.compile(grammar))
    assert "\n" not in str(refusal.value)


def allows(matcher: GrammarMatcher, token: int) -> bool:
    (mask,) = matcher.masks(())
    return bool(mask[token >> 3] >> (token & 7) & 1)


def test_one_grammar_is_compiled_once_and_each_answer_has_its_own_place_in_it(
    grammars: Grammars, tokenizer: Tokenizer
) -> None:
    first, second = (grammars.compile(Grammar("regex", "ab")) for _ in range(2))
    assert first is second
    one, two = grammars.matcher(first), grammars.matcher(second)
    a, b = (tokenizer.encode(letter).ids[0] for letter in "ab")
    one.read([a])
    assert allows(one, b)
    assert not allows(two, b)
    assert allows(two, a)


def test_a_matcher_that_has_given_up_drafts_nothing_and_says_so_when_a_token_is_drawn(
    grammars: Grammars, tokenizer: Tokenizer, table: torch.Tensor
) -> None:
    matcher = grammars.matcher(grammars.compile(Grammar("regex", "abc[0-9]")))
    law = Sampler(SamplingParams(), PROMPT, 1, Noise(len(table)), matcher)
    a, x = (tokenizer.encode(letter).ids[0] for letter in "ax")
    context = [*PROMPT, a, x]  # x is forbidden: a matcher in error, as at its limits
    assert list(law.allowed_prefix(context, [a, x])) == []
    assert law.forced(context) == [END]
    with pytest.raises(GrammarError, match="too costly"):
        law.token(table[0], context)


def test_a_model_whose_tokenizer_is_not_fit_for_grammars_refuses_them(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    for file, vocabulary, ends, said in [
        ("none.json", 400, {END}, r"no tokenizer\.json"),
        ("tokenizer.json", 99, {END}, "cannot be used with a grammar: vocab size too small"),
        ("tokenizer.json", 400, set(), "no end-of-sequence token"),
    ]:
        grammars = Grammars(tmp_path / file, vocabulary, ends)
        with pytest.raises(GrammarError, match=said):
            grammars.matcher(grammars.compile(Grammar("regex", "a")))
        grammars.close()
