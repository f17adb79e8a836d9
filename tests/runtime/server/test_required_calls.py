"""A required call follows the schema of its own tool's parameters, wherever that schema's parts are."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from llguidance import LLMatcher, LLTokenizer
from pydantic import BaseModel

from turbo_runtime.messages import Grammar
from turbo_runtime.parsers import add_reasoning
from turbo_runtime.protocol import ChatRequest, parse

NUMBER = {"type": "integer"}
TREE = {
    "type": "object",
    "properties": {"sku": {"$ref": "#/$defs/Item"}, "next": {"$ref": "#"}},
    "required": ["sku"],
    "additionalProperties": False,
    "$defs": {"Item": {"type": "string"}},
}
ORDER = {
    "type": "object",
    "properties": {"item": {"$ref": "#/definitions/Item"}},
    "required": ["item"],
    "additionalProperties": False,
}


class Item(BaseModel):
    sku: str


class Order(BaseModel):
    items: list[Item]


def tool(name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def required(*tools: Any) -> Grammar:
    messages = [{"role": "user", "content": "x"}]
    body = {"model": "m", "messages": messages, "tools": list(tools), "tool_choice": "required"}
    grammar = parse(ChatRequest, body).grammar
    assert grammar
    return grammar


def accepts(compiled: str, text: str) -> bool:
    matcher = LLMatcher(LLTokenizer("byte"), compiled)
    assert not matcher.get_error()
    taken = matcher.try_consume_tokens(list(text.encode()))
    return taken == len(text.encode()) and matcher.is_accepting()


def callable_with(grammar: Grammar, name: str, arguments: Any) -> bool:
    text = json.dumps({"name": name, "arguments": arguments})
    return accepts(LLMatcher.grammar_from_json_schema(grammar.text), text)


def test_the_clients_own_helper_for_nested_models_works() -> None:
    grammar = required(json.loads(json.dumps(openai.pydantic_function_tool(Order))))
    assert callable_with(grammar, "Order", {"items": [{"sku": "a"}]})
    assert not callable_with(grammar, "Order", {"items": [{"sku": 1}]})


def test_each_tool_has_definitions_of_its_own() -> None:
    grammar = required(tool("tree", TREE), tool("other", {**TREE, "$defs": {"Item": NUMBER}}))
    assert callable_with(grammar, "tree", {"sku": "a", "next": {"sku": "b"}})
    assert callable_with(grammar, "other", {"sku": 1, "next": {"sku": 2}})
    assert not callable_with(grammar, "tree", {"sku": 1})
    assert not callable_with(grammar, "other", {"sku": 1, "next": {"sku": "b"}})


DRAFTS = ["http://json-schema.org/draft-04/schema#", "http://json-schema.org/draft-07/schema#"]
NEWER = ["https://json-schema.org/draft/2019-09/schema", "https://json-schema.org/draft/2020-12/schema"]


@pytest.mark.parametrize("draft", [*DRAFTS, *NEWER])
@pytest.mark.parametrize("at_the_root", [True, False])
def test_in_every_draft_a_reference_is_found_also_one_that_is_the_whole_schema(
    draft: str, at_the_root: bool
) -> None:
    definitions = {"Item": NUMBER, "Order": ORDER}
    body: dict[str, Any] = {"$ref": "#/definitions/Order"} if at_the_root else ORDER
    grammar = required(tool("order", {"$schema": draft, **body, "definitions": definitions}))
    assert callable_with(grammar, "order", {"item": 1})
    assert not callable_with(grammar, "order", {"item": "a"})


def test_a_schema_with_an_address_of_its_own_keeps_it() -> None:
    addressed = json.loads(json.dumps(TREE).replace('"#', '"https://example.com/tree#'))
    grammar = required(tool("tree", {"$id": "https://example.com/tree", **addressed}))
    assert callable_with(grammar, "tree", {"sku": "a", "next": {"sku": "b"}})


def test_a_whole_reference_stands_beside_other_conditions() -> None:
    both = {"$ref": "#/$defs/Order", "allOf": [{"properties": {"item": {"minimum": 5}}}]}
    definitions = {"Item": NUMBER, "Order": json.loads(json.dumps(ORDER).replace("definitions", "$defs"))}
    grammar = required(tool("order", {**both, "$defs": definitions}))
    assert callable_with(grammar, "order", {"item": 5})
    assert not callable_with(grammar, "order", {"item": 1})


def test_what_looks_like_a_reference_in_a_constant_is_data() -> None:
    data = {"$ref": "#/$defs/Item"}
    grammar = required(tool("f", {"type": "object", "properties": {"a": {"const": data}}, "$defs": {}}))
    assert callable_with(grammar, "f", {"a": data})


def test_it_holds_behind_thoughts_too() -> None:
    behind = add_reasoning(required(tool("tree", TREE)))
    assert behind
    compiled = LLMatcher.grammar_from_lark(behind.text)
    call = '{"name": "tree", "arguments": {"sku": '
    assert accepts(compiled, f'hm</think>{call}"a"}}}}')
    assert not accepts(compiled, f"hm</think>{call}1}}}}")
