"""Goodput control over thousands of steps of a machine whose law is known: seconds are told, none pass."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from turbo_runtime.contract.documents import StepTime
from turbo_runtime.speculation.controller import DraftOutcome, GoodputController, StepTimes
from turbo_runtime.speculation.step_cost import StepShape

CONTEXT = 256  # tokens behind every answer
DRAFTING = 0.0002  # seconds of asking


def to_four(tokens: int) -> int:
    return -(-tokens // 4) * 4


def machine(tokens: int) -> float:
    return 0.020 + 0.0006 * (tokens - 4)


def measured(law: Callable[[int], float] = machine) -> tuple[StepTime, ...]:
    passes = (1, 1, CONTEXT), (1, 17, CONTEXT), (8, 1, CONTEXT), (1, 512, 0)
    return tuple(StepTime(*each, law(to_four(each[0] * each[1]))) for each in passes)


@dataclass
class Served:
    """Answers that draft, each drafted token accepted with one chance, which the drafters know."""

    control: GoodputController
    accepted: float
    answers: int = 8
    most: int = 6  # drafted tokens of an answer
    claimed: float | None = None  # the chance that the drafters tell, where it is another
    prefix: str = "r"
    law: Callable[[int], float] = machine
    noise: random.Random = field(default_factory=lambda: random.Random(1))
    tokens: int = 0
    seconds: float = 0.0
    drafted: list[int] = field(default_factory=list)  # in each step

    def step(self, prompt: int = 0) -> None:
        """One step, beside so many tokens of a prompt."""
        names = self.names
        shape = StepShape(self.answers + prompt, self.answers * CONTEXT, prompt * prompt // 2)
        asked = set(names) if self.control.asks else set()
        claimed = self.accepted if self.claimed is None else self.claimed
        claims = self.control.trust.apply([claimed ** (j + 1) for j in range(self.most)])
        acceptances = [claims for name in names if name in asked]
        drafting = DRAFTING if asked else 0.0
        counts = iter(self.control.select_draft_lengths(acceptances, shape, self.answers, drafting))
        outcomes = [self._outcome(name, next(counts) if name in asked else None) for name in names]
        drafted = sum(outcome.drafted for outcome in outcomes)
        rest = self.law(to_four(shape.tokens + drafted)) * self.noise.uniform(0.97, 1.03)
        self.control.learn(shape, outcomes, StepTimes(drafting, rest))
        self.tokens += self.answers + sum(outcome.won for outcome in outcomes)
        self.seconds += drafting + rest
        self.drafted.append(drafted)

    @property
    def names(self) -> list[str]:
        return [f"{self.prefix}{n}" for n in range(self.answers)]

    def _outcome(self, name: str, verified: int | None) -> DraftOutcome:
        if verified is None:
            return DraftOutcome(name, False, 0, 0)
        right, judged = 0, min(verified + 1, self.most)
        while right < judged and self.noise.random() < self.accepted:
            right += 1
        claimed = self.accepted if self.claimed is None else self.claimed
        return DraftOutcome(
            name, True, verified, min(right, verified), claimed * min(right + 1, judged), right
        )


def gain(accepted: float, prompt_every: int, prompt: int = 256, steps: int = 2500) -> float:
    """How much sooner the same tokens and prompts are through than without drafts: a prompt's chunk comes
    with every so many rounds of tokens, as it does where a new request follows an old one.
    """
    served, chunks = Served(GoodputController(measured(), to_four), accepted), 0
    for _ in range(steps):
        due = served.tokens >= chunks * served.answers * prompt_every
        served.step(prompt if due else 0)
        chunks += due
    plain = (served.tokens / served.answers - chunks) * machine(served.answers)
    return (plain + chunks * machine(served.answers + prompt)) / served.seconds


def drafts_beside(prompt: int, acceptances: Sequence[Sequence[float]]) -> list[int]:
    answers = len(acceptances)
    shape = StepShape(answers + prompt, answers * CONTEXT, prompt * prompt // 2)
    return GoodputController(measured(), to_four).select_draft_lengths(acceptances, shape, answers, DRAFTING)


@pytest.mark.parametrize("chance", [0.3, 0.5, 0.7, 0.9])
def test_no_more_is_drafted_beside_a_prompt_than_without_one(chance: float) -> None:
    acceptances = [[chance ** (n + 1) for n in range(6)]] * 8
    assert sum(drafts_beside(256, acceptances)) <= sum(drafts_beside(0, acceptances)) + 8  # one more each


@pytest.mark.parametrize(
    ("accepted", "prompt_every", "least"), [(0.5, 2, 1.02), (0.7, 2, 1.06), (0.8, 4, 1.17)]
)
def test_drafts_pay_beside_prompts_too(accepted: float, prompt_every: int, least: float) -> None:
    assert gain(accepted, prompt_every) >= least


def overestimated(seconds: float) -> tuple[StepTime, ...]:
    """The start was disturbed while it measured drafts."""
    one, _, *others = measured()
    return one, StepTime(1, 17, CONTEXT, seconds), *others


@pytest.mark.parametrize("seconds", [0.022, 0.030, 0.036, 0.045, 0.060])
@pytest.mark.parametrize("accepted", [0.6, 0.8])
def test_a_cost_that_is_believed_too_high_is_found_out(seconds: float, accepted: float) -> None:
    served = Served(GoodputController(overestimated(seconds), to_four), accepted, answers=4, most=4)
    for _ in range(4000):
        served.step()
    lately = served.drafted[-1000:]
    assert sum(lately) / len(lately) > 3
    plain = served.tokens / served.answers * machine(4)
    assert plain / served.seconds > (1.1 if accepted < 0.7 else 1.3)


@pytest.mark.parametrize("answers", [1, 8, 32])
@pytest.mark.parametrize("accepted", [0.0, 0.05, 0.2])
def test_drafts_that_cannot_pay_cost_next_to_nothing(answers: int, accepted: float) -> None:
    dear = 0.5  # of a step of one answer, for each token more
    law = lambda tokens: 0.020 + dear * 0.005 * (tokens - 4)  # noqa: E731
    served = Served(GoodputController(measured(law), to_four), accepted, answers=answers, law=law)
    for _ in range(3000):
        served.step()
    plain = served.tokens / served.answers * law(to_four(answers))
    assert plain / served.seconds > 0.992


def short_answers(accepted: float, answers: int = 8, tokens: int = 48, rounds: int = 40) -> float:
    """How much sooner rounds of new requests are through than without drafts, whose drafters are sure."""
    control, noise = GoodputController(measured(), to_four), random.Random(1)
    total, seconds = 0, 0.0
    for number in range(rounds):
        served = Served(control, accepted, answers, claimed=0.9, noise=noise, prefix=f"{number}-")
        while served.tokens < tokens * served.answers:
            served.step()
        for name in served.names:
            control.forget(name)
        total, seconds = total + served.tokens, seconds + served.seconds
    return total / answers * machine(to_four(answers)) / seconds


@pytest.mark.parametrize("answers", [1, 8, 32])
@pytest.mark.parametrize("tokens", [16, 48])
def test_short_answers_do_not_each_pay_for_finding_out_that_drafts_do_not_help(
    answers: int, tokens: int
) -> None:
    assert short_answers(0.0, answers, tokens) > 0.99


def test_short_answers_that_drafts_help_keep_their_gain() -> None:
    assert short_answers(0.8) > 1.5


def longest_wait(drafted: Sequence[int]) -> int:
    """Steps without a draft, one after the other, at most."""
    longest = waited = 0
    for count in drafted:
        waited = 0 if count else waited + 1
        longest = max(longest, waited)
    return longest


@pytest.mark.parametrize("most", [6, 32])
@pytest.mark.parametrize("answers", [1, 8])
@pytest.mark.parametrize("seed", range(3))
def test_first_drafts_that_are_all_wrong_do_not_decide_about_the_next(
    most: int, answers: int, seed: int
) -> None:
    control, noise = GoodputController(measured(), to_four), random.Random(seed)
    for number in range(3):  # the drafters are sure, and wrong
        vain = Served(control, 0.0, answers, most, claimed=0.9, prefix=f"vain{number}", noise=noise)
        for _ in range(10):
            vain.step()
    helped = Served(control, 0.8, answers, most, claimed=0.8, prefix="helped", noise=noise)
    for _ in range(400):
        helped.step()
    assert longest_wait(helped.drafted) <= 32


@pytest.mark.parametrize("seconds", [0.030, 0.045, 0.060])
def test_a_start_that_was_disturbed_while_it_measured_rows_delays_drafts_by_few_steps(seconds: float) -> None:
    served = Served(GoodputController(overestimated(seconds), to_four), 0.8, answers=1, most=8)
    for _ in range(300):
        served.step()
    assert longest_wait(served.drafted) <= 32


def test_drafting_that_stands_still_once_is_asked_for_again() -> None:
    control = GoodputController(measured(), to_four)
    control.learn(StepShape(1), [DraftOutcome("a", True, 0, 0)], StepTimes(5.0, 0.020))
    waited = 0
    while not control.asks:
        control.learn(StepShape(1), [DraftOutcome("a", False, 0, 0)], StepTimes(0.0, 0.020))
        waited += 1
    assert waited <= 32


def test_drafts_that_come_to_help_are_found_out_after_long_in_vain() -> None:
    control = GoodputController(measured(), to_four)
    vain = Served(control, 0.0, claimed=0.9, prefix="vain")
    for _ in range(2000):
        vain.step()
    helped = Served(control, 0.8, claimed=0.9, prefix="helped")
    for _ in range(400):
        helped.step()
    assert sum(helped.drafted[300:]) > 100 * helped.answers


@pytest.mark.parametrize("accepted", [0.5, 0.8, 0.95])
def test_steps_without_drafts_cost_a_hundredth_of_the_time_and_never_cease(accepted: float) -> None:
    served = Served(GoodputController(measured(), to_four), accepted, answers=1, most=16)
    for _ in range(6000):
        served.step()
    gain = (served.control.speedup or 1.0) - 1.0
    assert served.drafted.count(0) == pytest.approx(6000 / max(64, 100 * gain), rel=0.3)


@pytest.mark.parametrize("row", [0.0, 0.001, 0.003])
@pytest.mark.parametrize("answers", [8, 32])
def test_what_is_hardly_worth_drafting_is_what_a_row_costs_in_tokens(answers: int, row: float) -> None:
    law = lambda tokens: 0.020 + row * (tokens - 4)  # noqa: E731
    served = Served(GoodputController(measured(law), to_four), 0.5, answers=answers, claimed=0.9, law=law)
    for _ in range(300):
        served.step()
    found = served.control.min_acceptance(StepShape(answers), answers)
    assert found == pytest.approx(row / (law(to_four(answers)) / answers), rel=0.3, abs=0.06)


def test_before_anything_was_measured_everything_may_be_worth_drafting() -> None:
    assert GoodputController(None, to_four).min_acceptance(StepShape(1), 1) == 0.0


@pytest.mark.parametrize("right", [0, 1, 3])
def test_no_speed_up_is_told_beyond_the_tokens_of_a_pass(right: int) -> None:
    """The first steps of a short answer may be faster than any prediction of a step without drafts."""
    control = GoodputController(measured(), to_four)
    for _ in range(3):
        control.learn(StepShape(1), [DraftOutcome("a", True, 3, right)], StepTimes(0.0, 0.001))
    assert control.speedup_of("a") == 1 + right
    assert control.speedup == 1 + right


def test_the_seconds_of_answering_grow_by_every_step_and_what_they_would_have_been_by_its_tokens() -> None:
    control = GoodputController(measured(), to_four)
    assert control.generation_seconds == (0.0, 0.0)
    control.learn(StepShape(64, tile_reads=900), [], StepTimes(0.0, 0.5))  # of a prompt alone
    assert control.generation_seconds == (0.0, 0.0)
    control.learn(StepShape(1), [DraftOutcome("a", False, 0, 0)], StepTimes(0.0, 0.030))
    assert control.generation_seconds == (0.030, 0.030)
    control.learn(StepShape(1), [DraftOutcome("a", True, 3, 2)], StepTimes(0.002, 0.033, 0.001))
    measured_in_all, without = control.generation_seconds
    assert measured_in_all == pytest.approx(0.066)
    assert without == pytest.approx(0.030 + 3 * control.cost.seconds(StepShape(1)), rel=0.1)


def test_tokens_that_a_grammar_forces_say_nothing_of_guesses() -> None:
    control = GoodputController(measured(), to_four)
    for _ in range(100):
        control.learn(StepShape(1), [DraftOutcome("forced", False, 4, 4)], StepTimes(0.0, 0.030))
    for _ in range(200):
        control.learn(StepShape(1), [DraftOutcome("forced", True, 4, 0)], StepTimes(0.0, 0.030))
    assert not control.asks
