"""Tools, reasoning and formats of answers, as the official client asks for them and reads them."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from turbo_runtime.protocol.requests import ToolCallSent

CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Bonn"}}</tool_call>'
BARE = '{"name": "weather", "arguments": {"city": "Bonn"}}'
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS: Any = [{"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}]


def ask(client: openai.OpenAI, text: str, **fields: Any) -> Any:
    """The scripted engine answers with the prompt's own text."""
    messages: Any = [{"role": "user", "content": text}]
    return client.chat.completions.create(
        model="echo", messages=messages, **{"temperature": 0, "max_tokens": 400, **fields}
    )


def test_a_call_is_told_whole(client: openai.OpenAI) -> None:
    choice = ask(client, CALL, tools=TOOLS).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    (call,) = choice.message.tool_calls
    assert (call.type, call.function.name) == ("function", "weather")
    assert json.loads(call.function.arguments) == {"city": "Bonn"}
    assert call.id


def test_calls_are_streamed_each_in_one_event_and_numbered(client: openai.OpenAI) -> None:
    events = list(ask(client, f"Well. {CALL}{CALL}", tools=TOOLS, stream=True))
    deltas = [event.choices[0].delta for event in events]
    assert "".join(delta.content or "" for delta in deltas) == "Well."
    calls = [call for delta in deltas for call in delta.tool_calls or []]
    assert [(call.index, call.function.name) for call in calls] == [(0, "weather"), (1, "weather")]
    assert calls[0].id != calls[1].id
    assert events[-1].choices[0].finish_reason == "tool_calls"


def test_one_call_at_a_time_ends_the_answer_after_the_first(client: openai.OpenAI) -> None:
    reply = ask(client, f"{CALL}{CALL}", tools=TOOLS, parallel_tool_calls=False)
    assert len(reply.choices[0].message.tool_calls) == 1
    assert reply.choices[0].finish_reason == "tool_calls"
    assert reply.usage.completion_tokens < reply.usage.prompt_tokens * 0.7


def test_without_tools_or_with_none_wanted_a_call_is_text(client: openai.OpenAI) -> None:
    assert ask(client, CALL).choices[0].message.content == CALL
    choice = ask(client, CALL, tools=TOOLS, tool_choice="none").choices[0]
    assert (choice.message.content, choice.message.tool_calls) == (CALL, None)


def test_a_call_of_what_was_not_offered_is_text(client: openai.OpenAI) -> None:
    other = CALL.replace("weather", "fly")
    choice = ask(client, other, tools=TOOLS).choices[0]
    assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == (other, None, "stop")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_required_call_is_made_by_a_grammar_of_its_parameters(
    server: Any, client: openai.OpenAI, choice: Any
) -> None:
    reply = ask(client, BARE, tools=TOOLS, tool_choice=choice).choices[0]
    assert reply.finish_reason == "tool_calls"
    assert json.loads(reply.message.tool_calls[0].function.arguments) == {"city": "Bonn"}
    told = server.engine_log.read_text().splitlines()[-1]
    assert "Grammar(kind='json_schema'" in told
    assert '"const": "weather"' in told


def test_a_call_and_its_result_are_taken_back_as_history(client: openai.OpenAI) -> None:
    first = ask(client, CALL, tools=TOOLS).choices[0].message
    messages: Any = [
        {"role": "user", "content": "a"},
        first.model_dump(),
        {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "sunny"},
    ]
    reply = client.chat.completions.create(model="echo", messages=messages, tools=TOOLS, temperature=0)
    assert reply.choices[0].message.content == "aNonesunny"  # this template writes contents only


@pytest.mark.parametrize("arguments", ["", " ", "{}"])
def test_a_call_without_arguments_is_taken_back_as_clients_write_it(arguments: str) -> None:
    sent = ToolCallSent.model_validate({"id": "a", "function": {"name": "time", "arguments": arguments}})
    assert sent.for_template()["function"] == {"name": "time", "arguments": {}}


def test_thoughts_are_reasoning_content_and_are_counted(client: openai.OpenAI) -> None:
    reply = ask(client, "<think>hmm</think>hello")
    assert reply.choices[0].message.reasoning_content == "hmm"
    assert reply.choices[0].message.content == "hello"
    assert 3 <= reply.usage.completion_tokens_details.reasoning_tokens < reply.usage.completion_tokens
    deltas = [event.choices[0].delta for event in ask(client, "<think>hmm</think>hello", stream=True)]
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == "hmm"
    assert "".join(delta.content or "" for delta in deltas) == "hello"


def test_a_template_that_opens_the_thoughts_is_told_by_its_own_variable(client: openai.OpenAI) -> None:
    kwargs = {"chat_template_kwargs": {"enable_thinking": True}}
    plain = ask(client, "hello", extra_body=kwargs)
    assert plain.usage.prompt_tokens > 5  # the template wrote <think> before it


GRAMMARS: Any = [
    ({"response_format": {"type": "json_object"}}, "Grammar(kind='json_object', text='')"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}},
        f"Grammar(kind='json_schema', text={json.dumps(SCHEMA)!r})",
    ),
    ({"structured_outputs": {"json": SCHEMA}}, f"Grammar(kind='json_schema', text={json.dumps(SCHEMA)!r})"),
    ({"structured_outputs": {"regex": "a+"}}, "Grammar(kind='regex', text='a+')"),
    ({"structured_outputs": {"choice": ["a.b", "c"]}}, "Grammar(kind='regex', text='a\\\\.b|c')"),
    ({"structured_outputs": {"grammar": 'start: "x"'}}, "Grammar(kind='lark', text='start: \"x\"')"),
    ({"structured_outputs": {"json_object": True}}, "Grammar(kind='json_object', text='')"),
]


@pytest.mark.parametrize(("fields", "grammar"), GRAMMARS, ids=lambda value: None)
def test_a_format_reaches_the_engine_as_a_grammar(
    server: Any, client: openai.OpenAI, fields: dict[str, Any], grammar: str
) -> None:
    ask(client, "hello", extra_body=fields)
    assert f"grammar={grammar}" in server.engine_log.read_text().splitlines()[-1]


REFUSED = {"type": "object", "properties": {"refuse": {}}}


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("structured_outputs", {"structured_outputs": {"regex": "refuse"}}),
        (
            "response_format",
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "it", "schema": REFUSED},
                }
            },
        ),
        (
            "tools",
            {
                "tools": [{"type": "function", "function": {"name": "it", "parameters": REFUSED}}],
                "tool_choice": "required",
            },
        ),
    ],
)
def test_a_format_that_the_engine_refuses_is_a_400_that_names_its_field(
    client: openai.OpenAI, field: str, fields: dict[str, Any]
) -> None:
    with pytest.raises(openai.BadRequestError, match=f"'{field}': The script says so") as caught:
        ask(client, "hello", extra_body=fields)
    assert (caught.value.param, caught.value.code) == (field, "invalid_value")


def test_a_request_with_a_grammar_that_is_refused_for_something_else_names_no_field(
    client: openai.OpenAI,
) -> None:
    """Found in review: a prompt that was too long was said to be the fault of `structured_outputs`."""
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, "refuse", extra_body={"structured_outputs": {"regex": "h.*"}})
    assert caught.value.param is None
    assert caught.value.body["message"] == "The script says so."


def test_the_async_helper_of_the_client_parses_a_schema(client: openai.OpenAI) -> None:
    from pydantic import BaseModel

    class City(BaseModel):
        city: str

    messages: Any = [{"role": "user", "content": '{"city": "Bonn"}'}]
    reply = client.chat.completions.parse(
        model="echo", messages=messages, response_format=City, temperature=0, max_tokens=99
    )
    assert reply.choices[0].message.parsed == City(city="Bonn")
