"""Goodput control: the best set of drafts by the model; the model, the gate and the meter themselves."""

from __future__ import annotations

import random
from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turbo_runtime.contract.documents import StepTime
from turbo_runtime.speculation.controller import (
    Credit,
    DraftOutcome,
    GoodputController,
    Meter,
    StepTimes,
    select_draft_lengths,
)
from turbo_runtime.speculation.step_cost import StepCost, StepShape

SEEDS = (StepTime(1, 1, 256, 0.020), StepTime(8, 1, 256, 0.030), StepTime(1, 128, 0, 0.180))


def to_four(tokens: int) -> int:
    return -(-tokens // 4) * 4


chances = st.lists(st.floats(0.01, 1), max_size=4).map(lambda each: sorted(each, reverse=True))
drafts = st.lists(chances, min_size=1, max_size=4)
growths = st.lists(st.floats(0, 0.5), min_size=16, max_size=16)
spent = st.floats(0, 0.5)


def times(growth: list[float]) -> list[float]:
    return [1.0 + sum(growth[:n]) for n in range(len(growth) + 1)]


def rate(acceptances: list[list[float]], counts: list[int], seconds: list[float], gone: float) -> float:
    gained = sum(sum(each[:count]) for each, count in zip(acceptances, counts, strict=True))
    return (len(acceptances) + gained) / (gone + seconds[sum(counts)])


@given(drafts, growths, spent)
def test_no_set_of_prefixes_is_better_than_the_chosen_one(
    acceptances: list[list[float]], growth: list[float], gone: float
) -> None:
    seconds = times(growth)
    chosen = rate(
        acceptances, select_draft_lengths(acceptances, len(acceptances), seconds, gone), seconds, gone
    )
    every = product(*(range(len(each) + 1) for each in acceptances))
    assert chosen >= max(rate(acceptances, list(counts), seconds, gone) for counts in every) - 1e-9


@given(drafts, growths, spent, st.data())
def test_a_chosen_token_stays_chosen_when_it_is_surer(
    acceptances: list[list[float]], growth: list[float], gone: float, data: st.DataObject
) -> None:
    seconds = times(growth)
    counts = select_draft_lengths(acceptances, len(acceptances), seconds, gone)
    places = [(i, j) for i, count in enumerate(counts) for j in range(count)]
    if not places:
        return
    draft, token = data.draw(st.sampled_from(places))
    ceiling = acceptances[draft][token - 1] if token else 1.0
    surer = [list(each) for each in acceptances]
    surer[draft][token] = data.draw(st.floats(acceptances[draft][token], ceiling))
    assert select_draft_lengths(surer, len(acceptances), seconds, gone)[draft] > token


def test_nothing_is_verified_where_a_row_costs_what_a_token_brings() -> None:
    assert select_draft_lengths([[0.4, 0.2], [0.4]], 2, [1.0, 1.3, 1.6, 1.9]) == [0, 0]


def test_drafts_without_a_chance_are_not_verified_even_where_rows_are_free() -> None:
    assert select_draft_lengths([[0.0, 0.0], [0.0]], 2, [1.0] * 4) == [0, 0]


def test_everything_is_verified_where_rows_are_free() -> None:
    assert select_draft_lengths([[0.4, 0.2], [0.1]], 2, [1.0] * 4) == [2, 1]


def test_a_step_of_rows_is_filled_up_to_where_the_next_rows_cost() -> None:
    assert select_draft_lengths([[0.3] * 6], 1, [1, 1, 1, 1, 2, 2, 2]) == [3]


def test_the_cost_begins_with_what_was_measured_at_start() -> None:
    cost = StepCost(SEEDS, to_four)
    assert cost.seconds(StepShape(1)) == pytest.approx(0.020)
    assert cost.seconds(StepShape(8)) == pytest.approx(0.030)
    assert cost.seconds(StepShape(128)) == pytest.approx(0.180)


def test_the_cost_follows_steps_and_is_not_misled_by_a_stall() -> None:
    cost, noise = StepCost(SEEDS, to_four), random.Random(1)
    for step in range(300):
        tokens = noise.choice([1, 4, 9, 17])
        took = (0.030 + 0.002 * to_four(tokens)) * noise.uniform(0.95, 1.05)
        cost.learn(StepShape(tokens), 2.0 if step % 100 == 99 else took)
    for tokens in (1, 9, 17):
        assert cost.seconds(StepShape(tokens)) == pytest.approx(0.030 + 0.002 * to_four(tokens), rel=0.06)


def test_what_a_small_step_teaches_of_the_machine_holds_for_larger_ones_too() -> None:
    cost = StepCost(SEEDS, to_four)
    for _ in range(50):
        cost.learn(StepShape(1), 0.040)
    assert cost.seconds(StepShape(8)) > 0.045


def test_the_cost_of_reading_the_cache_is_learnt() -> None:
    cost, noise = StepCost(SEEDS, to_four), random.Random(2)
    for _ in range(400):
        reads = noise.randrange(0, 100_000)
        cost.learn(StepShape(8, reads), 0.030 + 2e-7 * reads)
    gained = cost.seconds(StepShape(8, 80_000)) - cost.seconds(StepShape(8, 20_000))
    assert gained == pytest.approx(0.012, rel=0.2)


def test_a_size_that_is_not_seen_for_long_becomes_no_less_certain_than_at_the_start() -> None:
    cost, noise = StepCost(SEEDS, to_four), random.Random(4)
    begin = cost.added(StepShape(4), 600)[1][-1]
    for _ in range(40_000):
        tokens = noise.choice([4, 8, 12])
        cost.learn(StepShape(tokens), 0.020 + 0.002 * tokens)
    doubt = cost.added(StepShape(4), 600)[1]
    assert doubt[-1] <= begin
    assert (doubt[1:] > 0).all()
    before = cost.seconds(StepShape(4))
    cost.learn(StepShape(600), 10.0)  # one stall
    assert cost.seconds(StepShape(4)) == pytest.approx(before, rel=0.02)


@given(st.lists(st.tuples(st.integers(1, 600), st.floats(0.001, 5)), max_size=30))
def test_more_tokens_never_seem_cheaper(steps: list[tuple[int, float]]) -> None:
    cost = StepCost(SEEDS, to_four)
    for tokens, seconds in steps:
        cost.learn(StepShape(tokens), seconds)
    shape = StepShape(1, 100)
    seconds = [cost.seconds(shape.drafting(more, 1)) for more in range(65)]
    assert all(after >= before - 1e-9 for before, after in pairwise(seconds))
    added = cost.added(shape, 64)[0].tolist()
    assert added == pytest.approx([each - seconds[0] for each in seconds], abs=1e-9)


@pytest.mark.parametrize(
    ("shape", "answers"), [(StepShape(1), 1), (StepShape(5, 1e5, 300), 3), (StepShape(4090, 9e4, 2**20), 8)]
)
def test_what_drafts_add_is_the_difference_of_the_steps_with_and_without(
    shape: StepShape, answers: int
) -> None:
    cost, noise = StepCost(SEEDS, to_four), random.Random(5)
    for _ in range(300):
        reads, tile = noise.randrange(100_000), noise.randrange(100_000)
        cost.learn(StepShape(8, reads, tile), 0.030 + 2e-7 * reads + 1e-7 * tile)
    drafting = [cost.seconds(shape.drafting(count, answers)) - cost.seconds(shape) for count in range(65)]
    assert (drafting[1] > 0) == (shape.row_reads > 0)
    assert cost.added(shape, 64, answers)[0].tolist() == pytest.approx(drafting, abs=1e-12)


def test_a_step_is_never_taken_for_free_however_wild_the_times_were() -> None:
    least = 1.0
    for seed in range(100):
        cost, noise = StepCost(SEEDS if seed % 2 else None, to_four), random.Random(seed)
        for _ in range(60):
            tokens, reads = noise.choice([1, 2, 8, 64, 500]), noise.choice([0, 100_000])
            cost.learn(StepShape(tokens, reads, reads), 10 ** noise.uniform(-3, 0.7))
            least = min(least, cost.seconds(StepShape(1)))
    assert least > 0


def test_the_cost_follows_a_machine_that_slows_down() -> None:
    cost, noise = StepCost(SEEDS, to_four), random.Random(3)
    for slower in (1.0, 1.5):
        for _ in range(400):
            tokens = noise.choice([1, 4, 9, 17])
            took = slower * (0.030 + 0.002 * to_four(tokens)) * noise.uniform(0.95, 1.05)
            cost.learn(StepShape(tokens), took)
        for tokens in (1, 9, 17):
            law = slower * (0.030 + 0.002 * to_four(tokens))
            assert cost.seconds(StepShape(tokens)) == pytest.approx(law, rel=0.06)


def test_without_a_measurement_nothing_is_drafted_before_the_first_step() -> None:
    control = GoodputController(None, to_four)
    assert not control.asks
    control.learn(StepShape(1), [DraftOutcome("a", False, 0, 0)], StepTimes(0.0, 0.02))
    assert control.asks


@given(st.floats(0.0, 0.05))
def test_asking_that_brings_nothing_loses_three_thousandths_and_a_little_at_the_start(loss: float) -> None:
    credit, lost, steps = Credit(), 0.0, 2000
    for _ in range(steps):
        pays = loss if credit.open else 0.0
        credit.book(-pays)
        lost += pays
    assert lost <= 0.003 * steps + 0.5 + loss


@given(st.floats(0.0, 10.0))
def test_no_debt_lasts_longer_than_32_steps(loss: float) -> None:
    credit, waited = Credit(), 0
    credit.book(-loss)
    while not credit.open:
        credit.book(0.0)
        waited += 1
    assert waited <= 32


def test_drafting_goes_on_while_it_pays() -> None:
    credit = Credit()
    for step in range(300):
        assert credit.open
        credit.book(0.9 if step % 4 == 0 else -0.1)


def test_a_draft_that_is_all_wrong_costs_no_more_than_drafts_have_earned_and_stops_none() -> None:
    control, shape, sure = GoodputController(SEEDS, to_four), StepShape(1, 256), [0.999] * 64
    assert control.select_draft_lengths([[1.0] * 63], shape, 1, 0.0) == [63]  # forced, which is no risk
    for wins in (0, 20):
        for _ in range(wins):
            control.learn(shape, [DraftOutcome("a", True, 8, 8, 8.0, 8)], StepTimes(0.0, 0.030))
        (count,) = control.select_draft_lengths([sure], shape, 1, 0.0)
        assert 0 < count < 64
        seconds = control.cost.seconds(shape.drafting(count, 1))
        control.learn(shape, [DraftOutcome("a", True, count, 0, 1.0, 0)], StepTimes(0.0, seconds))
        assert control.asks


def test_what_drafters_are_certain_of_is_a_risk_nevertheless() -> None:
    control = GoodputController(SEEDS, to_four)
    certain = control.trust.apply([1.0] * 63)
    (count,) = control.select_draft_lengths([certain], StepShape(1, 256), 1, 0.0)
    assert 0 < count < 63


def test_after_many_steps_with_drafts_one_without_is_made() -> None:
    control, without = GoodputController(SEEDS, to_four), 0
    for _ in range(200):
        asked = control.asks
        without += not asked
        control.learn(StepShape(1), [DraftOutcome("a", asked, 4 * asked, 3 * asked)], StepTimes(0.0, 0.030))
    assert 1 <= without <= 4


def test_drafts_that_a_grammar_forces_in_every_step_do_not_end_the_drafts_of_others() -> None:
    control, asked_at = GoodputController(SEEDS, to_four), []
    for step in range(400):
        asked = control.asks
        asked_at += [step] * asked
        (forced,) = control.select_draft_lengths([[1.0, 1.0]], StepShape(2), 2, 0.0)
        outcomes = [DraftOutcome("forced", False, forced, forced), DraftOutcome("free", asked, 0, 0)]
        control.learn(StepShape(2), outcomes, StepTimes(0.0, 0.020))
    assert len(asked_at) >= 390
    assert asked_at[-1] >= 390


def test_the_live_speed_up_is_tokens_a_second_over_those_of_steps_without_drafts() -> None:
    control = GoodputController(SEEDS, to_four)
    for step in range(1500):
        if step % 10:
            control.learn(StepShape(1), [DraftOutcome("a", True, 7, 3)], StepTimes(0.001, 0.029))
        else:
            control.learn(StepShape(1), [DraftOutcome("a", False, 0, 0)], StepTimes(0.0, 0.020))
    expected = (9 * 4 + 1) * 0.020 / (9 * 0.030 + 0.020)
    assert control.speedup == pytest.approx(expected, rel=0.05)
    assert control.speedup_of("a") == pytest.approx(expected, rel=0.05)
    control.forget("a")
    assert control.speedup_of("a") is None


def test_a_meter_that_measured_nothing_says_nothing() -> None:
    assert Meter().speedup is None
