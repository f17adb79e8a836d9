"""The prefix cache: what is shared is what would have been computed, and nobody else's."""

from __future__ import annotations

import pickle
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from turbo_dev.simulated import Simulation, answer_to
from turbo_runtime.engine.scheduler import ScheduledTokens, Scheduler, Sequence
from turbo_runtime.kv_cache.block_pool import (
    BLOCK_SIZE,
    PROMPT_TILE,
    BlockPool,
    CorruptBlockPoolError,
    OutOfBlocks,
    block_keys,
)
from turbo_runtime.messages import GenerationRequest, SamplingParams

MAX_LENGTH = 256
BASE = tuple(random.Random(3).choices(range(50), k=MAX_LENGTH))


def engine(
    blocks: int = 64, *, running: int = 8, budget: int = 512, drafts: int = 0, tile: int = PROMPT_TILE
) -> Simulation:
    scheduler = Scheduler(
        BlockPool(blocks),
        max_num_seqs=running,
        max_num_batched_tokens=budget,
        max_draft_tokens=drafts,
        max_length=MAX_LENGTH,
        shared_tile=tile,
    )
    return Simulation(scheduler, random.Random(1))


def ask(
    name: str, length: int, *, tenant: str = "", answer: int = 3, differs_at: int | None = None
) -> GenerationRequest:
    prompt = list(BASE[:length])
    if differs_at is not None and differs_at < length:
        prompt[differs_at] += 1
    return GenerationRequest(name, tuple(prompt), SamplingParams(max_tokens=answer), tenant=tenant)


def served(simulation: Simulation, request: GenerationRequest) -> Sequence:
    sequence = simulation.scheduler.add(request)
    simulation.run()
    simulation.scheduler.check()
    assert simulation.answers[request.request_id] == answer_to(request, MAX_LENGTH)
    return sequence


@pytest.mark.parametrize(
    ("first", "second", "cached"),
    [
        (200, 200, 192),
        (200, 130, 128),
        (130, 200, 128),
        (128, 129, 128),
        (129, 128, 112),  # the last token of a prompt is always computed, and blocks are shared whole
        (63, 63, 0),  # no tile of theirs is whole
        (64, 64, 48),
        (64, 65, 64),
    ],
)
def test_blocks_in_whole_tiles_of_both_prompts_are_found_but_for_the_last_token(
    first: int, second: int, cached: int
) -> None:
    simulation = engine()
    assert served(simulation, ask("first", first)).cached == 0
    assert served(simulation, ask("second", second)).cached == cached
    scheduler = simulation.scheduler
    assert (scheduler.cache_queries, scheduler.cache_hits) == (first + second, cached)
    assert scheduler.block_pool.evictions == 0


@pytest.mark.parametrize(
    ("differs_at", "cached"), [(0, 0), (15, 0), (16, 16), (63, 48), (64, 64), (127, 112), (191, 176)]
)
def test_the_first_difference_ends_what_is_shared(differs_at: int, cached: int) -> None:
    simulation = engine()
    served(simulation, ask("first", 193))
    assert served(simulation, ask("second", 193, differs_at=differs_at)).cached == cached


@pytest.mark.parametrize("differs_at", [0, 1, 15, 16, 17, 40, 64, 191, 192])
def test_where_a_tile_is_a_block_the_first_difference_ends_what_is_found_to_the_token(
    differs_at: int,
) -> None:
    simulation = engine(tile=BLOCK_SIZE)
    served(simulation, ask("first", 193))
    assert served(simulation, ask("second", 193, differs_at=differs_at)).cached == differs_at
    assert served(simulation, ask("third", 193, differs_at=differs_at)).cached == 192


@pytest.mark.parametrize(("tile", "cached"), [(PROMPT_TILE, 192), (BLOCK_SIZE, 199)])
def test_tenants_never_share(tile: int, cached: int) -> None:
    simulation = engine(tile=tile)
    served(simulation, ask("a", 208, tenant="a"))
    assert served(simulation, ask("b", 200, tenant="b")).cached == 0
    assert served(simulation, ask("a again", 200, tenant="a")).cached == cached


def test_an_answer_is_never_shared_as_a_prompt() -> None:
    simulation = engine()
    first = ask("first", 60, answer=80)
    served(simulation, first)
    said = tuple(simulation.answers["first"])
    conversation = GenerationRequest("second", (*first.prompt, *said, 1, 2), SamplingParams(max_tokens=3))
    assert served(simulation, conversation).cached == 0
    assert served(simulation, ask("third", 60)).cached == 0


def test_prompt_logprobs_go_by_the_cache_and_others_may_use_what_they_left() -> None:
    simulation = engine()
    served(simulation, ask("first", 200))
    params = SamplingParams(max_tokens=3, prompt_logprobs=0)
    assert served(simulation, GenerationRequest("second", BASE[:200], params)).cached == 0
    assert simulation.scheduler.cache_queries == 200
    other = engine()
    served(other, GenerationRequest("first", BASE[:200], params))
    assert served(other, ask("second", 200)).cached == 192


def test_answers_to_one_prompt_that_come_together_compute_it_once() -> None:
    simulation = engine(budget=1000)
    scheduler = simulation.scheduler
    sequences = [scheduler.add(ask(f"choice {n}", 200, answer=20)) for n in range(4)]
    assert [(work.start, work.count) for work in simulation.step()] == [(0, 200)]
    assert [(work.start, work.count) for work in simulation.step()[1:]] == [(192, 8)] * 3
    scheduler.check()
    assert [each.table[:12] for each in sequences] == [sequences[0].table[:12]] * 4
    assert scheduler.block_pool.num_used == 12 + 4
    assert [each.cached for each in sequences] == [0, 192, 192, 192]
    simulation.run()
    same = answer_to(ask("", 200, answer=20), MAX_LENGTH)
    assert simulation.answers == {f"choice {n}": same for n in range(4)}


def test_nobody_waits_for_a_prompt_that_is_computed_a_little_at_a_time_to_tell_its_logprobs() -> None:
    simulation = engine(budget=1000)
    told = SamplingParams(max_tokens=3, prompt_logprobs=0)
    for request in (
        GenerationRequest("told", BASE[:200], told),
        ask("same", 200),
        ask("other", 200, differs_at=0),
    ):
        simulation.scheduler.add(request)
    begun = [work.sequence.request.request_id for work in simulation.step()]
    assert begun == ["told", "same", "other"]


@pytest.mark.parametrize("budget", [40, 64, 100])
def test_answers_to_one_prompt_compute_it_once_in_chunks_too(budget: int) -> None:
    simulation = engine(budget=budget)
    for n in range(3):
        simulation.scheduler.add(ask(f"choice {n}", 200))
    computed = 0
    while not simulation.idle:
        computed += sum(work.count for work in simulation.step() if work.start < 200)
    assert computed == 200 + 2 * 8


def test_a_block_that_was_computed_twice_takes_its_memory_once() -> None:
    simulation = engine()
    first = simulation.scheduler.add(ask("first", 128, answer=20))
    simulation.step()
    second = simulation.scheduler.add(ask("second", 128, answer=20))
    assert simulation.step()[-1].start == 112  # the last token is in the last block
    assert second.table[:8] == first.table[:8]
    simulation.scheduler.check()


def test_a_cut_off_prompt_leaves_the_tiles_that_it_has_computed_and_no_other() -> None:
    simulation = engine(budget=80)
    sequence = simulation.scheduler.add(ask("first", 250))
    simulation.step()
    simulation.step()
    simulation.scheduler.finish(sequence)
    simulation.scheduler.check()
    assert served(simulation, ask("second", 250)).cached == 128


def test_idle_tiles_are_given_up_longest_idle_first_and_the_deepest_of_a_prompt_first() -> None:
    simulation = engine(blocks=2 * 12 + 2)
    scheduler = simulation.scheduler
    served(simulation, ask("old", 193, tenant="old"))
    served(simulation, ask("new", 193, tenant="new"))
    assert sum(map(scheduler.block_pool.is_cached, scheduler.block_pool.blocks)) == 2 * 12
    served(simulation, ask("short", 80, tenant="short"))  # needs six blocks, two are free
    assert scheduler.block_pool.evictions == PROMPT_TILE
    keys = {tenant: block_keys(tenant, BASE[:193]) for tenant in ("old", "new")}
    assert len(scheduler.block_pool.find(keys["old"])) == 8
    assert len(scheduler.block_pool.find(keys["new"])) == 12


def test_nothing_is_given_up_for_a_table_that_cannot_be_had() -> None:
    simulation = engine(blocks=16)
    served(simulation, ask("first", 193))
    block_pool = simulation.scheduler.block_pool
    with pytest.raises(OutOfBlocks):
        block_pool.extend([], 17 * BLOCK_SIZE)
    assert sum(map(block_pool.is_cached, block_pool.blocks)) == 12


def test_a_prompt_whose_prefix_is_cached_starts_where_its_whole_would_not_fit() -> None:
    simulation = engine(blocks=20)
    first = simulation.scheduler.add(ask("first", 200, answer=40))
    simulation.step()
    second = simulation.scheduler.add(ask("second", 200, answer=40))
    simulation.step()
    assert simulation.scheduler.running == [first, second]
    simulation.run()
    assert simulation.answers["first"] == simulation.answers["second"]


tokens = st.lists(st.integers(0, 3), max_size=150)


@given(st.integers(0, MAX_LENGTH), tokens, tokens, st.booleans())
def test_keys_are_equal_as_far_as_blocks_are(
    common: int, one: list[int], other: list[int], same_tenant: bool
) -> None:
    prompts = [(*BASE[:common], *one), (*BASE[:common], *other)]
    same = [a == b for a, b in zip(*prompts, strict=False)]
    blocks = [len(each) // PROMPT_TILE * PROMPT_TILE // BLOCK_SIZE for each in prompts]
    equal = min([*same, False].index(False) // BLOCK_SIZE, *blocks) if same_tenant else 0
    first = block_keys("a", prompts[0])
    second = block_keys("a" if same_tenant else "b", prompts[1])
    assert [len(first), len(second)] == blocks
    assert first[:equal] == second[:equal]
    assert not set(first[equal:]) & set(second[equal:])


def test_damage_to_what_is_shared_is_noticed(made: list[object]) -> None:
    def broken(simulation: Simulation) -> None:
        with pytest.raises(CorruptBlockPoolError):
            simulation.scheduler.check()

    def running() -> tuple[Simulation, Sequence]:
        simulation = engine()
        sequence = simulation.scheduler.add(ask("first", 200, answer=9))
        simulation.step()
        simulation.scheduler.check()
        return simulation, sequence

    simulation, sequence = running()
    sequence.shared = 2  # a third block that might be written
    broken(simulation)
    simulation, sequence = running()
    simulation.scheduler.block_pool._key[sequence.table[-1]] = b"key"  # an answer's block
    broken(simulation)
    simulation, sequence = running()
    sequence.table[0], sequence.table[1] = sequence.table[1], sequence.table[0]
    broken(simulation)
    simulation, sequence = running()
    simulation.scheduler.block_pool.share(sequence.table[:1])
    broken(simulation)
    simulation, sequence = running()
    del simulation.scheduler.block_pool._block[sequence.keys[2]]
    broken(simulation)
    made.clear()  # it stays damaged


class Serving(RuleBasedStateMachine):
    """Tenants whose prompts have much in common come, go, are cut off and give way, in a cache that is too
    small for them. The simulation's slots are the model of who holds what.
    """

    @initialize(
        blocks=st.integers(16, 40),
        budget=st.integers(4, 300),
        running=st.integers(1, 6),
        drafts=st.integers(0, 8),
        tile=st.sampled_from([PROMPT_TILE, BLOCK_SIZE]),
    )
    def begin(self, blocks: int, budget: int, running: int, drafts: int, tile: int) -> None:
        self.engine = engine(blocks, running=running, budget=budget, drafts=drafts, tile=tile)
        self.asked: dict[str, GenerationRequest] = {}
        self.wanted: set[str] = set()

    @rule(
        tenant=st.sampled_from(["", "a", "b"]),
        length=st.one_of(st.integers(1, MAX_LENGTH - 1), st.sampled_from([63, 64, 65, 128, 129, 192])),
        answer=st.integers(1, 60),
        differs_at=st.one_of(st.none(), st.integers(0, 200)),
        logprobs=st.sampled_from([None, None, None, 0]),
    )
    def submit(
        self, tenant: str, length: int, answer: int, differs_at: int | None, logprobs: int | None
    ) -> None:
        name = f"r{len(self.asked)}"
        plain = ask(name, length, tenant=tenant, answer=answer, differs_at=differs_at)
        params = SamplingParams(max_tokens=answer, prompt_logprobs=logprobs)
        self.asked[name] = GenerationRequest(name, plain.prompt, params, tenant=tenant)
        self.wanted.add(name)
        self.engine.scheduler.add(self.asked[name])

    @rule(which=st.integers(0, 1 << 20))
    @precondition(lambda self: not self.engine.idle)
    def cancel(self, which: int) -> None:
        live = [*self.engine.scheduler.running, *self.engine.scheduler.waiting]
        sequence = live[which % len(live)]
        self.engine.scheduler.finish(sequence)
        self.wanted.discard(sequence.request.request_id)

    @rule(steps=st.integers(1, 6))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self.engine.step()
            self.engine.scheduler.check()

    @invariant()
    @precondition(lambda self: hasattr(self, "engine"))
    def the_books_are_right(self) -> None:
        self.engine.scheduler.check()

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        self.engine.run()
        self.engine.scheduler.check()
        assert self.engine.scheduler.block_pool.num_used == 0
        assert self.wanted <= set(self.engine.answers)
        for name, answer in self.engine.answers.items():
            assert answer == answer_to(self.asked[name], MAX_LENGTH)


TestServing = Serving.TestCase
TestServing.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_a_block_that_is_written_while_shared_would_be_noticed() -> None:
    simulation = engine()
    sequence = simulation.scheduler.add(ask("first", 129, answer=9))
    simulation.step()
    with pytest.raises(AssertionError, match="cached block is written"):
        simulation._compute(ScheduledTokens(sequence, 127, 3, 0, True), [])


@pytest.mark.parametrize("tile", [PROMPT_TILE, BLOCK_SIZE])
def test_memory_is_bounded_over_ten_thousand_requests(tile: int) -> None:
    """Tenants, prompts and choices without end, of which some are cut off, in a cache of 40 blocks."""
    luck = random.Random(5)
    scheduler = Scheduler(
        BlockPool(40),
        max_num_seqs=8,
        max_num_batched_tokens=256,
        max_draft_tokens=4,
        max_length=MAX_LENGTH,
        shared_tile=tile,
    )
    submitted, steps = 0, 0
    sizes: list[int] = []
    while submitted < 10_000 or scheduler.running:
        while submitted < 10_000 and len(scheduler.waiting) < 8:
            prompt = (submitted // 3, *BASE[: luck.randint(0, 150)])
            params = SamplingParams(max_tokens=luck.randint(1, 50))
            scheduler.add(GenerationRequest(f"r{submitted}", prompt, params, tenant=f"t{submitted // 6}"))
            submitted += 1
        plan = scheduler.schedule()
        scheduler.take_copies()
        for work in plan:
            committed = [0] * min(1 + luck.randint(0, work.draft_limit), scheduler.room(work.sequence))
            scheduler.update_from_output(work, committed if work.yields else [])
            if scheduler.room(work.sequence) == 0 or luck.random() < 0.01:
                scheduler.finish(work.sequence)
        steps += 1
        if steps % 50 == 0:
            scheduler.check()
            sizes.append(len(pickle.dumps(scheduler)))
    half = len(sizes) // 2
    assert max(sizes[half:]) < 1.1 * max(sizes[:half])
    assert scheduler.block_pool.num_used == 0
    assert scheduler.cache_hits > 0
    assert scheduler.block_pool.evictions > 0
    assert scheduler.preemptions > 0
