"""Text comes out in whole characters, and all of it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turbo_runtime.tokenization.tokenizer import REPLACEMENT, Detokenizer, ServedTokenizer


@pytest.fixture(scope="session")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> ServedTokenizer:
    directory = tmp_path_factory.mktemp("tokenizer")
    path = Path(__file__).with_name("scripted_server.py")
    spec = importlib.util.spec_from_file_location("scripted_server", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["scripted_server"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    module.write_tokenizer(directory)
    return ServedTokenizer(directory)


def pieces(tokenizer: ServedTokenizer, ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer.decode, tokenizer.is_skipped)
    return [*[detokenizer.push(token) for token in ids], detokenizer.flush()]


@given(text=st.text())
def test_a_text_comes_back_whole_and_no_piece_holds_half_a_character(byte_level, text: str) -> None:
    parts = pieces(byte_level, list(byte_level.encode(text)))
    assert "".join(parts) == text
    if REPLACEMENT not in text:
        assert not any(REPLACEMENT in part for part in parts)


@given(data=st.data())
def test_any_tokens_give_the_text_of_their_decoding_at_once(byte_level, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, 256), max_size=40))  # bytes in any order, most of them no UTF-8
    assert "".join(pieces(byte_level, ids)) == byte_level.decode(ids)


HALVES = [b"\xe2", b"\x82", b"\xac", b"\xf0\x9f", b"\x98\x88", b"\x88\xf0", b"\x80" * 5, b"a", b"\xff"]


@given(
    ids=st.lists(st.sampled_from(range(len(HALVES))) | st.sampled_from([0, 0, 1, 2, 3, 4, 5]), max_size=60),
    lone=st.integers(0, 12),
)
def test_tokens_of_several_bytes_give_the_text_of_their_decoding_at_once(ids: list[int], lone: int) -> None:
    ids = [*ids, *[0] * lone, *ids]

    def decode(some) -> str:
        return b"".join(HALVES[token] for token in some).decode(errors="replace")

    detokenizer = Detokenizer(decode)
    parts = [*[detokenizer.push(token) for token in ids], detokenizer.flush()]
    assert "".join(parts) == decode(ids)


@pytest.mark.parametrize("what", ["end", "half a character", "a padding id"])
def test_tokens_without_text_of_their_own_cost_no_more_and_more(byte_level, what: str) -> None:
    tokens = {"end": 0, "a padding id": 100_000}
    halves = (token for token in range(256) if byte_level.token_bytes(token) == b"\xe2")
    token = tokens[what] if what in tokens else next(halves)
    longest = 0

    def decode(ids) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return byte_level.decode(ids)

    detokenizer = Detokenizer(decode, byte_level.is_skipped)
    text = "".join(detokenizer.push(token) for token in [*byte_level.encode("hi"), *[token] * 500])
    assert longest < 16
    assert text + detokenizer.flush() == byte_level.decode([*byte_level.encode("hi"), *[token] * 500])


def test_a_character_of_four_bytes_waits_for_its_last(byte_level) -> None:
    assert pieces(byte_level, list(byte_level.encode("a🎈"))) == ["a", "", "", "", "🎈", ""]


def test_a_leading_space_is_stripped_once_where_the_tokenizer_strips_it() -> None:
    words = {0: "▁hello", 1: "▁world", 2: ""}  # 2 is special

    def decode(ids) -> str:
        return "".join(words[token] for token in ids).replace("▁", " ").removeprefix(" ")

    detokenizer = Detokenizer(decode)
    assert [detokenizer.push(token) for token in (2, 0, 2, 1, 1)] == ["", "hello", "", " world", " world"]
