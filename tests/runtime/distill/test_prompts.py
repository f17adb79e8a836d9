"""Prompts are read as written, refused with file and line, and dealt the same way whatever their order."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turbo_runtime.distill.data.responses import deal, render_turns
from turbo_runtime.prompts import Prompt, PromptsError, read_prompts

SHARES = {"test": 0.2, "validation": 0.1, "training": 1.0}


def written(folder: Path, *rows: object) -> Path:
    file = folder / "help.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


def test_a_line_is_a_text_or_a_chat_and_says_its_domain_or_has_the_file_s(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    file = written(tmp_path, {"prompt": "Hello"}, {"messages": chat, "domain": "talk", "id": "a"})
    assert read_prompts([file]) == [
        Prompt("help-1", "help", ({"role": "user", "content": "Hello"},)),
        Prompt("a", "talk", tuple(chat)),
    ]
    assert read_prompts([tmp_path]) == read_prompts([file])
    assert [one.domain for one in read_prompts([file], domain="support")] == ["support", "talk"]
    second = tmp_path / "more.jsonl"
    second.write_text('{"prompt": "Hey"}\n')
    of_two = [one.domain for one in read_prompts([file, second], domain="support")]
    assert of_two == ["help", "talk", "more"]  # files tell domains apart


def test_an_id_may_be_a_number_and_a_chat_goes_before_its_text(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "Hi"}]
    file = written(tmp_path, {"id": 7, "prompt": "raw", "messages": chat})
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())  # as some editors begin a file
    assert read_prompts([file]) == [Prompt("7", "help", tuple(chat))]


def test_without_chat_a_text_is_the_prompt_and_messages_are_refused(tmp_path: Path) -> None:
    assert read_prompts([written(tmp_path, {"prompt": "Once"})], chat=False) == [
        Prompt("help-1", "help", (), "Once")
    ]
    file = written(tmp_path, {"messages": [{"role": "user", "content": "Hi"}]})
    with pytest.raises(PromptsError, match="line 1: 'messages' need the chat template"):
        read_prompts([file], chat=False)


def test_a_prompt_that_stands_twice_is_dealt_once(tmp_path: Path) -> None:
    found = read_prompts([written(tmp_path, {"prompt": "Hi"}, {"prompt": "Ho"}, {"prompt": "Hi"})])
    assert len(found) == 3
    assert sum(map(len, deal(found, 0, SHARES).values())) == 2


def test_line_ends_of_unicode_within_a_prompt_end_no_line(tmp_path: Path) -> None:
    text = "one\u2028two\x85three"
    assert read_prompts([written(tmp_path, {"prompt": text})])[0].messages[0]["content"] == text


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("hello", "line 2 is no JSON"),
        ("[1]", "line 2: write an object with 'prompt' or 'messages', not list"),
        ("{}", "line 2: write 'prompt' or 'messages'"),
        ('{"promt": "a"}', "line 2: write 'prompt' or 'messages', not 'promt'"),
        ('{"prompt": 7}', "line 2: prompt must be a text, not 7"),
        ('{"prompt": "\\ud800"}', "line 2 holds half a character"),
        ('{"prompt": ""}', "line 2: prompt must be a text, not ''"),
        ('{"prompt": "a", "domain": 1}', "line 2: domain must be a text, not 1"),
        ('{"messages": []}', "line 2: messages must be a list of turns"),
        ('{"messages": [{"content": "a"}]}', r"line 2: messages\[0\] must be an object with a role"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, told: str) -> None:
    file = tmp_path / "help.jsonl"
    file.write_text(f'{{"prompt": "good"}}\n{line}\n', encoding="utf-8")
    with pytest.raises(PromptsError, match=told):
        read_prompts([file])


def test_what_holds_no_prompt_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PromptsError, match="holds no file"):
        read_prompts([tmp_path])
    with pytest.raises(PromptsError, match="holds no prompt"):
        read_prompts([written(tmp_path)])
    with pytest.raises(PromptsError, match="cannot be read"):
        read_prompts([tmp_path / "none.jsonl"])


@given(st.sets(st.text(min_size=1, max_size=6), max_size=40), st.integers(0, 9), st.randoms())
def test_every_prompt_comes_to_one_part_whatever_their_order(texts: set[str], seed: int, mix: object) -> None:
    prompts = [Prompt(text, "ab"[len(text) % 2], (), text) for text in sorted(texts)]
    parts = deal(prompts, seed, SHARES)
    assert sorted(p.text for part in parts.values() for p in part) == sorted(texts)
    for domain in "ab":
        count = sum(p.domain == domain for p in prompts)
        least = 1 if count >= 3 else 0
        assert sum(p.domain == domain for p in parts["test"]) == max(round(0.2 * count), least)
    mixed = list(prompts)
    mix.shuffle(mixed)  # type: ignore[attr-defined]
    assert deal(mixed, seed, SHARES) == parts


def test_of_captured_prompts_the_newest_are_read_whatever_segment_they_are_in(tmp_path: Path) -> None:
    for host, times in (("a", (1.0, 6.0, 3.0)), ("b", (5.0, 2.0))):
        rows = [json.dumps({"at": at, "tenant": "t", "text": f"hello {at}"}) + "\n" for at in times]
        (tmp_path / f"{host}-1790000000000.jsonl").write_text("".join(rows))
    assert [one.captured_at for one in read_prompts([tmp_path], captured=3)] == [3.0, 5.0, 6.0]
    assert read_prompts([tmp_path], captured=0) == []


def test_captured_prompts_are_read_as_the_model_read_them(tmp_path: Path) -> None:
    rows = [{"at": 5.0 + n, "tenant": "a", "text": f"<|user|>hello {n}"} for n in range(2)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "pod-1790000000000.jsonl").write_text(f'{lines}{{"at": 7, "te')  # cut short by a kill
    found = read_prompts([tmp_path])
    assert [(one.written, one.captured_at, one.domain) for one in found] == [
        ("<|user|>hello 0", 5.0, "captured"),
        ("<|user|>hello 1", 6.0, "captured"),
    ]
    assert {one.domain for one in read_prompts([tmp_path], domain="support")} == {"support"}


def test_other_fields_of_a_line_are_left_alone(tmp_path: Path) -> None:
    row = {"prompt": "a", "answer": "b", "domains": "c", "Prompt": "d", "domain": None}
    assert [one.domain for one in read_prompts([written(tmp_path, row)])] == ["help"]


def test_turns_are_read_as_the_server_reads_them() -> None:
    sent = [
        {
            "role": "developer",
            "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}],
        },
        {"role": "user", "content": "Hi", "name": None},
    ]
    assert render_turns(Prompt("help-1", "help", tuple(sent))) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
    ]


def test_a_turn_that_nobody_can_send_is_refused_with_its_prompt_and_field() -> None:
    sent = ({"role": "user", "content": "Hi"}, {"role": "bot", "content": "Ho"})
    with pytest.raises(PromptsError, match=r"prompt help-7: Invalid 'messages\[1\].role'"):
        render_turns(Prompt("help-7", "help", sent))
