"""Prompts of `never_slower` that drafts are found for, and found wrong."""

from __future__ import annotations

import json
import random

from never_slower import COPIED_WORDS, COPIES, RECORDS, _near_copies, _records, _row


def test_copies_are_alike_and_not_the_same() -> None:
    noise, same, words = random.Random(1), 0, 0
    for _ in range(20):
        copies = [line.split() for line in _near_copies(noise).splitlines()[1:]]
        assert len(copies) == COPIES
        assert len({len(copy) for copy in copies}) == 1
        assert len(copies[0]) <= COPIED_WORDS
        same += sum(a == b for a, b in zip(copies[0], copies[1], strict=True))
        words += len(copies[0])
    assert 0.45 * words < same < 0.7 * words  # 9 in 16 are left in both


def test_records_have_one_form_and_random_values() -> None:
    records = [json.loads(line) for line in _records(random.Random(1)).splitlines()[1:]]
    assert len(records) == RECORDS
    assert {tuple(record) for record in records} == {("id", "code", "price")}
    assert len({record["id"] for record in records}) == RECORDS


def test_rows_tell_what_was_drafted() -> None:
    row = _row("misleading", [0.9, 1.0, 1.1], 30, 4)
    assert (row["median"], row["drafted"], row["accepted"]) == (1.0, 30, 4)
    assert list(row) == list(_row("first token", [1.0]))
