"""Stop strings are found wherever the text is cut into pieces."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from turbo_runtime.parsers import StopScanner

LETTERS = st.text("ab", max_size=12)
STOPS = st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=4)


def scan(stops: list[str], parts: list[str]) -> tuple[str, bool]:
    scanner = StopScanner(stops)
    passed = ""
    for part in parts:
        text, stopped = scanner.push(part)
        passed += text
        if stopped:
            return passed, True
    return passed + scanner.flush(), False


@given(stops=STOPS, text=LETTERS)
def test_letter_by_letter_the_text_ends_before_the_stop_that_is_complete_first(
    stops: list[str], text: str
) -> None:
    ends = [end for end in range(len(text) + 1) if any(text[:end].endswith(stop) for stop in stops)]
    if not ends:
        assert scan(stops, list(text)) == (text, False)
        return
    first = text[: ends[0]]
    longest = max(len(stop) for stop in stops if first.endswith(stop))
    assert scan(stops, list(text)) == (first[: len(first) - longest], True)


@given(stops=STOPS, parts=st.lists(LETTERS, max_size=6))
def test_no_stop_string_ever_passes(stops: list[str], parts: list[str]) -> None:
    passed, stopped = scan(stops, parts)
    assert not any(stop in passed for stop in stops)
    assert stopped == any(stop in "".join(parts) for stop in stops)
    assert "".join(parts).startswith(passed)


@given(parts=st.lists(LETTERS, max_size=6))
def test_without_stop_strings_nothing_is_held_back(parts: list[str]) -> None:
    scanner = StopScanner([])
    assert [scanner.push(part) for part in parts] == [(part, False) for part in parts]


def test_what_may_begin_a_stop_string_waits_and_is_let_go() -> None:
    scanner = StopScanner(["###"])
    assert scanner.push("a#") == ("a", False)
    assert scanner.push("#") == ("", False)
    assert scanner.push("b") == ("##b", False)
    assert scanner.push("#") == ("", False)
    assert scanner.flush() == "#"
