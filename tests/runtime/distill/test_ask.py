"""What is asked of the prompts that are given."""

from __future__ import annotations

from pathlib import Path

import pytest

from turbo_runtime.distill.data.responses import TokenizedPrompt, read_requests, tokenize, write_requests
from turbo_runtime.distill.recipe import Recipe
from turbo_runtime.prompts import Prompt, PromptsError

SHORT, LONG = "abc", "abcdefghij"
ROOM = 5


def encode(prompt: Prompt) -> list[int]:
    return [ord(letter) for letter in prompt.content]


def captured(text: str) -> Prompt:
    return Prompt(text, "captured", written=text, captured_at=1.0)


def test_captured_prompts_that_leave_no_room_for_an_answer_are_left_out_and_counted() -> None:
    parts = {"test": [captured(LONG), captured(SHORT)], "training": [captured(LONG)]}
    asked, left_out = tokenize(parts, encode, Recipe(), ROOM)
    assert [(one.part, one.prompt) for one in asked] == [("test", (97, 98, 99))]
    assert left_out == 2


def test_a_prompt_of_your_own_that_leaves_no_room_is_refused_by_name() -> None:
    parts = {"training": [captured(LONG), Prompt("mine", "d", text=LONG)]}
    with pytest.raises(PromptsError, match="mine are longer: leave them out"):
        tokenize(parts, encode, Recipe(), ROOM)


def test_each_answer_says_what_it_is_drawn_with() -> None:
    parts = {"test": [captured("a")], "training": [captured("b")]}
    recipe = Recipe(seed=7, variants=1, variant_temperature=0.9)
    asked, _ = tokenize(parts, encode, recipe, ROOM)
    assert [(one.part, one.choice, one.temperature, one.seed) for one in asked] == [
        ("test", 0, 0.0, 0),  # greedy: there is no noise
        ("training", 0, 0.0, 0),
        ("training", 1, 0.9, 7),
    ]


def test_what_was_asked_is_read_as_it_was_written_and_anything_else_is_nothing(tmp_path: Path) -> None:
    file = tmp_path / "asked.jsonl"
    assert read_requests(file) is None
    asked = [
        TokenizedPrompt("training", "\u2028", (1, 70000), 2, 0.7, 5),
        TokenizedPrompt("test", "d", (3,)),
    ]
    write_requests(file, asked)
    assert read_requests(file) == asked
    file.write_text(file.read_text()[:-9])
    assert read_requests(file) is None
