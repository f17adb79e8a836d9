"""Every parameter reaches the engine, and what comes back is told in the shape of whoever asked."""

from __future__ import annotations

import math
import re
from dataclasses import fields
from typing import Any

import openai
import pytest

from turbo_runtime.messages import SamplingParams

ALL: dict[str, Any] = {
    "temperature": 0.5,
    "top_p": 0.9,
    "presence_penalty": 0.25,
    "frequency_penalty": -0.5,
    "logit_bias": {"7": 5, "3": -100},
    "seed": 11,
    "max_tokens": 40,
}
EXTRA: dict[str, Any] = {
    "top_k": 20,
    "min_p": 0.125,
    "repetition_penalty": 1.5,
    "min_tokens": 3,
    "bad_words": ["fox"],
    "stop_token_ids": [9],
    "prompt_logprobs": 1,
    "speculation": "suffix",
    "max_draft_tokens": 5,
    "cache_salt": "pepper",
}
TOLD = (
    "temperature=0.5, top_p=0.9, top_k=20, min_p=0.125, repetition_penalty=1.5, presence_penalty=0.25, "
    "frequency_penalty=-0.5, logit_bias=((3, -100.0), (7, 5.0)), min_tokens=3, bad_words=(("
)


def last_submit(server: Any) -> str:
    lines = server.engine_log.read_text().splitlines()
    return next(line for line in reversed(lines) if line.startswith("GenerationRequest("))


def test_every_parameter_reaches_the_engine(server: Any, client: openai.OpenAI) -> None:
    client.completions.create(model="echo", prompt="abc", logprobs=2, extra_body=EXTRA, **ALL)
    told = last_submit(server)
    assert TOLD in told
    unset = {field.name for field in fields(SamplingParams) if f" {field.name}={field.default!r}," in told}
    assert unset == {"grammar"}, "a parameter that this test does not send, or that nobody passes on"
    assert "seed=11, max_tokens=40, stop_token_ids=frozenset({0, 9})" in told
    assert "logprobs=2, prompt_logprobs=1, draft_method='suffix', max_draft_tokens=5" in told
    assert told.endswith("tenant='', salt='pepper', draft='default', lora_id=0)")


def test_ignore_eos_leaves_only_the_requests_own_stops(server: Any, client: openai.OpenAI) -> None:
    extra = {"ignore_eos": True, "stop_token_ids": [9]}
    client.completions.create(model="echo", prompt="abc", extra_body=extra)
    assert "stop_token_ids=frozenset({9})" in last_submit(server)


@pytest.mark.parametrize(
    ("value", "drafting"), [(True, "auto"), (False, "off"), ("heads", "heads"), ("off", "off")]
)
def test_speculation_is_a_switch_or_a_method(
    server: Any, client: openai.OpenAI, value: Any, drafting: str
) -> None:
    client.completions.create(model="echo", prompt="abc", extra_body={"speculation": value})
    assert f"draft_method='{drafting}'" in last_submit(server)


def test_a_stop_token_or_string_is_named_and_is_no_text(server: Any, client: openai.OpenAI) -> None:
    by_string = client.completions.create(model="echo", prompt="abc", temperature=0, stop="b").choices[0]
    assert (by_string.text, by_string.finish_reason, by_string.stop_reason) == ("a", "stop", "b")
    prompt = re.search(r"prompt=\((\d+), (\d+)", last_submit(server))
    assert prompt
    second = int(prompt[2])
    by_token = client.completions.create(
        model="echo", prompt="abc", temperature=0, extra_body={"stop_token_ids": [second]}
    ).choices[0]
    assert (by_token.text, by_token.finish_reason, by_token.stop_reason) == ("a", "stop", second)
    plain = client.completions.create(model="echo", prompt="abc", temperature=0).choices[0]
    assert (plain.finish_reason, plain.stop_reason) == ("stop", None)


def test_no_stop_string_ends_an_answer_before_its_least_length(client: openai.OpenAI) -> None:
    extra = {"min_tokens": 3}
    reply = client.completions.create(
        model="echo", prompt="abcab", temperature=0, stop="b", extra_body=extra
    ).choices[0]
    assert reply.text == "abca"


def test_a_chats_logprobs_are_of_every_counted_token_and_their_bytes_join_to_the_text(
    client: openai.OpenAI,
) -> None:
    messages: Any = [{"role": "user", "content": "aß🎈"}]
    request = {"model": "echo", "messages": messages, "temperature": 0, "logprobs": True, "top_logprobs": 2}
    reply = client.chat.completions.create(**request)
    content = reply.choices[0].logprobs.content
    assert len(content) == reply.usage.completion_tokens
    assert bytes(byte for one in content[:-1] for byte in one.bytes).decode() == "aß🎈"
    assert content[-1].token == "<|end|>"
    assert content[0].logprob == -1.5
    assert [(one.token, one.logprob) for one in content[0].top_logprobs] == [("<|end|>", -0.5), ("a", -1.5)]
    streamed = [
        one
        for event in client.chat.completions.create(**request, stream=True)
        if event.choices[0].logprobs
        for one in event.choices[0].logprobs.content
    ]
    assert streamed == content


def test_completions_tell_logprobs_with_offsets_and_echo_the_prompt(client: openai.OpenAI) -> None:
    request = {"model": "echo", "prompt": "abé", "temperature": 0, "logprobs": 1, "echo": True}
    choice = client.completions.create(**request).choices[0]
    assert choice.text == "abéabé"
    told = choice.logprobs
    assert told.tokens == ["a", "b", "bytes:\\xc3", "bytes:\\xa9"] * 2 + ["<|end|>"]
    assert told.token_logprobs == [None, *[-1.5] * 8]
    assert told.top_logprobs[0] is None
    assert told.top_logprobs[1] == {"<|end|>": -0.5, "b": -1.5}
    assert told.text_offset[:3] == [0, 1, 2]
    events = list(client.completions.create(**request, stream=True))
    assert "".join(event.choices[0].text for event in events) == "abéabé"
    parts = [event.choices[0].logprobs for event in events if event.choices[0].logprobs]
    assert [token for part in parts for token in part.tokens] == told.tokens
    assert [offset for part in parts for offset in part.text_offset] == told.text_offset


def test_prompt_logprobs_are_told_as_vllm_tells_them(client: openai.OpenAI) -> None:
    reply = client.completions.create(
        model="echo", prompt="ab", temperature=0, extra_body={"prompt_logprobs": 1}
    )
    first, second = reply.choices[0].prompt_logprobs
    assert first is None
    ranks = {entry["decoded_token"]: (entry["rank"], entry["logprob"]) for entry in second.values()}
    assert ranks == {"<|end|>": (1, -0.5), "b": (2, -1.5)}
    assert all(math.isfinite(entry["logprob"]) for entry in second.values())


def test_usage_counts_what_was_found_in_the_cache_once_a_prompt(client: openai.OpenAI) -> None:
    reply = client.completions.create(model="echo", prompt=["abcd", "ab"], n=2, temperature=0)
    assert reply.usage.prompt_tokens_details.cached_tokens == 3


def test_the_reply_tells_the_speedup_of_its_own_answers(client: openai.OpenAI) -> None:
    reply = client.completions.create(model="echo", prompt="abc", temperature=0)
    assert reply.turbo["speedup"] == 1.5
    plain = client.completions.create(
        model="echo", prompt="abc", temperature=0, extra_body={"speculation": "off"}
    )
    assert plain.turbo["speedup"] is None  # nothing was measured


def test_the_speedup_of_several_answers_is_that_of_their_time(client: openai.OpenAI) -> None:
    """1.5 and 3 times as fast, four tokens each: of 8 whiles without drafts 4 / 1.5 + 4 / 3 are left."""
    reply = client.completions.create(model="echo", prompt="abc", n=2, temperature=0)
    assert reply.usage.completion_tokens == 8
    assert reply.turbo["speedup"] == pytest.approx(2.0)


def test_an_answer_that_a_stop_string_ends_has_its_speedup_too(client: openai.OpenAI) -> None:
    reply = client.completions.create(model="echo", prompt="abcdefghi", temperature=0, stop="d")
    assert (reply.choices[0].text, reply.turbo["speedup"]) == ("abc", 1.5)


@pytest.mark.parametrize("options", [{"include_usage": True}, {}, {"continuous_usage_stats": True}])
def test_a_stream_ends_with_the_figures_of_the_whole_reply(
    client: openai.OpenAI, options: dict[str, bool]
) -> None:
    request: dict[str, Any] = {"model": "echo", "prompt": "abc", "temperature": 0, "seed": 4}
    whole = client.completions.create(**request)
    assert (whole.turbo["drafted_tokens"], whole.turbo["accepted_tokens"]) == (8, 2)
    details = whole.usage.completion_tokens_details
    assert (details.accepted_prediction_tokens, details.rejected_prediction_tokens) == (2, 6)
    *_, last = client.completions.create(**request, stream=True, stream_options=options)
    assert last.turbo == whole.turbo
    if options:
        assert last.usage == whole.usage


def test_continuous_usage_is_told_in_every_event_the_first_included(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "a text of some steps"}]
    request: dict[str, Any] = {"model": "echo", "messages": messages, "temperature": 0}
    whole = client.chat.completions.create(**request)
    options: Any = {"continuous_usage_stats": True}
    events = list(client.chat.completions.create(**request, stream=True, stream_options=options))
    counts = [(event.usage.completion_tokens, event.turbo["accepted_tokens"]) for event in events]
    assert counts == sorted(counts)  # a step that a busy server tells with the next is none of its own
    assert counts[0][0] > 0
    assert counts[-1] == (whole.usage.completion_tokens, whole.turbo["accepted_tokens"])
