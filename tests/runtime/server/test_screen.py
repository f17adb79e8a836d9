"""What `turbo chat` shows on a terminal, as a terminal shows it."""

from __future__ import annotations

import io
import re
import time

from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from turbo_dev.server_process import PATIENCE
from turbo_runtime.cli.chat import AnswerScreen
from turbo_runtime.client.client import Progress

WIDTH, HEIGHT = 40, 12
TOKEN = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)")


def window(written: str) -> list[str]:
    """All rows that a terminal has shown, down to the last; those above the window cannot be changed."""
    rows, row, column = [""], 0, 0
    for number, letter, end, text in TOKEN.findall(written):
        if text:
            assert "\x1b" not in text
            rows[row] = rows[row][:column].ljust(column) + text + rows[row][column + len(text) :]
            column += len(text)
            assert column <= WIDTH
        elif end == "\n":
            row, column = row + 1, 0
            rows += [""] * (row == len(rows))
        elif end == "\r":
            column = 0
        elif letter == "A":
            row -= int(number or 1)
            assert row >= max(len(rows) - HEIGHT, 0), "drawn above the window"
        elif letter == "K":
            rows[row] = ""
        else:
            assert letter in "mhl", f"unknown: {number}{letter}"
    return "\n".join(one.rstrip() for one in rows).rstrip("\n").split("\n")


def terminal() -> tuple[io.StringIO, Console]:
    screen = io.StringIO()
    return screen, Console(file=screen, force_terminal=True, width=WIDTH, height=HEIGHT, highlight=False)


def shown(pieces: list[str]) -> list[str]:
    written, console = terminal()
    with AnswerScreen(console, Progress(tokens=1, events=1)) as screen:
        for piece in pieces:
            screen.add("", piece)
    return window(written.getvalue())


def test_of_a_paragraph_larger_than_the_window_the_end_is_seen_while_it_grows() -> None:
    written, console = terminal()
    words = [f"word{number} " for number in range(150)]
    with AnswerScreen(console, Progress(tokens=150)) as screen:
        for word in words:
            screen.add("", word)
        deadline = time.monotonic() + PATIENCE
        while "word149" not in written.getvalue() and time.monotonic() < deadline:
            time.sleep(0.02)
        rows = window(written.getvalue())
    assert rows[-2].endswith("word149")
    assert rows[-1].startswith("150 tokens")
    assert " ".join(rows[:-1]).split() == "".join(words).split()


@settings(max_examples=60, deadline=None)
@given(data=st.data(), text=st.text(st.sampled_from("ab Ωäöü-\n\t"), min_size=1, max_size=200))
def test_how_the_text_comes_changes_nothing_of_what_stays(data: st.DataObject, text: str) -> None:
    places = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=30)))
    pieces = [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]
    *rows, status = shown(pieces)
    assert [*rows, status] == shown([text])
    assert "".join("".join(rows).split()) == "".join(text.split())
    assert status == "1 tokens"


def test_thoughts_and_answer_are_paragraphs_and_a_refused_request_has_no_figures() -> None:
    written, console = terminal()
    with AnswerScreen(console, Progress()) as screen:
        for thought, text in (("hm, ", ""), ("well", ""), ("", "Yes"), ("", ".")):
            screen.add(thought, text)
    assert window(written.getvalue()) == ["hm, well", "", "Yes."]


def test_a_terminal_is_not_made_to_obey_what_a_model_says() -> None:
    said = shown(["hi \x1b]0;owned\x07 \x1b[2Jthere\x9b1A\b\r\n", "\ud83d\ttab\x7f"])
    assert said[:2] == ["hi ]0;owned [2Jthere1A", "\N{REPLACEMENT CHARACTER}       tab"]
