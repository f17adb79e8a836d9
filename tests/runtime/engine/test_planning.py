"""The scheduler: budgets hold, every answer ends, nothing is lost, under any load and any luck of drafts."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turbo_dev.simulated import Simulation, answer_to
from turbo_runtime.contract.config import DraftMethod
from turbo_runtime.engine.scheduler import MAX_PROMPT_LOGPROBS, ScheduledTokens, Scheduler
from turbo_runtime.kv_cache.block_pool import BLOCK_SIZE, PROMPT_TILE, BlockPool, blocks_for
from turbo_runtime.messages import GenerationRequest, SamplingParams
from turbo_runtime.speculation.controller import Demand

MAX_LENGTH = 160


@dataclass(frozen=True)
class Load:
    """Answers that arrive one per step: (tokens of prompt and answer, speculation, prompt logprobs)."""

    answers: list[tuple[int, int, bool, bool]]
    blocks: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_draft_tokens: int
    seed: int


loads = st.builds(
    Load,
    st.lists(
        st.tuples(st.integers(1, MAX_LENGTH - 1), st.integers(1, 40), st.booleans(), st.booleans()),
        min_size=1,
        max_size=8,
    ),
    st.integers(blocks_for(MAX_LENGTH), 24),
    st.integers(1, 6),
    st.integers(1, 80),
    st.integers(0, 8),
    st.integers(0, 1 << 30),
)


def submit(
    number: int, prompt: int, answer: int, speculation: bool = False, scored: bool = False, tenant: str = ""
) -> GenerationRequest:
    drafts: DraftMethod = "auto" if speculation else "off"
    params = SamplingParams(max_tokens=answer, draft_method=drafts, prompt_logprobs=0 if scored else None)
    return GenerationRequest(f"r{number}", tuple(range(prompt)), params, tenant=tenant)


def scheduler_for(load: Load) -> Scheduler:
    return Scheduler(
        BlockPool(load.blocks),
        max_num_seqs=load.max_num_seqs,
        max_num_batched_tokens=load.max_num_batched_tokens,
        max_draft_tokens=load.max_draft_tokens,
        max_length=MAX_LENGTH,
    )


def small(
    blocks: int, max_length: int = 64, running: int = 4, budget: int = 256, drafts: int = 0
) -> Scheduler:
    return Scheduler(
        BlockPool(blocks),
        max_num_seqs=running,
        max_num_batched_tokens=budget,
        max_draft_tokens=drafts,
        max_length=max_length,
    )


def decode(scheduler: Scheduler, token: int = 7) -> tuple[ScheduledTokens, ...]:
    """A step in which no draft is accepted."""
    plan = scheduler.schedule()
    for work in plan:
        scheduler.update_from_output(work, [token] if work.yields else [])
    return plan


def check(plan: tuple[ScheduledTokens, ...], scheduler: Scheduler, load: Load) -> None:
    """What holds of every plan, before it is carried out."""
    assert sum(work.count + work.draft_limit for work in plan) <= load.max_num_batched_tokens
    assert len(scheduler.running) <= load.max_num_seqs
    assert [work.sequence for work in plan] == [
        each for each in scheduler.running if each in {work.sequence for work in plan}
    ]
    for work in plan:
        sequence = work.sequence
        assert work.start == sequence.computed
        assert work.count >= 1
        assert work.start + work.count <= len(sequence.tokens)
        if work.draft_limit:
            assert work.yields
            assert sequence.request.params.draft_method == "auto"
            assert work.draft_limit <= load.max_draft_tokens
            assert work.draft_limit < scheduler.room(sequence)
        # every token of the step has a slot before the step begins
        assert len(sequence.table) * BLOCK_SIZE >= work.start + work.count + work.draft_limit


class Checked(Simulation):
    """A simulation of which every plan and every state is looked at."""

    def __init__(self, load: Load) -> None:
        super().__init__(scheduler_for(load), random.Random(load.seed))
        self.load = load

    def step(self) -> tuple[ScheduledTokens, ...]:
        before, preemptions = set(self.scheduler.running), self.scheduler.preemptions
        decoding = {each for each in before if each.missing == 1}
        plan = super().step()
        preempted = before & set(self.scheduler.waiting)
        assert len(preempted) == self.scheduler.preemptions - preemptions
        assert plan or self.idle or preempted
        worked = {work.sequence for work in plan}
        assert decoding <= worked | preempted, "a decoding sequence waited"
        assert worked.isdisjoint(preempted)
        self.scheduler.check()
        return plan

    def _drafts(self, work: ScheduledTokens) -> list[int]:
        check((work,), self.scheduler, self.load)
        return super()._drafts(work)


@given(loads)
def test_every_answer_ends_within_the_budgets_and_nothing_is_lost(load: Load) -> None:
    engine = Checked(load)
    arriving = [submit(number, *each) for number, each in enumerate(load.answers)]
    for each in arriving:
        engine.scheduler.add(each)
        engine.step()
    while not engine.idle:
        engine.step()
        assert engine.steps < 4000
    assert engine.answers == {each.request_id: answer_to(each, MAX_LENGTH) for each in arriving}
    assert engine.scheduler.block_pool.num_used == 0


@given(loads)
def test_a_plan_keeps_to_the_budget_of_tokens(load: Load) -> None:
    scheduler = scheduler_for(load)
    for number, each in enumerate(load.answers):
        scheduler.add(submit(number, *each))
    for _ in range(30):
        plan = scheduler.schedule()
        check(plan, scheduler, load)
        for work in plan:
            scheduler.update_from_output(work, [7] if work.yields else [])
            if scheduler.room(work.sequence) == 0:
                scheduler.finish(work.sequence)


@given(loads)
def test_whoever_is_dropped_in_mid_flight_gives_all_blocks_back(load: Load) -> None:
    scheduler = scheduler_for(load)
    sequences = [scheduler.add(submit(number, *each)) for number, each in enumerate(load.answers)]
    decode(scheduler, 0)
    scheduler.schedule()
    for sequence in sequences:
        scheduler.finish(sequence)
        assert scheduler.find(sequence.request.request_id) is None
        scheduler.check()
    assert scheduler.block_pool.num_used == 0


def test_the_youngest_gives_way_and_comes_back_first() -> None:
    scheduler = small(6, running=2)
    old = scheduler.add(submit(0, BLOCK_SIZE + 1, 32))
    young = scheduler.add(submit(1, BLOCK_SIZE, 32))
    later = scheduler.add(submit(2, 4, 4))
    while scheduler.preemptions == 0:
        decode(scheduler)
    assert scheduler.waiting == [young, later]
    assert young.computed == 0
    assert young.table == []
    assert old in scheduler.running


def test_those_who_gave_way_together_come_back_in_their_order() -> None:
    scheduler = small(9, running=3)
    old, middle, young = (scheduler.add(submit(n, BLOCK_SIZE, 48, tenant=f"t{n}")) for n in range(3))
    while scheduler.preemptions < 2:
        decode(scheduler)
    assert scheduler.running == [old]
    assert scheduler.waiting == [middle, young]
    scheduler.finish(old)
    scheduler.schedule()
    assert scheduler.running[0] is middle


def test_a_preempted_prompt_finds_its_tiles_again() -> None:
    scheduler = small(10, max_length=128)
    old = scheduler.add(submit(0, 31, 60, tenant="a"))
    young = scheduler.add(submit(1, 70, 50, tenant="b"))
    while scheduler.preemptions == 0:
        decode(scheduler)
    assert scheduler.waiting == [young]
    scheduler.finish(old)
    (work,) = scheduler.schedule()
    assert work.sequence is young
    assert work.start == PROMPT_TILE
    assert young.cached == 0  # that was its own work, not a gift
    assert scheduler.cache_hits == 0


def test_a_long_prompt_moves_on_in_chunks_while_others_decode_at_every_step() -> None:
    scheduler = small(100, max_length=800, budget=100)
    decoding = [scheduler.add(submit(number, 5, 90, tenant=f"t{number}")) for number in range(3)]
    decode(scheduler)
    long = scheduler.add(submit(9, 700, 5))
    chunks = []
    while not long.generated:
        plan = decode(scheduler)
        assert [work.sequence for work in plan] == [*decoding, long]
        chunks.append(plan[-1].count)
    assert sum(chunks) == 700
    assert set(chunks[:-1]) == {64}  # whole tiles
    assert len(chunks) <= -(-700 // 64)


def test_many_short_prompts_start_in_one_step() -> None:
    scheduler = small(64, running=20, budget=100)
    for number in range(20):
        scheduler.add(submit(number, 10, 4))
    assert [work.count for work in scheduler.schedule()] == [10] * 10


def test_more_than_a_step_can_decode_do_not_run_together() -> None:
    scheduler = small(64, running=20, budget=6)
    for number in range(20):
        scheduler.add(submit(number, 1, 30))
    decode(scheduler)
    assert len(decode(scheduler)) == 6


@pytest.mark.parametrize(
    ("budget", "prompt", "granted"),
    [
        (64, 0, [8, 8, 8, 8]),  # nobody else wants the budget
        (24, 0, [5, 5, 5, 5]),  # shared evenly
        (24, 200, [2, 2, 3, 3]),  # half of what decoding leaves, beside a prompt
        (24, 3, [4, 4, 4, 5]),  # and what the prompt leaves
    ],
)
def test_drafts_share_evenly_what_prompts_leave_and_at_least_half(
    budget: int, prompt: int, granted: list[int]
) -> None:
    scheduler = small(64, max_length=256, running=8, budget=budget, drafts=8)
    for number in range(4):
        scheduler.add(submit(number, 1, 100, True))
    decode(scheduler)
    if prompt:
        scheduler.add(submit(9, prompt, 1))
    plan = scheduler.schedule()
    assert sorted(work.draft_limit for work in plan if work.sequence.generated) == granted
    if prompt:
        assert plan[-1].count == min(prompt, budget - 4 - sum(granted))


def chunks_beside(answers: int, verified: int, drafts: int) -> tuple[list[int], list[int]]:
    """Of a long prompt beside so many answers, of which the first verifies drafts; and its slots."""
    scheduler, demand = small(2000, 8192, running=64, budget=512, drafts=drafts), Demand()

    def decode_with_drafts() -> tuple[ScheduledTokens, ...]:
        plan = scheduler.schedule(demand.predict)
        for work in plan:
            name = work.sequence.request.request_id
            used = min(verified, work.draft_limit) if name == "r0" else 0
            if work.yields:
                demand.book(name, used, work.draft_limit)
            scheduler.update_from_output(work, [7] * (1 + used) if work.yields else [])
        return plan

    for number in range(answers):
        scheduler.add(submit(number, 1, 4000, True, tenant=f"t{number}"))
    for _ in range(30):
        decode_with_drafts()
    long = scheduler.add(submit(99, 8000, 1))
    chunks, slots = [], []
    while long.missing > 1 and not long.generated:
        work = {each.sequence.request.request_id: each for each in decode_with_drafts()}
        chunks.append(work["r99"].count)
        slots.append(work["r0"].draft_limit)
    return chunks, slots


def test_beside_answers_that_draft_nothing_a_prompt_moves_on_as_without_drafts() -> None:
    assert chunks_beside(31, 0, 8)[0] == chunks_beside(31, 0, 0)[0]


def test_who_drafts_keeps_its_slots_beside_a_prompt_and_the_prompt_gives_up_no_more_than_those() -> None:
    chunks, slots = chunks_beside(31, 6, 8)
    assert min(slots) >= 6
    assert set(chunks[:-1]) == {448}
    chunks, slots = chunks_beside(63, 6, 8)
    assert min(slots) >= 6
    assert set(chunks[:-1]) == {384}  # 449 were left but for the promise


def test_an_answer_that_begins_to_draft_beside_a_prompt_gets_slots_soon() -> None:
    demand, slots = Demand(), 1  # what the cut of a prompt to whole tiles leaves
    for _ in range(12):
        demand.book("r", slots, slots)
        slots = min(8, max(1, demand.predict("r")))
    assert slots == 8


def test_a_request_may_lower_the_ceiling_of_drafts_and_not_raise_it() -> None:
    scheduler = small(64, running=8, drafts=5)
    for number, ceiling in enumerate([0, 2, 30]):
        params = SamplingParams(max_tokens=40, max_draft_tokens=ceiling)
        scheduler.add(GenerationRequest(f"r{number}", (1,), params))
    decode(scheduler)
    assert [work.draft_limit for work in scheduler.schedule()] == [0, 2, 5]


def test_a_prompt_that_ends_in_a_step_gets_the_slots_that_are_left() -> None:
    scheduler = small(64, running=8, budget=24, drafts=8)
    scheduler.add(submit(0, 20, 40, True))
    assert [(work.count, work.draft_limit) for work in scheduler.schedule()] == [(20, 4)]


def test_nobody_starts_where_those_that_run_have_no_block_to_grow_into() -> None:
    scheduler = small(6)
    for number in range(3):
        scheduler.add(submit(number, 2 * BLOCK_SIZE - 1, 30))
    scheduler.schedule()
    assert scheduler.block_pool.num_available == 2
    assert len(scheduler.running) == 2


def test_drafts_preempt_nobody() -> None:
    scheduler = small(5, drafts=64)
    for number in range(2):
        scheduler.add(submit(number, 2 * BLOCK_SIZE - 2, 30, True))
    decode(scheduler)
    plan = scheduler.schedule()
    assert scheduler.preemptions == 0
    assert [work.draft_limit for work in plan] == [17, 1]


def test_look_ahead_blocks_that_no_token_took_are_given_back() -> None:
    scheduler = small(8, drafts=40)
    sequence = scheduler.add(submit(0, 10, 50, True))
    decode(scheduler)
    (work,) = scheduler.schedule()
    assert work.draft_limit == 40
    assert scheduler.block_pool.num_used == blocks_for(11 + 40)
    scheduler.update_from_output(work, [1, 2, 3])  # the loop verified fewer, and two were accepted
    assert scheduler.block_pool.num_used == 1
    assert sequence.computed == 13
    assert sequence.missing == 1


@pytest.mark.parametrize("prompt", [0, 64, 65])
def test_a_prompt_without_room_for_a_token_is_refused(prompt: int) -> None:
    with pytest.raises(ValueError, match=f"the prompt has {prompt} tokens; from 1 to 63"):
        small(4).add(submit(0, prompt, 4))


def test_one_request_is_not_taken_in_twice() -> None:
    scheduler = small(4)
    scheduler.add(submit(0, 3, 4))
    with pytest.raises(ValueError, match="request r0 is running or waiting already"):
        scheduler.add(submit(0, 3, 4))


def test_a_cache_that_holds_no_whole_sequence_is_refused() -> None:
    with pytest.raises(ValueError, match="hold no sequence"):
        small(3)


def test_a_step_computes_so_many_tokens_at_most_whose_log_probabilities_are_told() -> None:
    scheduler = Scheduler(
        BlockPool(40), max_num_seqs=4, max_num_batched_tokens=400, max_draft_tokens=0, max_length=MAX_LENGTH
    )
    params = SamplingParams(max_tokens=1, prompt_logprobs=0)
    told = [scheduler.add(GenerationRequest(f"told {i}", tuple(range(i, 150)), params)) for i in range(2)]
    other = scheduler.add(submit(9, 150, 1, tenant="other"))
    steps = 0
    while scheduler.running or scheduler.waiting:
        plan = scheduler.schedule()
        steps += 1
        assert sum(work.count for work in plan if work.sequence in told) <= MAX_PROMPT_LOGPROBS
        assert (steps == 1) == (other in [work.sequence for work in plan])
        for work in plan:
            ends = work.yields
            scheduler.update_from_output(work, [1] if ends else [])
            if ends:
                scheduler.finish(work.sequence)
    assert steps < 8
