"""Whatever the official client's types can say inside a parameter is served, or refused by name."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterator
from typing import Any, Literal

import httpx
import pytest
import typing_extensions
from openai.types.chat import (
    ChatCompletionAssistantMessageParam,
    ChatCompletionContentPartParam,
    ChatCompletionContentPartTextParam,
    ChatCompletionDeveloperMessageParam,
    ChatCompletionFunctionToolParam,
    ChatCompletionMessageFunctionToolCallParam,
    ChatCompletionMessageParam,
    ChatCompletionStreamOptionsParam,
    ChatCompletionSystemMessageParam,
    ChatCompletionToolChoiceOptionParam,
    ChatCompletionToolMessageParam,
    ChatCompletionToolUnionParam,
    ChatCompletionUserMessageParam,
)
from openai.types.chat.completion_create_params import ResponseFormat
from openai.types.shared import ReasoningEffort
from openai.types.shared_params import FunctionDefinition
from openai.types.shared_params.response_format_json_schema import JSONSchema

from turbo_dev.server_process import PATIENCE
from turbo_runtime.protocol import ChatRequest
from turbo_runtime.protocol.requests import Function, Message, Tool, ToolCallSent
from turbo_runtime.protocol.sampling import NamedSchema, StreamOptions

USER = {"role": "user", "content": "hello"}
TOOL = {"type": "function", "function": {"name": "f"}}
WANTED: dict[str, Any] = {"include_obfuscation": True}  # what asks for something, where a string does not
Body = dict[str, Any]


def turn(role: str, **fields: Any) -> Body:
    needed = {"tool_call_id": "a"} if role == "tool" else {}
    return {"messages": [USER, {"role": role, "content": "x", **needed, **fields}]}


def in_turn(role: str) -> Callable[[str, Any], tuple[Body, str]]:
    return lambda key, value: (turn(role, **{key: value}), f"messages[1].{key}")


# a type of the client's, the fields that are served, and a request that has one more, with its path
PLACES: list[tuple[Any, set[str], Callable[[str, Any], tuple[Body, str]]]] = [
    (
        ChatCompletionStreamOptionsParam,
        set(StreamOptions.model_fields),
        lambda key, value: ({"stream": True, "stream_options": {key: value}}, f"stream_options.{key}"),
    ),
    (ChatCompletionSystemMessageParam, set(Message.model_fields), in_turn("system")),
    (ChatCompletionDeveloperMessageParam, set(Message.model_fields), in_turn("developer")),
    (ChatCompletionUserMessageParam, set(Message.model_fields), in_turn("user")),
    (ChatCompletionAssistantMessageParam, set(Message.model_fields), in_turn("assistant")),
    (ChatCompletionToolMessageParam, set(Message.model_fields), in_turn("tool")),
    (
        ChatCompletionContentPartTextParam,
        {"type", "text"},
        lambda key, value: (
            turn("user", content=[{"type": "text", "text": "x", key: value}]),
            "messages[1].content",
        ),
    ),
    (
        ChatCompletionMessageFunctionToolCallParam,
        set(ToolCallSent.model_fields),
        lambda key, value: (
            turn("assistant", tool_calls=[{"id": "a", "function": {}, key: value}]),
            f"messages[1].tool_calls[0].{key}",
        ),
    ),
    (
        ChatCompletionFunctionToolParam,
        set(Tool.model_fields),
        lambda key, value: ({"tools": [{**TOOL, key: value}]}, f"tools[0].{key}"),
    ),
    (
        FunctionDefinition,
        set(Function.model_fields),
        lambda key, value: (
            {"tools": [{**TOOL, "function": {"name": "f", key: value}}]},
            f"tools[0].function.{key}",
        ),
    ),
    (
        JSONSchema,
        {field.alias or name for name, field in NamedSchema.model_fields.items()},
        lambda key, value: (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "a", "schema": {}, key: value},
                }
            },
            f"response_format.json_schema.{key}",
        ),
    ),
]
UNSERVED = [
    pytest.param(*request(key, WANTED.get(key, "x")), key, id=f"{kind.__name__}.{key}")
    for kind, served, request in PLACES
    for key in sorted(typing_extensions.get_type_hints(kind).keys() - served)
]


def literals(union: Any, field: str) -> set[str]:
    """What `field` may be over all dictionaries of a union, and the union's bare strings."""
    found: set[str] = set()
    for member in typing.get_args(union):
        if typing.get_origin(member) is Literal:
            found |= set(typing.get_args(member))
        elif typing_extensions.is_typeddict(member):
            found |= set(typing.get_args(typing_extensions.get_type_hints(member)[field]))
    return found


@pytest.fixture
def ask(server: Any) -> Iterator[Callable[[Body], httpx.Response]]:
    with httpx.Client(base_url=f"{server.url}/v1/", timeout=PATIENCE) as client:
        yield lambda body: client.post(
            "chat/completions", json={"model": "echo", "messages": [USER], "temperature": 0, **body}
        )


@pytest.mark.parametrize(("body", "param", "name"), UNSERVED)
def test_a_field_that_is_not_served_is_refused_by_name(
    ask: Callable[[Body], httpx.Response], body: Body, param: str, name: str
) -> None:
    reply = ask(body)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == param
    assert name in reply.json()["error"]["message"]


def test_what_asks_for_nothing_is_served(ask: Callable[[Body], httpx.Response]) -> None:
    for body in (
        {"stream": True, "stream_options": {"include_obfuscation": False}},
        turn("assistant", refusal=None, audio=None, function_call=None, tool_calls=None),
        turn("user", content=[{"type": "text", "text": "x", "prompt_cache_breakpoint": None}]),
    ):
        assert ask(body).status_code == 200, body


def test_kinds_of_parts_and_tools_and_roles_are_served_or_refused_by_name(
    ask: Callable[[Body], httpx.Response],
) -> None:
    refused = {
        "messages[1].content": [
            turn("user", content=[{"type": kind, kind: {}}])
            for kind in sorted(literals(ChatCompletionContentPartParam, "type") - {"text"})
        ],
        "messages[1].role": [
            turn(role, name="f")
            for role in sorted(
                literals(ChatCompletionMessageParam, "role")
                - set(typing.get_args(Message.model_fields["role"].annotation))
            )
        ],
        "tools[0].type": [
            {"tools": [{"type": kind, kind: {"name": "f"}}]}
            for kind in sorted(literals(ChatCompletionToolUnionParam, "type") - {"function"})
        ],
        "tool_choice": [
            {"tools": [TOOL], "tool_choice": {"type": kind, kind: {"name": "f"}}}
            for kind in sorted(
                literals(ChatCompletionToolChoiceOptionParam, "type")
                - {"none", "auto", "required", "function"}
            )
        ],
    }
    for param, bodies in refused.items():
        assert bodies, f"the client says nothing more at {param}: this test looks in the wrong place"
        for body in bodies:
            reply = ask(body)
            assert (reply.status_code, reply.json()["error"]["param"]) == (400, param), body


def test_formats_and_efforts_of_the_client_are_all_known(ask: Callable[[Body], httpx.Response]) -> None:
    assert literals(ResponseFormat, "type") == {"text", "json_object", "json_schema"}
    for kind in ("text", "json_object"):
        assert ask({"response_format": {"type": kind}}).status_code == 200
    efforts = {one for member in typing.get_args(ReasoningEffort) for one in typing.get_args(member)}
    for effort in sorted(efforts):
        reply = ask({"reasoning_effort": effort})
        told = reply.json()["error"]["code"] if reply.status_code == 400 else None
        assert told == (None if effort == "none" else "unsupported_parameter"), effort  # by this template
    assert efforts
    assert "reasoning_effort" in ChatRequest.model_fields
