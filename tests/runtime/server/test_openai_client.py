"""The official client against a real server: whole and streamed, sync and async."""

from __future__ import annotations

import openai
import pytest

CHAT = {"model": "echo", "messages": [{"role": "user", "content": "hello wörld 🎈 again"}]}
TEXT = "hello wörld 🎈 again"


def test_a_greedy_chat_is_answered_whole(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(**CHAT, temperature=0)
    assert reply.choices[0].message.content == TEXT
    assert reply.choices[0].message.role == "assistant"
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert reply.usage.completion_tokens == reply.usage.prompt_tokens + 1  # the echo and the end of sequence
    assert reply.system_fingerprint.endswith("-bitwise")


def test_a_streamed_chat_joins_to_the_whole_one(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(**CHAT, temperature=0)
    options = {"include_usage": True}
    events = list(client.chat.completions.create(**CHAT, temperature=0, stream=True, stream_options=options))
    assert "".join(event.choices[0].delta.content or "" for event in events[:-1]) == TEXT
    assert [(event.choices[0].delta.role, event.choices[0].delta.content) for event in events[:2]] == [
        ("assistant", ""),
        (None, events[1].choices[0].delta.content),
    ]
    assert events[1].choices[0].delta.content
    assert [event.choices[0].finish_reason for event in events[:-1]][-1] == "stop"
    assert all(event.usage is None for event in events[:-1])
    assert events[-1].choices == []
    assert events[-1].usage == whole.usage
    assert len({event.id for event in events}) == 1


def test_a_stream_without_usage_tells_the_seed_in_its_last_event(client: openai.OpenAI) -> None:
    events = list(client.chat.completions.create(**CHAT, seed=3, stream=True))
    assert events[-1].choices[0].finish_reason == "stop"
    assert events[-1].turbo["seed"] == 3


async def test_the_async_client_streams(server) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        whole = await client.chat.completions.create(**CHAT, temperature=0)
        stream = await client.chat.completions.create(**CHAT, temperature=0, stream=True)
        text = "".join([event.choices[0].delta.content or "" async for event in stream])
    assert text == whole.choices[0].message.content == TEXT


def test_text_parts_and_a_developer_message_make_one_prompt(client: openai.OpenAI) -> None:
    messages = [
        {"role": "developer", "content": "be "},
        {"role": "user", "content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]},
    ]
    reply = client.chat.completions.create(model="echo", messages=messages, temperature=0)
    assert reply.choices[0].message.content == "be hello"


def test_a_clients_own_reply_is_taken_back_as_history(client: openai.OpenAI) -> None:
    first = client.chat.completions.create(**CHAT, temperature=0).choices[0].message
    messages = [*CHAT["messages"], first.model_dump(), {"role": "user", "content": "more"}]
    reply = client.chat.completions.create(model="echo", messages=messages, temperature=0)
    assert reply.choices[0].message.content == f"{TEXT}{TEXT}more"


def test_choices_of_one_prompt_differ_and_keep_their_order(client: openai.OpenAI) -> None:
    reply = client.completions.create(model="echo", prompt="abc", n=3, seed=0, temperature=1, max_tokens=8)
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    assert [choice.text for choice in reply.choices] == ["abc", "bca", "cab"]
    assert reply.usage.prompt_tokens == 3  # counted once


def test_choices_are_streamed_side_by_side(client: openai.OpenAI) -> None:
    texts = {0: "", 1: ""}
    stream = client.completions.create(model="echo", prompt="abc", n=2, seed=0, max_tokens=8, stream=True)
    for event in stream:
        texts[event.choices[0].index] += event.choices[0].text
    assert texts == {0: "abc", 1: "bca"}


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("hello", ["hello"]),
        (["hello", "again"], ["hello", "again"]),
        ([5, 6, 7], None),
        ([[5, 6, 7], [8]], None),
    ],
    ids=["text", "texts", "ids", "lists of ids"],
)
def test_every_form_of_prompt_is_taken(client: openai.OpenAI, prompt: list, texts: list[str] | None) -> None:
    reply = client.completions.create(model="echo", prompt=prompt, temperature=0)
    if texts is None:
        lists = prompt if isinstance(prompt[0], list) else [prompt]
        assert reply.usage.prompt_tokens == sum(map(len, lists))
        assert len(reply.choices) == len(lists)
    else:
        assert [choice.text for choice in reply.choices] == texts


def test_a_stop_string_cuts_the_text_before_it(client: openai.OpenAI) -> None:
    for stop, text in (("wör", "hello "), (["zzz", "🎈 a"], "hello wörld "), (["o w", "lo"], "hel")):
        reply = client.chat.completions.create(**CHAT, temperature=0, stop=stop)
        stream = client.chat.completions.create(**CHAT, temperature=0, stop=stop, stream=True)
        assert reply.choices[0].message.content == text
        assert reply.choices[0].finish_reason == "stop"
        assert "".join(event.choices[0].delta.content or "" for event in stream) == text


def test_a_stop_string_counts_the_same_tokens_with_and_without_speculation(client: openai.OpenAI) -> None:
    counts = {
        client.chat.completions.create(
            **CHAT, temperature=0, stop="o w", extra_body={"speculation": speculation}
        ).usage.completion_tokens
        for speculation in (True, False)
    }
    assert len(counts) == 1


def test_drafts_behind_a_stop_string_are_not_counted(client: openai.OpenAI) -> None:
    # the first step brings abc, two of them drafted; b ends the answer
    reply = client.completions.create(model="echo", prompt="abcde", temperature=0, stop="b")
    assert reply.usage.completion_tokens == 2
    assert (reply.turbo["accepted_tokens"], reply.turbo["acceptance_length"]) == (2, 2)
    reply = client.completions.create(model="echo", prompt="abcde", temperature=0, stop="a")
    assert reply.usage.completion_tokens == 1
    assert (reply.turbo["accepted_tokens"], reply.turbo["acceptance_length"]) == (1, 1)
    details = reply.usage.completion_tokens_details
    assert (details.accepted_prediction_tokens, details.rejected_prediction_tokens) == (1, 2)


def test_max_tokens_ends_an_answer_with_length(client: openai.OpenAI) -> None:
    for limit in (
        {"max_tokens": 2},
        {"max_completion_tokens": 2},
        {"max_tokens": 2, "max_completion_tokens": 2},
    ):
        reply = client.chat.completions.create(**CHAT, temperature=0, **limit)
        assert reply.choices[0].finish_reason == "length"
        assert reply.usage.completion_tokens == 2


def test_completions_have_sixteen_tokens_unless_told(client: openai.OpenAI) -> None:
    reply = client.completions.create(model="echo", prompt="z" * 40, temperature=0)
    assert reply.usage.completion_tokens == 16


def test_a_cut_inside_a_character_is_written_as_the_decoder_writes_it(client: openai.OpenAI) -> None:
    reply = client.completions.create(model="echo", prompt="🎈", temperature=0, max_tokens=2)
    stream = client.completions.create(model="echo", prompt="🎈", temperature=0, max_tokens=2, stream=True)
    assert "".join(event.choices[0].text for event in stream) == reply.choices[0].text == "\ufffd"


def test_a_drawn_seed_is_told_and_repeats_the_answer(client: openai.OpenAI) -> None:
    first = client.chat.completions.create(**CHAT)
    again = client.chat.completions.create(**CHAT, seed=first.turbo["seed"])
    assert again.choices[0].message.content == first.choices[0].message.content
    seeds = {client.chat.completions.create(**CHAT).turbo["seed"] for _ in range(3)}
    assert len(seeds) == 3


def test_the_reply_tells_what_speculation_did(client: openai.OpenAI) -> None:
    request = {"model": "echo", "prompt": "abcde", "temperature": 0}
    on = client.completions.create(
        **request
    )  # six tokens in two steps of three: 2 of 4 drafts accepted in each
    assert on.turbo["drafted_tokens"] == 8
    assert on.turbo["accepted_tokens"] == 4
    assert on.turbo["acceptance_length"] == 3
    assert on.turbo["guarantee"] == "bitwise"
    assert on.usage.completion_tokens_details.accepted_prediction_tokens == 4
    assert on.usage.completion_tokens_details.rejected_prediction_tokens == 4
    off = client.completions.create(**request, extra_body={"speculation": False})
    assert off.choices[0].text == on.choices[0].text
    assert off.turbo["drafted_tokens"] == 0
    assert off.turbo["acceptance_length"] is None


def test_the_served_model_is_listed_under_the_last_part_of_its_path(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["echo"]
    assert client.models.retrieve("echo").owned_by == "turbo"


def test_a_failed_answer_is_a_500_with_the_engines_sentence(client: openai.OpenAI) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        client.completions.create(model="echo", prompt="fail please")
    assert caught.value.status_code == 500
    assert caught.value.body["message"] == "The script says so."


def test_a_failed_stream_ends_with_the_engines_sentence(client: openai.OpenAI) -> None:
    stream = client.completions.create(model="echo", prompt="fail please", stream=True)
    with pytest.raises(openai.APIError, match="The script says so"):
        list(stream)


def test_a_prompt_that_is_repeated_in_one_request_is_drawn_anew(client: openai.OpenAI) -> None:
    drawn = client.completions.create(
        model="echo", prompt=["abcdef"] * 3, temperature=1, seed=4, max_tokens=50, n=2
    )
    alone = client.completions.create(
        model="echo", prompt="abcdef", temperature=1, seed=4, max_tokens=50, n=6
    )
    assert [choice.text for choice in drawn.choices] == [choice.text for choice in alone.choices]
    assert len({choice.text for choice in alone.choices}) == 6
