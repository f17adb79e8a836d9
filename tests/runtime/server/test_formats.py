"""Answers are told apart in the formats of the families served, however the text is cut into pieces."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from turbo_runtime.messages import Grammar
from turbo_runtime.parsers import (
    JsonToolCallParser,
    OutputParser,
    ParsedDelta,
    Parser,
    ToolParser,
    add_reasoning,
    deepseek,
    find_tool_parser,
    hermes,
)

WEATHER = '{"name": "weather", "arguments": {"city": "Köln {1}", "days": 2}}'
R1 = (
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n"
    '{"city": "Bonn"}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>time\n```json\n'
    "{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
)
V31 = (
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>"
    '{"city": "Bonn"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>'
)
FLY = V31.replace("weather", "fly")
CITY = {"city": "Köln {1}", "days": 2}
OFFERED = {"weather", "time", "a", "b"}
# format, text of the answer, content, calls
CASES = {
    "hermes": (
        hermes,
        f"Let me see.\n<tool_call>\n{WEATHER}\n</tool_call>",
        "Let me see.",
        [("weather", CITY)],
    ),
    "hermes, two calls": (
        hermes,
        f'<tool_call>{WEATHER}</tool_call>\n<tool_call>{{"name": "time"}}</tool_call>\n',
        "",
        [("weather", CITY), ("time", {})],
    ),
    "hermes, the closing tag is missing": (hermes, f"<tool_call>\n{WEATHER}", "", [("weather", CITY)]),
    "hermes, no JSON": (hermes, "a <tool_call>x</tool_call> b", "a <tool_call>x</tool_call> b", []),
    "hermes, no call": (hermes, "1 < 2 and <tool> \n", "1 < 2 and <tool> \n", []),
    "llama": (
        JsonToolCallParser,
        '{"name": "weather", "parameters": {"city": "Bonn"}}',
        "",
        [("weather", {"city": "Bonn"})],
    ),
    "llama, tagged, two calls": (
        JsonToolCallParser,
        '<|python_tag|>{"name": "a", "parameters": {}}; {"name": "b", "parameters": {"x": 1}}',
        "",
        [("a", {}), ("b", {"x": 1})],
    ),
    "llama, another object": (JsonToolCallParser, '{"answer": 42}', '{"answer": 42}', []),
    **{
        f"llama, {why}": (JsonToolCallParser, text, text, [])
        for why, text in {
            "an answer that has a name": '{"name": "Bonn", "country": "DE"}',
            "an answer that has a tool's name": '{"name": "time", "hour": 3}',
            "a tool that was not offered": '{"name": "fly", "parameters": {}}',
            "a call and an answer": '{"name": "a", "parameters": {}}; {"name": "b"}',
            "a name that is none": '{"name": ["a"], "parameters": {}}',
            "a call and no object": '{"name": "a", "parameters": {}}[]',
        }.items()
    },
    "llama, text": (JsonToolCallParser, "The weather is {fine}.", "The weather is {fine}.", []),
    "llama, nothing but white space": (JsonToolCallParser, " \n", " \n", []),
    "llama, cut": (JsonToolCallParser, '{"name": "wea', '{"name": "wea', []),
    "hermes, a tool that was not offered": (
        hermes,
        '<tool_call>{"name": "fly"}</tool_call>',
        '<tool_call>{"name": "fly"}</tool_call>',
        [],
    ),
    "deepseek, a tool that was not offered": (deepseek, FLY, FLY, []),
    "deepseek r1": (deepseek, f"Hm. {R1}", "Hm.", [("weather", {"city": "Bonn"}), ("time", {})]),
    "deepseek v3.1": (deepseek, V31, "", [("weather", {"city": "Bonn"})]),
}


def read(parser: Parser, pieces: list[str]) -> ParsedDelta:
    said = ParsedDelta()
    for piece in pieces:
        said += parser.push(piece)
    return said + parser.flush()


def cuts(data: st.DataObject, text: str) -> list[str]:
    places = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=12)))
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


@pytest.mark.parametrize("name", CASES)
@given(data=st.data())
def test_calls_and_content_are_the_same_however_the_text_is_cut(name: str, data: st.DataObject) -> None:
    make, text, content, calls = CASES[name]
    said = read(make(OFFERED), cuts(data, text))
    assert said.content == content
    assert [(call.name, json.loads(call.arguments)) for call in said.calls] == calls


@pytest.mark.parametrize("make", [hermes, JsonToolCallParser, deepseek])
@given(text=st.text(st.sampled_from('<{}|>tool_cal"/ \n'), max_size=30))
def test_what_holds_no_call_stays_as_it_is(make: ToolParser, text: str) -> None:
    assert read(make(OFFERED), list(text)) == ParsedDelta(text)


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
@pytest.mark.parametrize(
    ("make", "before", "after"),
    [
        (hermes, '<tool_call>{"name": "a", "arguments": {"x": ', "}}</tool_call>"),
        (hermes, r'<tool_call>{"name": "a", "arguments": "{\"x\": ', '}"}</tool_call>'),
        (JsonToolCallParser, '{"name": "a", "parameters": {"x": ', "}}"),
        (deepseek, *V31.split('"Bonn"')),
    ],
)
def test_arguments_that_are_no_json_stay_text(make: ToolParser, before: str, after: str, number: str) -> None:
    text = before + number + after
    assert read(make(OFFERED), [text]) == ParsedDelta(text)


def test_arguments_can_always_be_sent() -> None:
    (call,) = read(
        JsonToolCallParser(OFFERED), [r'{"name": "a", "parameters": {"x": "\ud83d", "y": "ü"}}']
    ).calls
    assert json.loads(call.arguments.encode()) == {"x": "\ud83d", "y": "ü"}


THOUGHTS = {
    # end of the prompt, text, reasoning, content
    "the model opens them": ("assistant\n", "<think>\nHm, 2.\n</think>\n\nTwo.", "Hm, 2.", "Two."),
    "the template opens them": ("assistant\n<think>\n", "Hm.\n</think>\n\nTwo. ", "Hm.", "Two. "),
    "the template closes them": ("<think>\n\n</think>\n\n", "Two <think>.", "", "Two <think>."),
    "there are none": ("assistant\n", " Two.", "", " Two."),
    "they never end": ("<think>\n", "Hm, hm </thi", "Hm, hm </thi", ""),
    "they never begin": ("assistant\n", "<thi", "", "<thi"),
}


@pytest.mark.parametrize("name", THOUGHTS)
@given(data=st.data())
def test_thoughts_are_taken_out_however_the_text_is_cut(name: str, data: st.DataObject) -> None:
    prompt, text, reasoning, content = THOUGHTS[name]
    assert read(OutputParser(None, prompt), cuts(data, text)) == ParsedDelta(content, reasoning)


@pytest.mark.parametrize(
    ("grammar", "right", "wrong"),
    [
        (Grammar("json_schema", '{"type": "object", "required": ["a"]}'), '{"a": 1}', '{"b": 1}'),
        (Grammar("json_object"), "{}", "[]"),
        (Grammar("regex", "a/b+"), "a/bb", "a/c"),
        (Grammar("regex", r"https:\/\/x\.com"), "https://x.com", "https://x_com"),
        (Grammar("regex", r"\\/[/]\\\/"), r"\//\/", r"\\//\/"),
    ],
)
def test_a_format_holds_behind_thoughts_that_the_prompt_has_opened(
    grammar: Grammar, right: str, wrong: str
) -> None:
    behind = add_reasoning(grammar)
    assert behind

    def accepted(text: str) -> bool:
        matcher = LLMatcher(LLTokenizer("byte"), LLMatcher.grammar_from_lark(behind.text))
        taken = matcher.try_consume_tokens(list(text.encode()))
        return taken == len(text.encode()) and matcher.is_accepting()

    for space in ("", "\n\n"):
        assert accepted(f"{wrong} or {right}?</think>{space}{right}")
        assert not accepted(f"{right}</think>{space}{wrong}")
    assert not accepted(right)


def test_a_grammar_of_the_clients_own_cannot_follow_thoughts() -> None:
    assert add_reasoning(Grammar("lark", 'start: "a"')) is None


def test_thoughts_and_calls_come_apart() -> None:
    parser = OutputParser(hermes(OFFERED), "assistant\n")
    said = read(parser, list(f"<think>{WEATHER}</think>Well.<tool_call>{WEATHER}</tool_call>"))
    assert (said.reasoning, said.content, len(said.calls)) == (WEATHER, "Well.", 1)


def test_an_answer_that_may_call_once_is_complete_after_its_first_call() -> None:
    parser = OutputParser(hermes(OFFERED), None, single_call=True)
    call = f"<tool_call>{WEATHER}</tool_call>"
    said = parser.push(call + call + "more")
    assert parser.is_complete
    assert len((said + parser.push("more") + parser.flush()).calls) == 1


@pytest.mark.parametrize(
    ("template", "calls"),
    [
        ("{{ '<tool_call>' }}...content.split('</think>')", hermes),
        (
            'Respond in the format {"name": function name, "parameters": dictionary of',
            JsonToolCallParser,
        ),
        ("{{ '<|python_tag|>' }}", JsonToolCallParser),
        ("{{ '<｜tool▁calls▁begin｜>' }}</think>", deepseek),
        ("{{ messages }}", None),
    ],
)
def test_a_template_shows_how_its_model_writes_calls(template: str, calls: ToolParser | None) -> None:
    assert find_tool_parser(template) == calls
