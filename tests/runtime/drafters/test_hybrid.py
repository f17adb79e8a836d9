"""A draft of several sources takes each token from the surer one, and every source goes on behind it."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turbo_runtime.drafters.interface import Draft, Drafter, DraftRequest, TokenCandidate, TokenOrigin
from turbo_runtime.drafters.proposer import MIN_ACCEPTANCE, Guarded, propose

Script = dict[int, tuple[int, float]]  # the token before -> what follows, and how surely


class Scripted(Drafter):
    """A source that knows what follows each token."""

    def __init__(self, name: str, script: Script, *, is_costly: bool = False) -> None:
        super().__init__()
        self.name, self._script, self.is_costly = name, script, is_costly

    def begin(self, wants: Sequence[DraftRequest]) -> None:
        self._before: list[int | None] = [want.tokens[-1] for want in wants]

    def next_candidates(self, _best_confidence: Sequence[float]) -> list[TokenCandidate | None]:
        known = [None if token is None else self._script.get(token) for token in self._before]
        return [None if follow is None else TokenCandidate(*follow, cell=follow[0]) for follow in known]

    def advance(self, tokens: Sequence[int | None]) -> None:
        self._before = list(tokens)

    def learn(self, cell: Hashable, accepted: bool) -> None:
        pytest.fail("proposing teaches nothing")


SCRIPTS = st.dictionaries(
    st.integers(0, 4), st.tuples(st.integers(0, 4), st.floats(0.01, 1, exclude_max=True)), max_size=5
)


def draft(*sources: Scripted, last: int = 0, limit: int = 8) -> Draft:
    (found,) = propose([*map(Guarded, sources)], [DraftRequest("r", [last], 1, limit, "", 0, 0.0)])
    return found


ONE = Scripted("one", {0: (1, 0.5), 1: (2, 0.9), 2: (9, 0.4), 7: (8, 0.5)})
TWO = Scripted("two", {0: (5, 0.4), 1: (6, 0.8), 2: (7, 0.5)})


def test_each_token_is_the_surer_sources_and_all_go_on_behind_it() -> None:
    found = draft(ONE, TWO)
    assert found.tokens == (1, 2, 7, 8)
    assert [origin.source for origin in found.origins] == ["one", "one", "two", "one"]
    assert found.cumulative_acceptance == (0.5, 0.45, 0.225, 0.1125)


@pytest.mark.parametrize("turned", [False, True])
def test_a_draft_tells_what_would_be_drafted_without_costly_sources(*, turned: bool) -> None:
    slow = {0: (5, 0.9), 5: (6, 0.9), 6: (7, 0.9), 7: (8, 0.9), 8: (9, 0.9)}
    free = {0: (5, 0.5), 5: (6, 0.95), 6: (1, 0.3), 7: (8, 0.6), 8: (9, 0.95)}
    sources = [Scripted("free", free), Scripted("slow", slow, is_costly=True)]
    found = draft(*(sources[::-1] if turned else sources))
    assert found.tokens == (5, 6, 7, 8, 9)
    assert [origin.source for origin in found.origins] == ["slow", "free", "slow", "slow", "free"]
    # behind the 7 it would not have come
    assert [origin.fallback_token for origin in found.origins] == [5, 6, 1, None, None]
    assert [[token for _, _, token in origin.losing_candidates] for origin in found.origins] == [
        [5],
        [6],
        [1],
        [8],
        [9],
    ]


@pytest.mark.parametrize(("least", "instead"), [(0.02, [5, 6]), (0.2, [5, None]), (0.6, [None, None])])
def test_what_others_are_not_sure_enough_of_would_not_be_drafted(
    least: float, instead: list[int | None]
) -> None:
    sources = [
        Scripted("free", {0: (5, 0.5), 5: (6, 0.3)}),
        Scripted("slow", {0: (5, 0.9), 5: (6, 0.9)}, is_costly=True),
    ]
    (found,) = propose([*map(Guarded, sources)], [DraftRequest("r", [0], 1, 8, "", 0, 0.0)], least)
    assert [origin.fallback_token for origin in found.origins] == instead


def test_of_what_is_no_number_nothing_is_told() -> None:
    sources = [Scripted("free", {0: (5, math.nan)}), Scripted("slow", {0: (6, 0.9)}, is_costly=True)]
    assert draft(*sources).origins == (TokenOrigin("slow", 6),)
    assert draft(*sources[::-1]).origins == (TokenOrigin("slow", 6),)


@given(scripts=st.lists(SCRIPTS, min_size=1, max_size=3), least=st.floats(0, 1))
def test_without_costly_sources_nothing_else_would_be_drafted(scripts: list[Script], least: float) -> None:
    sources = [Scripted(str(number), script) for number, script in enumerate(scripts)]
    (found,) = propose([*map(Guarded, sources)], [DraftRequest("r", [0], 1, 8, "", 0, 0.0)], least)
    assert [origin.fallback_token for origin in found.origins] == list(found.tokens)


@given(free=SCRIPTS, slow=SCRIPTS, least=st.floats(0, 1))
def test_what_is_told_of_the_others_is_what_they_draft_alone(
    free: Script, slow: Script, least: float
) -> None:
    want = DraftRequest("r", [0], 1, 8, "", 0, 0.0)
    (found,) = propose(
        [Guarded(Scripted("free", free)), Guarded(Scripted("slow", slow, is_costly=True))], [want], least
    )
    (alone,) = propose([Guarded(Scripted("free", free))], [want], least)
    told = [origin.fallback_token for origin in found.origins]
    for place, (token, instead) in enumerate(zip(found.tokens, told, strict=True)):
        assert instead == (alone.tokens[place] if place < len(alone.tokens) else None)
        if instead != token:
            assert set(told[place + 1 :]) <= {None}
            break


def test_one_source_alone_drafts_what_it_knows() -> None:
    assert draft(TWO).tokens == (5,)
    assert [origin.source for origin in draft(TWO).origins] == ["two"]
    assert draft(TWO, last=99) == Draft()
    assert propose([], [DraftRequest("r", [0], 1, 4, "", 0, 0.0)]) == [Draft()]


def test_a_draft_ends_at_its_limit_and_where_it_would_hardly_survive() -> None:
    assert draft(ONE, TWO, limit=2).tokens == (1, 2)
    circle = Scripted("circle", {0: (0, 0.5)})
    long = draft(circle, limit=64)
    assert long.cumulative_acceptance[-1] >= MIN_ACCEPTANCE > long.cumulative_acceptance[-1] / 2


def test_the_drafts_of_a_batch_have_each_their_own_length() -> None:
    wants = [DraftRequest(str(n), [last], 1, limit, "", 0, 0.0) for n, (last, limit) in enumerate(_CASES)]
    together = propose([Guarded(ONE), Guarded(TWO)], wants)
    assert together == [draft(ONE, TWO, last=last, limit=limit) for last, limit in _CASES]
    assert [len(found.tokens) for found in together] == [4, 0, 1, 2]


_CASES = ((0, 8), (99, 8), (7, 8), (0, 2))
