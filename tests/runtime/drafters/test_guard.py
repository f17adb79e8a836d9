"""A drafter that fails is told of once and drafts no more; all others go on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace

import pytest

from turbo_runtime.drafters.interface import Drafter, DraftRequest, TokenCandidate
from turbo_runtime.drafters.loader import ActiveDrafts
from turbo_runtime.drafters.proposer import Guarded, Proposer, propose
from turbo_runtime.drafters.suffix import SuffixDrafter

TOKENS = [1, 2, 3, 4, 5, 6, 7, 1, 2, 3]
WANT = DraftRequest("r", TOKENS, 1, 4, "", 0, 0.0)


class Failing(Drafter):
    """Offers 9 after anything, and fails in one of its verbs."""

    name = "failing"

    def __init__(self, verb: str) -> None:
        super().__init__()
        self.verb, self.calls = verb, 0

    def begin(self, wants: Sequence[DraftRequest]) -> None:
        self._wants = len(wants)
        self._or(None, "begin")

    def next_candidates(self, _best_confidence: Sequence[float]) -> list[TokenCandidate | None]:
        return self._or([TokenCandidate(9, 0.99, 0)] * self._wants, "offers")

    def advance(self, tokens: Sequence[int | None]) -> None:
        self._or(None, "advance")

    def learn(self, cell: Hashable, accepted: bool) -> None:
        self._or(None, "learn")

    def finish(self, *_: object) -> None:
        self._or(None, "finish")

    def _or(self, said, verb: str):  # type: ignore[no-untyped-def]
        self.calls += 1
        if verb == self.verb:
            raise ArithmeticError("too large")
        return said


VERBS: dict[str, Callable[[Guarded], object]] = {
    "begin": lambda source: propose([source], [WANT]),
    "offers": lambda source: propose([source], [WANT]),
    "advance": lambda source: propose([source], [WANT]),
    "learn": lambda source: source.attempt(source.drafter.learn, 0, True),
    "finish": lambda source: source.attempt(source.drafter.finish, always=True),
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_failure_is_told_once_and_ends_the_drafts_of_that_source(
    verb: str, caplog: pytest.LogCaptureFixture
) -> None:
    source = Guarded(Failing(verb))
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            VERBS[verb](source)
    assert len(caplog.records) == 1
    assert source.problem == "the drafter failing failed: ArithmeticError: too large"
    (draft,) = propose([Guarded(SuffixDrafter()), source], [WANT])
    assert {origin.source for origin in draft.origins} == {"suffix"}
    assert draft.tokens[:3] == (4, 5, 6)


@pytest.mark.parametrize("verb", ["begin", "offers", "advance"])
def test_the_others_draft_on_in_the_very_step(verb: str) -> None:
    failing = Failing(verb)
    drafters = Proposer(ActiveDrafts("auto", failing))  # type: ignore[arg-type]
    (draft,) = drafters.propose([WANT])
    assert "suffix" in {origin.source for origin in draft.origins} or verb == "advance"
    assert "failing" in drafters.problem
    assert not any(origin.source == "failing" for origin in drafters.propose([WANT])[0].origins)
    calls = failing.calls
    drafters.propose([WANT])
    assert failing.calls == calls


def test_an_offer_without_a_number_for_its_chance_is_none() -> None:
    class Unsure(Failing):
        def next_candidates(self, _best_confidence: Sequence[float]) -> list[TokenCandidate | None]:
            return [TokenCandidate(9, float("nan"), 0)] * self._wants

    (draft,) = propose([Guarded(Unsure(""))], [WANT])
    assert draft.tokens == ()


def test_a_further_drafter_drafts_for_whoever_wants_it_and_learns_from_its_own_tokens() -> None:
    class Further(Failing):
        def __init__(self) -> None:
            super().__init__("never")
            self.name = "further"
            self.taught: list[bool] = []
            self.ended: list[tuple[str, int]] = []

        def learn(self, cell: Hashable, accepted: bool) -> None:
            self.taught.append(accepted)

        def finish(self, request_id: str, tokens: Sequence[int], *_: object) -> None:
            self.ended.append((request_id, len(tokens)))

    further = Further()
    drafters = Proposer()
    drafters._guards.append(Guarded(further))
    (draft,) = drafters.propose([replace(WANT, method="suffix")])
    assert further.calls == 0
    assert draft.drafted_without("suffix", len(draft.tokens)) == 0
    drafters.observe(draft, [4])
    assert further.taught == []
    (draft,) = drafters.propose([WANT])
    assert draft.origins[0].source == "further"  # the surer one
    drafters.observe(draft, [4])
    assert further.taught == [False]
    drafters.finish("r", TOKENS, 10, "")
    assert further.ended == [("r", len(TOKENS))]


def test_a_drafter_that_reads_texts_is_told_of_prompts_for_it_and_reads_what_others_leave() -> None:
    class Reader(Failing):
        def __init__(self) -> None:
            super().__init__("never")
            self.unread = 0

        def expect(self, request_id: str, tokens: Sequence[int]) -> None:
            self.unread += len(tokens)

        @property
        def waiting(self) -> bool:
            return self.unread > 0

        def read(self, max_tokens: int) -> int:
            number = min(self.unread, max_tokens)
            self.unread -= number
            return number

    reader, drafters = Reader(), Proposer()
    drafters._guards.append(Guarded(reader))
    drafters.expect("a", TOKENS, "suffix")
    assert (reader.unread, drafters.waiting) == (0, True)
    drafters.expect("b", TOKENS, "auto")
    assert reader.unread == len(TOKENS)
    assert drafters.read(2 * len(TOKENS) + 4) == 2 * len(TOKENS) + 4
    assert reader.unread == len(TOKENS) - 4
    assert drafters.read(100) == len(TOKENS) - 4
    assert not drafters.waiting
