"""The scheduler: budgets hold, every answer ends, nothing is lost, under any load and any luck of drafts."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turbo_runtime.engine.blocks import BLOCK_SIZE, BlockLedger, blocks_for
from turbo_runtime.engine.request import SamplingParams, Submit
from turbo_runtime.engine.scheduler import Scheduler, StepPlan

MAX_LENGTH = 96


@dataclass(frozen=True)
class Load:
    """Answers that arrive one per step: (prompt tokens, answer tokens, speculation)."""

    answers: list[tuple[int, int, bool]]
    blocks: int
    max_running: int
    max_step_tokens: int
    max_draft_tokens: int
    seed: int


loads = st.builds(
    Load,
    st.lists(
        st.tuples(st.integers(1, MAX_LENGTH - 1), st.integers(1, 40), st.booleans()), min_size=1, max_size=8
    ),
    st.integers(blocks_for(MAX_LENGTH), 20),
    st.integers(1, 6),
    st.integers(1, 40),
    st.integers(0, 8),
    st.integers(0, 1 << 30),
)


def submit(number: int, prompt: int, answer: int, speculation: bool) -> Submit:
    params = SamplingParams(max_tokens=answer, drafting="auto" if speculation else "off")
    return Submit(f"r{number}", tuple(range(prompt)), params)


def check(plan: StepPlan, scheduler: Scheduler, load: Load) -> None:
    """What holds of every plan."""
    tokens = sum(work.count + work.draft_limit for work in plan.work)
    assert tokens <= load.max_step_tokens
    assert len(scheduler.running) <= load.max_running
    assert len({id(work.sequence) for work in plan.work}) == len(plan.work)
    for work in plan.work:
        sequence = work.sequence
        assert sequence in scheduler.running
        assert work.start == sequence.computed
        assert work.count >= 1
        assert work.start + work.count <= len(sequence.tokens)
        if work.draft_limit:
            assert work.yields
            assert sequence.submit.params.drafting == "auto"
            assert work.draft_limit <= load.max_draft_tokens
            assert work.draft_limit < scheduler.room(sequence)
        # every token of the step has a slot before the step begins
        assert len(sequence.table) * BLOCK_SIZE >= work.start + work.count + work.draft_limit
    held = [block for sequence in scheduler.running for block in sequence.table]
    assert len(held) == len(set(held)) == scheduler.ledger.num_used
    assert all(not sequence.table for sequence in scheduler.waiting)


@given(loads)
def test_every_answer_ends_within_the_budgets_and_nothing_is_lost(load: Load) -> None:
    luck = random.Random(load.seed)
    scheduler = Scheduler(
        BlockLedger(load.blocks),
        max_running=load.max_running,
        max_step_tokens=load.max_step_tokens,
        max_draft_tokens=load.max_draft_tokens,
        max_length=MAX_LENGTH,
    )
    arriving = [submit(number, *each) for number, each in enumerate(load.answers)]
    told: dict[str, list[int]] = {each.request_id: [] for each in arriving}
    ended: set[str] = set()
    for _ in range(4000):
        if arriving:
            scheduler.add(arriving.pop(0))
        plan = scheduler.plan()
        check(plan, scheduler, load)
        assert plan.work or not (scheduler.running or scheduler.waiting) or plan.preempted
        for work in plan.work:
            sequence = work.sequence
            if not work.yields:
                scheduler.fold(work, [])
                continue
            first = len(sequence.tokens)
            count = 1 + luck.randint(0, work.draft_limit)
            scheduler.fold(work, list(range(first, first + count)))  # a token says its own position
            told[sequence.submit.request_id].extend(range(first, first + count))
            assert scheduler.room(sequence) >= 0
            assert sequence.missing == 1
            if scheduler.room(sequence) == 0:
                scheduler.finish(sequence)
                ended.add(sequence.submit.request_id)
        if not arriving and not scheduler.running and not scheduler.waiting:
            break
    assert ended == set(told)
    for number, (prompt, answer, _) in enumerate(load.answers):
        length = min(answer, MAX_LENGTH - prompt)
        assert told[f"r{number}"] == list(range(prompt, prompt + length))
    assert scheduler.ledger.num_used == 0


@given(loads)
def test_whoever_is_dropped_in_mid_flight_gives_all_blocks_back(load: Load) -> None:
    scheduler = Scheduler(
        BlockLedger(load.blocks),
        max_running=load.max_running,
        max_step_tokens=load.max_step_tokens,
        max_draft_tokens=load.max_draft_tokens,
        max_length=MAX_LENGTH,
    )
    sequences = [scheduler.add(submit(number, *each)) for number, each in enumerate(load.answers)]
    for work in scheduler.plan().work:
        scheduler.fold(work, [0] if work.yields else [])
    scheduler.plan()
    for sequence in sequences:
        scheduler.finish(sequence)
        assert scheduler.find(sequence.submit.request_id) is None
    assert scheduler.ledger.num_used == 0


def test_the_youngest_gives_way_and_comes_back_first() -> None:
    scheduler = Scheduler(
        BlockLedger(4), max_running=4, max_step_tokens=256, max_draft_tokens=0, max_length=64
    )
    old = scheduler.add(submit(0, 2 * BLOCK_SIZE, 32, False))
    young = scheduler.add(submit(1, 2 * BLOCK_SIZE - 1, 32, False))
    later = scheduler.add(submit(2, 4, 4, False))
    for work in scheduler.plan().work:
        scheduler.fold(work, [7])
    while old.missing == 1 and scheduler.preemptions == 0:
        for work in scheduler.plan().work:
            scheduler.fold(work, [7])
    assert young in scheduler.waiting
    assert scheduler.waiting[0] is young
    assert later in scheduler.waiting
    assert young.computed == 0
    assert young.table == []
    assert old in scheduler.running


@pytest.mark.parametrize("prompt", [0, 64, 65])
def test_a_prompt_without_room_for_a_token_is_refused(prompt: int) -> None:
    scheduler = Scheduler(
        BlockLedger(4), max_running=4, max_step_tokens=256, max_draft_tokens=0, max_length=64
    )
    with pytest.raises(ValueError, match=f"the prompt has {prompt} tokens; from 1 to 63"):
        scheduler.add(submit(0, prompt, 4, False))


def test_a_cache_that_holds_no_whole_sequence_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot hold one sequence"):
        Scheduler(BlockLedger(3), max_running=1, max_step_tokens=8, max_draft_tokens=0, max_length=64)
