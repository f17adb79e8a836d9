"""The OpenAPI document is true, and no body whatever makes the server fail."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from turbo_dev.server_process import PATIENCE
from turbo_runtime.protocol import UNSUPPORTED, ChatRequest, CompletionRequest
from turbo_runtime.server.app import build_openapi_document

BASE: dict[str, dict[str, Any]] = {
    "chat/completions": {"model": "echo", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4},
    "completions": {"model": "echo", "prompt": "hi", "max_tokens": 4},
}
FIELDS = {
    "chat/completions": sorted({*ChatRequest.model_fields, *UNSUPPORTED[ChatRequest]}),
    "completions": sorted({*CompletionRequest.model_fields, *UNSUPPORTED[CompletionRequest]}),
}
NUMBERS = st.integers(-2, 5) | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
WORDS = st.sampled_from(
    ["type", "function", "name", "json_schema", "schema", "auto", "json_object", "regex", "role", "content"]
)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=5) | WORDS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | WORDS, inner, max_size=3)
    ),
    max_leaves=8,
)


def test_the_document_is_served_and_names_every_field_and_every_refusal(server: Any) -> None:
    served = httpx.get(f"{server.url}/openapi.json").json()
    assert served == build_openapi_document()
    schemas = served["components"]["schemas"]
    assert sorted(schemas["ChatRequest"]["properties"]) == FIELDS["chat/completions"]
    assert sorted(schemas["CompletionRequest"]["properties"]) == FIELDS["completions"]


def test_every_reference_of_the_document_leads_somewhere() -> None:
    document = build_openapi_document()

    def references(node: Any) -> set[str]:
        if isinstance(node, dict):
            own = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
            return own.union(*map(references, node.values()))
        return set().union(*map(references, node)) if isinstance(node, list) else set()

    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert references(document) <= known
    assert len(known) > 5


@pytest.mark.parametrize("path", sorted(BASE))
def test_what_the_document_allows_at_its_edges_is_taken(server: Any, path: str) -> None:
    """Numbers at their bounds, booleans, and every word of a choice, as the schema names them."""
    schemas = build_openapi_document()["components"]["schemas"]
    kind = "ChatRequest" if path == "chat/completions" else "CompletionRequest"
    apart = {"n", "tool_choice", "reasoning_effort", "min_tokens", "max_draft_tokens"}  # bound to others
    with httpx.Client(base_url=f"{server.url}/v1/", timeout=PATIENCE) as client:
        for name, schema in schemas[kind]["properties"].items():
            for value in [] if name in apart else edges(schema):
                body = {**BASE[path], name: value}
                if name == "top_logprobs":
                    body["logprobs"] = True
                reply = client.post(path, json=body)
                assert reply.status_code == 200, (name, value, reply.text)


def edges(schema: dict[str, Any]) -> list[Any]:
    found: list[Any] = []
    for option in schema.get("anyOf", [schema]):
        found += option.get("enum", [])
        found += [option[bound] for bound in ("minimum", "maximum") if bound in option]
        found += {"boolean": [True, False], "null": [None]}.get(option.get("type", ""), [])
    return found


@pytest.mark.parametrize("path", sorted(BASE))
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_body_makes_the_server_fail(server: Any, path: str, data: st.DataObject) -> None:
    changed = data.draw(st.dictionaries(st.sampled_from(FIELDS[path]), JSON, max_size=3))
    body = {**BASE[path], **changed, "stream": False}
    reply = httpx.post(f"{server.url}/v1/{path}", json=body, timeout=PATIENCE)
    assert reply.status_code in (200, 400, 404), reply.text
    if reply.status_code != 200:
        assert set(reply.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("depth", [10, 300, 480, 900, 960, 980, 990, 100_000])
@pytest.mark.parametrize("field", ["response_format", "structured_outputs", "tools", "chat_template_kwargs"])
def test_no_depth_of_nesting_makes_the_server_fail(server: Any, field: str, depth: int) -> None:
    deep = '{"a":' * depth + "1" + "}" * depth
    wrapped = {
        "response_format": '{"type": "json_schema", "json_schema": {"name": "a", "schema": %s}}',
        "structured_outputs": '{"json": %s}',
        "tools": '[{"type": "function", "function": {"name": "a", "parameters": %s}}]',
        "chat_template_kwargs": '{"enable_thinking": %s}',
    }[field] % deep
    messages = '"messages": [{"role": "user", "content": "hi"}]'
    body = f'{{"model": "echo", {messages}, "tool_choice": "required", "{field}": {wrapped}}}'
    if field != "tools":
        body = body.replace('"tool_choice": "required", ', "")
    reply = httpx.post(f"{server.url}/v1/chat/completions", content=body, timeout=PATIENCE)
    assert reply.status_code in (200, 400), reply.text


@pytest.mark.parametrize("path", sorted(BASE))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=50) | JSON.map(lambda value: repr(value).encode(errors="replace")))
def test_no_garbage_makes_the_server_fail(server: Any, path: str, content: bytes) -> None:
    reply = httpx.post(f"{server.url}/v1/{path}", content=content, timeout=PATIENCE)
    assert reply.status_code == 400, reply.text
