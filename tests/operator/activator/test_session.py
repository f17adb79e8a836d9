"""Turns of one conversation have one session, and other conversations others."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turbo_operator.activator.session import OPENING, session_of

texts = st.text(max_size=40)


def of(key: str | None = None, **body: Any) -> str | None:
    return session_of(json.dumps(body).encode(), key)


def said(*texts: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[number % 2], "content": text} for number, text in enumerate(texts)]


@given(system=texts, first=texts, others=st.lists(texts, max_size=4))
def test_all_turns_of_a_chat_have_the_session_of_the_first(
    system: str, first: str, others: list[str]
) -> None:
    begin = [{"role": "system", "content": system}]
    assert of(messages=begin + said(first)) == of(messages=begin + said(first, *others), temperature=0.5)


@given(first=texts, other=texts, system=texts)
def test_chats_that_differ_in_their_first_question_are_two(first: str, other: str, system: str) -> None:
    begin = [{"role": "system", "content": system}]
    same = of(messages=begin + said(first)) == of(messages=begin + said(other))
    assert same == (first == other)


@given(prompt=st.text(min_size=OPENING, max_size=2 * OPENING), more=texts)
def test_a_prompt_that_grows_stays_in_its_session(prompt: str, more: str) -> None:
    assert of(prompt=prompt) == of(prompt=prompt + more) is not None


def test_keys_and_models_hold_conversations_of_their_own() -> None:
    chat = said("hello")
    assert len({of(messages=chat), of("Bearer a", messages=chat), of("Bearer b", messages=chat)}) == 3
    assert of(messages=chat, model="a") != of(messages=chat, model="b")


def test_a_prompt_cache_key_says_what_belongs_together() -> None:
    keyed = {"prompt_cache_key": "it"}
    assert of(messages=said("a"), **keyed) == of(messages=said("b"), **keyed) != of(messages=said("a"))


@pytest.mark.parametrize(
    "body", [b"", b"no json", b"[]", b"1", b"{}", b'{"messages": []}', b'{"prompt": ""}', b"[" * 100_000]
)
def test_what_is_no_conversation_has_no_session(body: bytes) -> None:
    assert session_of(body, None) is None


@given(
    st.recursive(
        st.none() | texts | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(texts, inner)
    )
)
def test_whatever_is_sent_is_read_without_an_error(value: Any) -> None:
    for name in ("messages", "prompt", "prompt_cache_key"):
        of(**{name: value})
