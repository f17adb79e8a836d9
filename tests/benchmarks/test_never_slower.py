"""Prompts of `never_slower` that drafts are found for, and found wrong; and the engines that answer them."""

from __future__ import annotations

import json
import random

from never_slower import COPIED_WORDS, COPIES, RECORDS, _as_started, _near_copies, _records, _row

from turbo_dev.tiny_engine import network
from turbo_runtime.drafters.proposer import Proposer
from turbo_runtime.engine.loop import Engine
from turbo_runtime.engine.scheduler import Scheduler
from turbo_runtime.kv_cache.block_pool import BlockPool
from turbo_runtime.models.runner import ModelRunner
from turbo_runtime.speculation.controller import DraftOutcome, StepTimes
from turbo_runtime.speculation.step_cost import StepShape


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


def test_what_an_engine_knows_is_copied_without_its_model() -> None:
    scheduler = Scheduler(
        BlockPool(8), max_num_seqs=1, max_num_batched_tokens=16, max_draft_tokens=4, max_length=64
    )
    engine = Engine(ModelRunner(network(), blocks=8, max_length=64), scheduler, Proposer())
    copied = _as_started(engine)
    assert copied.cost._padded.__self__ is engine.model  # type: ignore[attr-defined]
    copied.learn(StepShape(1), [DraftOutcome("r", proposed=False, drafted=0, won=0)], StepTimes(0.0, 1.0))
    assert copied.cost.known
    assert not engine.speculation.control.cost.known
