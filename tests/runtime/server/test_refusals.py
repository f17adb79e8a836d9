"""What the server does not take is refused by name, in OpenAI's shape, with what to do instead."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai.resources.chat.completions import Completions as ChatCompletions
from openai.resources.completions import Completions

from turbo_dev.server_process import PATIENCE
from turbo_runtime.protocol import UNSUPPORTED, ChatRequest, CompletionRequest

MESSAGES = [{"role": "user", "content": "hello"}]
CHAT_BODY = {"model": "echo", "messages": MESSAGES, "temperature": 0}
TOOL = {"type": "function", "function": {"name": "f"}}
TEXT_BODY = {"model": "echo", "prompt": "hello", "temperature": 0}
# What each parameter is refused with: a value that asks for something.
WANTED: dict[str, Any] = {
    "add_generation_prompt": False,
    "audio": {"voice": "alloy", "format": "wav"},
    "best_of": 2,
    "continue_final_message": True,
    "function_call": {"name": "f"},
    "functions": [{"name": "f"}],
    "guided_choice": ["a", "b"],
    "guided_decoding_backend": "xgrammar",
    "guided_grammar": 'start: "a"',
    "guided_json": {"type": "object"},
    "guided_regex": "a+",
    "include_reasoning": False,
    "messages": MESSAGES,
    "modalities": ["text", "audio"],
    "moderation": {"model": "x"},
    "no_stop_trim": True,
    "prediction": {"type": "content", "content": "x"},
    "priority": 3,
    "prompt": "hello",
    "prompt_cache_options": {"mode": "explicit"},
    "prompt_cache_retention": "24h",
    "return_hidden_states": True,
    "separate_reasoning": False,
    "service_tier": "flex",
    "skip_special_tokens": False,
    "store": True,
    "stream_reasoning": False,
    "suffix": "end",
    "truncate_prompt_tokens": 10,
    "use_beam_search": True,
    "verbosity": "low",
    "web_search_options": {"search_context_size": "low"},
}
HARMLESS = [
    (path, name, value)
    for path, request_type in (("chat/completions", ChatRequest), ("completions", CompletionRequest))
    for name, entry in UNSUPPORTED[request_type].items()
    for value in (*entry.harmless, None)
]


@pytest.fixture
def http(server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{server.url}/v1/", timeout=PATIENCE) as client:
        yield client


def refusal(reply: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error


@pytest.mark.parametrize("name", UNSUPPORTED[ChatRequest])
def test_a_chat_parameter_that_is_not_supported_is_refused_by_name(http: httpx.Client, name: str) -> None:
    error = refusal(http.post("chat/completions", json={**CHAT_BODY, name: WANTED[name]}))
    assert error["param"] == name
    assert name in error["message"]
    assert error["code"] == "unsupported_parameter"


@pytest.mark.parametrize("name", UNSUPPORTED[CompletionRequest])
def test_a_completion_parameter_that_is_not_supported_is_refused_by_name(
    http: httpx.Client, name: str
) -> None:
    error = refusal(http.post("completions", json={**TEXT_BODY, name: WANTED[name]}))
    assert (error["param"], error["code"]) == (name, "unsupported_parameter")


@pytest.mark.parametrize(("path", "name", "value"), HARMLESS)
def test_a_value_that_changes_nothing_is_taken(http: httpx.Client, path: str, name: str, value: Any) -> None:
    body = CHAT_BODY if path == "chat/completions" else TEXT_BODY
    assert http.post(path, json={**body, name: value}).status_code == 200


@pytest.mark.parametrize(
    ("method", "request_type"),
    [(ChatCompletions.create, ChatRequest), (Completions.create, CompletionRequest)],
    ids=["chat", "completions"],
)
def test_every_parameter_of_the_official_client_is_known(method: Any, request_type: Any) -> None:
    transport = {"self", "extra_headers", "extra_query", "extra_body", "timeout"}
    parameters = set(inspect.signature(method).parameters) - transport
    assert parameters <= {*request_type.model_fields, *UNSUPPORTED[request_type]}


def chat(**fields: Any) -> tuple[str, dict[str, Any]]:
    return "chat/completions", {**CHAT_BODY, **fields}


def text(**fields: Any) -> tuple[str, dict[str, Any]]:
    return "completions", {**TEXT_BODY, **fields}


def message(**fields: Any) -> tuple[str, dict[str, Any]]:
    return chat(messages=[*MESSAGES, fields])


@pytest.mark.parametrize(
    ("call", "param", "code"),
    [
        (chat(temperature=2.1), "temperature", "invalid_value"),
        (chat(temperature=-0.1), "temperature", "invalid_value"),
        (chat(temperature="hot"), "temperature", "invalid_type"),
        (chat(temperature=True), "temperature", "invalid_type"),
        (chat(top_p=0), "top_p", "invalid_value"),
        (chat(top_p=1.5), "top_p", "invalid_value"),
        (chat(top_k=-2), "top_k", "invalid_value"),
        (chat(top_k=1.5), "top_k", "invalid_type"),
        (chat(seed=1 << 64), "seed", "invalid_value"),
        (chat(seed="one"), "seed", "invalid_type"),
        (chat(n=0), "n", "invalid_value"),
        (chat(n=129), "n", "invalid_value"),
        (chat(max_tokens=0), "max_tokens", "invalid_value"),
        (chat(max_completion_tokens=-1), "max_completion_tokens", "invalid_value"),
        (chat(max_tokens=3, max_completion_tokens=4), "max_tokens", "invalid_value"),
        (chat(stop=["a", "b", "c", "d", "e"]), "stop", "invalid_value"),
        (chat(stop=""), "stop", "invalid_value"),
        (chat(stop=[1]), "stop[0]", "invalid_type"),
        (chat(stream="yes"), "stream", "invalid_type"),
        (chat(stream_options={"include_usage": True}), "stream_options", "invalid_value"),
        (
            chat(stream=True, stream_options={"include_obfuscation": True}),
            "stream_options.include_obfuscation",
            "unsupported_parameter",
        ),
        (chat(speculation="eagle"), "speculation", "invalid_value"),
        (chat(speculation=1), "speculation", "invalid_value"),
        (chat(max_draft_tokens=65), "max_draft_tokens", "invalid_value"),
        (chat(min_p=1.1), "min_p", "invalid_value"),
        (chat(repetition_penalty=0), "repetition_penalty", "invalid_value"),
        (chat(presence_penalty=2.1), "presence_penalty", "invalid_value"),
        (chat(frequency_penalty=-2.1), "frequency_penalty", "invalid_value"),
        (chat(logit_bias={"5": 101}), "logit_bias.5", "invalid_value"),
        (chat(logit_bias={"5": "x"}), "logit_bias.5", "invalid_type"),
        (chat(logit_bias={"hello": 1}), "logit_bias.hello", "invalid_value"),
        (chat(logit_bias={"99999": 1}), "logit_bias", "invalid_value"),
        (chat(stop_token_ids=[99999]), "stop_token_ids", "invalid_value"),
        (chat(stop_token_ids=[-1]), "stop_token_ids[0]", "invalid_value"),
        (chat(min_tokens=-1), "min_tokens", "invalid_value"),
        (chat(min_tokens=5, max_tokens=4), "min_tokens", "invalid_value"),
        (chat(bad_words=[""]), "bad_words[0]", "invalid_value"),
        (chat(logprobs=1), "logprobs", "invalid_type"),
        (chat(top_logprobs=2), "top_logprobs", "invalid_value"),
        (chat(logprobs=True, top_logprobs=21), "top_logprobs", "invalid_value"),
        (text(logprobs=21), "logprobs", "invalid_value"),
        (text(logprobs=True), "logprobs", "invalid_type"),
        (text(prompt_logprobs=-1), "prompt_logprobs", "invalid_value"),
        (text(best_of=True), "best_of", "unsupported_parameter"),
        (chat(response_format={"type": "xml"}), "response_format.type", "invalid_value"),
        (chat(response_format={"type": "json_schema"}), "response_format", "invalid_value"),
        (
            chat(response_format={"type": "json_schema", "json_schema": {"name": "a"}}),
            "response_format.json_schema.schema",
            "missing_required_parameter",
        ),
        (chat(structured_outputs={}), "structured_outputs", "invalid_value"),
        (chat(structured_outputs={"regex": "a", "choice": ["a"]}), "structured_outputs", "invalid_value"),
        (chat(structured_outputs={"choice": []}), "structured_outputs.choice", "invalid_value"),
        (
            chat(structured_outputs={"regex": "a"}, response_format={"type": "json_object"}),
            "structured_outputs",
            "invalid_value",
        ),
        (
            chat(tools=[{"type": "function", "function": {}}]),
            "tools[0].function.name",
            "missing_required_parameter",
        ),
        (chat(tools=[TOOL, TOOL]), "tools", "invalid_value"),
        (chat(tools=[TOOL], tool_choice="maybe"), "tool_choice", "invalid_value"),
        (chat(tool_choice="required"), "tool_choice", "invalid_value"),
        (
            chat(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "g"}}),
            "tool_choice",
            "invalid_value",
        ),
        (
            chat(tools=[TOOL], tool_choice="required", response_format={"type": "json_object"}),
            "tool_choice",
            "invalid_value",
        ),
        (chat(reasoning_effort="high"), "reasoning_effort", "unsupported_parameter"),
        (chat(chat_template_kwargs={"messages": []}), "chat_template_kwargs.messages", "invalid_value"),
        (chat(chat_template_kwargs={"mood": 1}), "chat_template_kwargs.mood", "invalid_value"),
        (chat(cache_salt=""), "cache_salt", "invalid_value"),
        (chat(user=5), "user", "invalid_type"),
        (chat(messages=[]), "messages", "invalid_value"),
        (chat(messages="hello"), "messages", "invalid_type"),
        (chat(messages=None), "messages", "missing_required_parameter"),
        (message(role="robot", content="x"), "messages[1].role", "invalid_value"),
        (message(role="tool", content="x"), "messages[1]", "invalid_value"),
        (message(role="user", content="x", reasoning_content="y"), "messages[1]", "invalid_value"),
        (message(role="user"), "messages[1]", "invalid_value"),
        (message(role="user", content=5), "messages[1].content", "invalid_type"),
        (
            message(role="user", content=[{"type": "image_url", "image_url": {"url": "x"}}]),
            "messages[1].content",
            "invalid_value",
        ),
        (
            message(role="assistant", content="x", tool_calls=[{"id": "a"}]),
            "messages[1].tool_calls[0].function",
            "missing_required_parameter",
        ),
        (
            message(role="assistant", tool_calls=[{"id": "a", "function": {"name": "f", "arguments": "[]"}}]),
            "messages[1].tool_calls[0].function.arguments",
            "invalid_value",
        ),
        (chat(messages=[{"role": "assistant", "content": "x"}]), "messages", "invalid_value"),
        (chat(temprature=1), "temprature", "unknown_parameter"),
        (chat(model=None), "model", "missing_required_parameter"),
        (text(prompt=None), "prompt", "missing_required_parameter"),
        (text(prompt=[]), "prompt", "invalid_value"),
        (text(prompt=""), "prompt", "invalid_value"),
        (text(prompt=["a", 1]), "prompt", "invalid_value"),
        (text(prompt=[1, 10**9]), "prompt", "invalid_value"),
        (text(prompt=[-1]), "prompt", "invalid_value"),
        (text(prompt=[True]), "prompt", "invalid_value"),
        (text(prompt=[[]]), "prompt", "invalid_value"),
        (text(prompt="z" * 3000), "prompt", "context_length_exceeded"),
        (text(max_tokens=2048), "max_tokens", "context_length_exceeded"),
        (chat(max_completion_tokens=2048), "max_completion_tokens", "context_length_exceeded"),
        (text(prompt=["a"] * 4, n=100), "n", "invalid_value"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_wrong_value_is_refused_and_its_field_named(
    http: httpx.Client, call: tuple[str, dict[str, Any]], param: str, code: str
) -> None:
    error = refusal(http.post(call[0], json=call[1]))
    assert (error["param"], error["code"]) == (param, code)
    assert error["type"] == "invalid_request_error"


def test_an_unknown_parameter_is_answered_with_the_nearest_one(http: httpx.Client) -> None:
    error = refusal(http.post("chat/completions", json={**CHAT_BODY, "temprature": 1}))
    assert "did you mean 'temperature'" in error["message"]


def test_the_templates_own_words_reach_the_client(http: httpx.Client) -> None:
    messages = [{"role": "assistant", "content": "x"}]
    error = refusal(http.post("chat/completions", json={**CHAT_BODY, "messages": messages}))
    assert "an assistant does not speak first" in error["message"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'"x"', b'{"a": NaN}', b"\xff", b"[" * 100_000, b'{"model": "\\uD800"}']
)
def test_a_body_that_is_no_json_object_is_refused(http: httpx.Client, body: bytes) -> None:
    assert refusal(http.post("chat/completions", content=body))["code"] == "invalid_json"


def test_a_whole_surrogate_pair_is_a_character(http: httpx.Client) -> None:
    body = json.dumps({**TEXT_BODY, "prompt": "🎈"})
    assert "\\ud83c" in body
    assert http.post("completions", content=body).json()["choices"][0]["text"] == "🎈"


def test_a_body_of_more_than_four_mebibytes_is_refused(http: httpx.Client) -> None:
    for size in (4, 5, 8, 12) * 3:
        body = json.dumps({**TEXT_BODY, "prompt": "z" * (size << 20)}).encode()
        assert http.get("models").status_code == 200  # over a connection that is there already, too
        assert refusal(http.post("completions", content=body), 413)["code"] == "request_too_large"


@pytest.mark.parametrize(
    ("path", "body"),
    [("chat/completions", CHAT_BODY), ("completions", TEXT_BODY)],
)
def test_a_grammar_that_the_engine_refuses_is_refused_before_a_stream_begins(
    http: httpx.Client, path: str, body: dict[str, Any]
) -> None:
    for regex, status in (("refuse", 400), ("h.*", 200)):
        reply = http.post(path, json={**body, "stream": True, "structured_outputs": {"regex": regex}})
        assert reply.status_code == status
        assert ("data: [DONE]" in reply.text) == (status == 200)


def test_another_model_does_not_exist(client: openai.OpenAI) -> None:
    for call in (
        lambda: client.chat.completions.create(model="gpt", messages=MESSAGES),
        lambda: client.completions.create(model="gpt", prompt="x"),
        lambda: client.models.retrieve("gpt"),
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            call()
        assert caught.value.code == "model_not_found"
        assert caught.value.param == "model"
        assert "'echo'" in caught.value.message


def test_an_unknown_path_and_a_wrong_method_are_told_in_openais_shape(http: httpx.Client) -> None:
    unknown = refusal(http.post("embeddings", json={}), 404)
    assert "/v1/embeddings" in unknown["message"]
    assert "/v1/chat/completions, /v1/completions, /v1/models" in unknown["message"]
    assert unknown["code"] == "not_found"
    assert refusal(http.get("completions"), 405)["code"] == "method_not_allowed"


def test_a_slash_too_many_behind_models_changes_nothing(http: httpx.Client) -> None:
    assert http.get("models/").json() == http.get("models").json()
