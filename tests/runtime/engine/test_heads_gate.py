"""Heads take time; drafts from memory take none. Whether the former are asked is weighed by what they add."""

from __future__ import annotations

import random
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, takewhile
from operator import mul
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import pytest
import torch

from turbo_dev.drafting import EveryDraft
from turbo_runtime.contract.config import DraftMethod
from turbo_runtime.contract.documents import StepTime
from turbo_runtime.drafters.heads import Heads, HeadsDrafter
from turbo_runtime.drafters.interface import (
    Draft,
    Drafter,
    DraftRequest,
    TokenCandidate,
    TokenOrigin,
)
from turbo_runtime.drafters.loader import ActiveDrafts
from turbo_runtime.drafters.proposer import Proposer
from turbo_runtime.engine.loop import Engine
from turbo_runtime.engine.speculator import Speculator
from turbo_runtime.messages import GenerationRequest
from turbo_runtime.speculation.controller import DraftOutcome, GoodputController, StepTimes
from turbo_runtime.speculation.step_cost import StepShape
from turbo_runtime.speculation.verification import VerificationResult

ANSWERS, PLAIN, ROW = 8, 0.090, 0.002  # seconds of a step, and of each drafted row more
SEEDS = tuple(
    StepTime(rows, tokens, context, PLAIN + ROW * (rows * tokens - ANSWERS))
    for rows, tokens, context in ((1, 1, 256), (1, 17, 256), (8, 1, 256), (1, 128, 0))
)
HEADS = ("auto", "default", 1)


class Place(NamedTuple):
    """Of one drafted token: how sure memory is, how sure heads are (0: there is none), and of what."""

    memory: float
    heads: float = 0.0
    same: bool = False  # they have one token, which is right as often as the surer one says


AGAIN = [Place(0.45, 0.50)]  # memory would have had another token, nearly as sure
SHY = [Place(0.25, 0.8, same=True)]  # memory would have had the same token, if less sure
MORE = [Place(0.8, 0.85, same=True), Place(0.8, 0.85, same=True), Place(0.0, 0.8)]  # and one token more


@dataclass
class Answers:
    """Answers that are drafted for by the same places in every step, of each the surer one's token."""

    places: Sequence[Place]
    seconds: float  # that heads take a step
    length: int = 0  # tokens of an answer; 0: no end
    control: GoodputController = field(
        default_factory=lambda: GoodputController(SEEDS, lambda tokens: tokens)
    )
    noise: random.Random = field(default_factory=lambda: random.Random(3))

    def speed(self, *, with_heads: bool = True, steps: int = 3000) -> float:
        """Tokens a second over those without drafts."""
        said, spent, tokens = dict.fromkeys((f"r{n}" for n in range(ANSWERS)), 0), 0.0, 0
        for step in range(steps):
            asked = set(said) if self.control.asks else set()
            by_heads = bool(asked) and with_heads and self.control.costly_pay(HEADS)
            outcomes, seconds = self._step(list(said), asked, by_heads)
            spent += seconds
            for outcome in outcomes:
                said[outcome.request_id] += 1 + outcome.won
                tokens += 1 + outcome.won
                if self.length and said[outcome.request_id] >= self.length:
                    del said[outcome.request_id]
                    self.control.forget(outcome.request_id)
                    said[f"{step}/{outcome.request_id}"] = 0
        return tokens / spent / (ANSWERS / PLAIN)

    def _step(
        self, names: Sequence[str], asked: Container[str], by_heads: bool
    ) -> tuple[list[DraftOutcome], float]:
        drafting = self.seconds * by_heads
        claims = [max(place.memory, place.heads * by_heads) for place in self.places]
        claims = list(takewhile(bool, claims))
        acceptances = [list(accumulate(claims, mul)) for name in names if name in asked]
        counts = iter(self.control.select_draft_lengths(acceptances, StepShape(ANSWERS), ANSWERS, drafting))
        outcomes = [
            self._outcome(name, next(counts) if name in asked else None, by_heads=by_heads) for name in names
        ]
        rest = PLAIN + ROW * sum(outcome.drafted for outcome in outcomes)
        times = StepTimes(drafting, rest, costly={HEADS: drafting} if by_heads else {})
        self.control.learn(StepShape(ANSWERS), outcomes, times)
        return outcomes, drafting + rest

    def _outcome(self, name: str, drafted: int | None, *, by_heads: bool) -> DraftOutcome:
        won = more = gained = 0
        alone = going = True  # whether memory would have come as far, whether all was right
        for place in self.places[: drafted or 0]:
            taken, instead = by_heads and place.heads > place.memory, alone and place.memory > 0
            alone = instead and (place.same or not taken)
            more += not instead
            if not going:
                continue
            lot = self.noise.random()
            going = lot < (max(place.memory, place.heads) if place.same or taken else place.memory)
            won += going
            gained += going - (instead and (going if alone else lot > 1 - place.memory))
        return DraftOutcome(
            name,
            drafted is not None,
            drafted or 0,
            won,
            costly_key=HEADS,
            more_by_costly=more,
            won_by_costly=gained,
        )


@pytest.mark.parametrize("length", [0, 48])
@pytest.mark.parametrize("memory", [0.3, 0.5, 0.8])
def test_heads_that_take_more_than_they_bring_leave_the_drafts_from_memory_what_these_bring(
    memory: float, length: int
) -> None:
    places = [Place(memory), Place(0.0, 0.1)]
    alone = Answers(places, 0.0, length).speed(with_heads=False)
    assert alone > 1.02
    assert Answers(places, 0.015, length).speed() >= alone - 0.01


@pytest.mark.parametrize("places", [AGAIN, SHY])
def test_heads_that_draft_what_memory_would_have_had_as_well_are_not_asked(places: list[Place]) -> None:
    alone = Answers(places, 0.0).speed(with_heads=False)
    assert Answers(places, 0.015).speed() >= alone - 0.015


def test_heads_that_bring_less_than_memory_does_in_the_same_time_are_not_asked() -> None:
    places = [*MORE[:2], Place(0.0, 0.7)]  # worth a token's time without drafts, and not with them
    alone = Answers(places, 0.0).speed(with_heads=False)
    assert Answers(places, 0.015).speed() >= alone - 0.015


def test_heads_are_asked_for_a_token_more_than_memory_has_behind_what_it_has_too() -> None:
    alone = Answers(MORE, 0.0).speed(with_heads=False)
    assert Answers(MORE, 0.003).speed() >= alone + 0.05


@pytest.mark.parametrize("length", [0, 48])
def test_heads_that_bring_more_than_they_take_are_asked(length: int) -> None:
    places = [Place(0.6), Place(0.0, 0.8)]
    alone = Answers(places, 0.0, length).speed(with_heads=False)
    assert Answers(places, 0.003, length).speed() >= alone + 0.1


def test_where_nothing_helps_heads_lose_no_more_than_all_drafts_may() -> None:
    assert Answers([Place(0.02), Place(0.0, 0.02)], 0.015).speed() >= 0.99


def test_new_heads_have_an_account_of_their_own() -> None:
    control = GoodputController(SEEDS, lambda tokens: tokens)
    bad = DraftOutcome("a", True, 0, 0, costly_key=HEADS)
    for _ in range(50):
        control.learn(StepShape(1), [bad], StepTimes(0.05, PLAIN, costly={HEADS: 0.05}))
    assert not control.costly_pay(HEADS)
    assert control.costly_pay(("auto", "default", 2))


def test_accounts_of_drafts_that_were_reloaded_are_forgotten_and_those_in_use_are_kept() -> None:
    control = GoodputController(SEEDS, lambda tokens: tokens)
    bad = DraftOutcome("a", True, 0, 0, costly_key=HEADS)
    for reload in range(1000):
        later = bad._replace(costly_key=("auto", "default", reload))
        control.learn(StepShape(2), [bad, later], StepTimes(0.05, PLAIN, costly={HEADS: 0.05}))
        assert control.costly_pay(("auto", "other", reload))
    assert len(control._costly) <= 64
    assert not control.costly_pay(HEADS)


class Fixed(Drafter):
    """Offers one token."""

    is_costly = reads_hidden = True

    def __init__(self, name: str, token: int, confidence: float) -> None:
        super().__init__()
        self.name, self._offer = name, TokenCandidate(token, confidence, None)

    def begin(self, wants: Sequence[DraftRequest]) -> None:
        self._left = [True] * len(wants)

    def next_candidates(self, _best_confidence: Sequence[float]) -> list[TokenCandidate | None]:
        return [self._offer if left else None for left in self._left]

    def advance(self, _tokens: Sequence[int | None]) -> None:
        self._left = [False] * len(self._left)

    def learn(self, _cell: object, _accepted: bool) -> None:
        """It knows what it knows."""


class Slow(Fixed):
    """Counts how often it is asked."""

    asked = 0

    def begin(self, wants: Sequence[DraftRequest]) -> None:
        self.asked += 1
        super().begin(wants)


def test_heads_that_do_not_pay_are_not_asked_and_those_that_do_tell_their_time() -> None:
    source = Slow(HeadsDrafter.name, 7, 0.8)
    drafters = Proposer(ActiveDrafts("auto", source, "v1"))
    want = DraftRequest("r", [1], 1, 4, "", 0, 0.0)
    (draft,) = drafters.propose([replace(want, method="suffix")])
    assert (draft, draft.costly_key) == (Draft(), None)
    (draft,) = drafters.propose([want], 0.0, lambda key: key != HEADS)
    assert (draft, draft.costly_key) == (Draft(), HEADS)
    assert (source.asked, drafters.costly_seconds) == (0, {})
    (draft,) = drafters.propose([want], 0.0, lambda key: key == HEADS)
    assert draft.costly_key == HEADS
    assert draft.tokens == (7,)
    assert set(drafters.costly_seconds) == {HEADS}
    assert drafters.costly_seconds[HEADS] > 0


def test_heads_that_a_request_wants_alone_are_weighed_by_the_gate_of_all() -> None:
    source = Slow(HeadsDrafter.name, 7, 0.8)
    drafters = Proposer(ActiveDrafts("auto", source, "v1"))
    want = DraftRequest("r", [1], 1, 4, "", 0, 0.0, method="heads")
    (draft,) = drafters.propose([want], 0.0, lambda _: False)
    assert draft.tokens == (7,)
    assert set(drafters.costly_seconds) == {draft.costly_key}
    assert draft.costly_key != HEADS


def test_a_draft_that_is_taken_up_anew_has_another_key_under_the_same_version() -> None:
    class Swapped:
        problem = ""

        def poll(self, _now: float) -> ActiveDrafts:
            return ActiveDrafts("auto", Slow(HeadsDrafter.name, 7, 0.8), "v1")

    drafters = Proposer(ActiveDrafts("auto", Slow(HeadsDrafter.name, 7, 0.8), "v1"), file=Swapped())  # type: ignore[arg-type]
    want = DraftRequest("r", [1], 1, 4, "", 0, 0.0)
    (before,) = drafters.propose([want])
    drafters.poll(0.0)
    (after,) = drafters.propose([want])
    assert before.costly_key != after.costly_key


class Telling(EveryDraft):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[Sequence[DraftOutcome], StepTimes]] = []

    def learn(self, shape: StepShape, outcomes: Sequence[DraftOutcome], times: StepTimes) -> None:
        self.told.append((list(outcomes), times))
        super().learn(shape, outcomes, times)


@pytest.mark.parametrize(
    ("verified", "said", "booked"),
    [
        ((5, 6, 7, 8), (5, 6, 7, 8, 1), (4, 4, 1, 2)),  # memory would have drafted 5 as well, and a wrong one
        ((5, 6, 7, 8), (5, 6, 7, 1), (4, 3, 1, 1)),
        ((5, 6, 7), (5, 6, 7, 1), (3, 3, 0, 1)),  # the fourth was not worth a row
        ((5, 6, 7, 8), (5, 6, 9), (4, 2, 1, -1)),  # memory would have been right
        ((5, 6, 7, 8), (5, 6, 1), (4, 2, 1, 0)),  # nobody was
        ((5, 6, 7, 8), (5, 6), (4, 1, 1, 0)),  # the answer has no room for more
        ((5, 6, 7, 8), (1,), (4, 0, 1, 0)),
    ],
)
def test_for_heads_is_booked_what_there_would_not_have_been_without_them(
    verified: tuple[int, ...], said: tuple[int, ...], booked: tuple[int, ...]
) -> None:
    evidence = tuple(
        TokenOrigin(source, 0, instead)
        for source, instead in (("heads", 5), ("suffix", 6), ("heads", 9), ("suffix", None))
    )
    work = SimpleNamespace(sequence=SimpleNamespace(request_id="r"), count=1, draft_limit=4)
    part = SimpleNamespace(work=work, draft=Draft((5, 6, 7, 8), (0.9,) * 4, evidence), drafts=[*verified])
    drafters = SimpleNamespace(observe=lambda *_: None, reads_hidden=False, costly_seconds={})
    control = Telling()
    speculation: Any = Speculator(cast("Any", drafters), control)
    speculation.observe(part, VerificationResult(said, len(said) - 1), torch.zeros(1))
    speculation.learn(0.1)
    (((outcome,), _),) = control.told
    assert outcome[2:4] + outcome[7:] == booked


@pytest.mark.parametrize("drafter", ["heads", "auto", "suffix"])
def test_the_engine_tells_what_heads_drafted_won_and_took(
    make_engine: Callable[..., Engine],
    tiny_heads: Heads,
    ask: Callable[[float], list[GenerationRequest]],
    drafter: DraftMethod,
) -> None:
    control = Telling()
    drafters = Proposer(ActiveDrafts(drafter, HeadsDrafter(tiny_heads, make_engine().noise), "v1"))
    engine = make_engine(drafters, control)
    for request in ask(0.0):
        engine.accept(request)
    while not engine.idle:
        engine.step()
    outcomes = [outcome for some, _ in control.told for outcome in some]
    (stats,) = engine.stats().by_draft
    for outcome in outcomes:
        assert 0 <= outcome.more_by_costly <= outcome.drafted
        assert -1 <= outcome.won_by_costly <= outcome.won
        assert outcome.costly_key in {None, ("heads", *HEADS[1:]), HEADS}
    more = sum(outcome.more_by_costly for outcome in outcomes)
    won = sum(outcome.won_by_costly for outcome in outcomes)
    asked = [times for _, times in control.told if times.costly]
    assert all(0 < sum(times.costly.values()) <= times.drafting for times in asked)
    if drafter == "heads":
        assert (more, won) == (stats.draft_tokens, stats.accepted_tokens)
        assert won > 0
    elif drafter == "suffix":
        assert (more, won, stats.own_draft_tokens, asked) == (0, 0, 0, [])
    else:
        assert 0 < stats.own_draft_tokens < stats.draft_tokens
        assert 0 < more < stats.draft_tokens
        assert won <= stats.accepted_tokens
