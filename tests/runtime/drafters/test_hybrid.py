"""A draft of several sources takes each token from the surer one, and every source goes on behind it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from turbo_runtime.drafters.draft import Coupling, Draft, Offer, Want
from turbo_runtime.drafters.hybrid import LEAST_SURVIVAL, propose

Script = dict[int, tuple[int, float]]  # the token before -> what follows, and how surely


class Scripted:
    """A source that knows what follows each token."""

    def __init__(self, name: str, script: Script) -> None:
        self.name, self._script = name, script

    def begin(self, wants: Sequence[Want]) -> Scripted:
        self._before: list[int | None] = [want.tokens[-1] for want in wants]
        return self

    def offers(self, _beside: Sequence[float]) -> list[Offer | None]:
        known = [None if token is None else self._script.get(token) for token in self._before]
        return [None if follow is None else Offer(*follow, cell=follow[0]) for follow in known]

    def advance(self, tokens: Sequence[int | None]) -> None:
        self._before = list(tokens)

    def learn(self, cell: Hashable, accepted: bool) -> None:
        raise AssertionError("proposing teaches nothing")

    def finish(self, request_id: str, tokens: Sequence[int], prompt_length: int, tenant: str) -> None:
        raise AssertionError("proposing ends nothing")


def draft(*sources: Scripted, last: int = 0, limit: int = 8) -> Draft:
    (found,) = propose(sources, [Want("r", [last], 1, limit, "", Coupling(0, 0.0))])
    return found


ONE = Scripted("one", {0: (1, 0.5), 1: (2, 0.9), 2: (9, 0.4), 7: (8, 0.5)})
TWO = Scripted("two", {0: (5, 0.4), 1: (6, 0.8), 2: (7, 0.5)})


def test_each_token_is_the_surer_sources_and_all_go_on_behind_it() -> None:
    found = draft(ONE, TWO)
    assert found.tokens == (1, 2, 7, 8)
    assert [evidence.source for evidence in found.evidence] == ["one", "one", "two", "one"]
    assert found.survival == (0.5, 0.45, 0.225, 0.1125)
    assert found.drafter == "hybrid"


def test_one_source_alone_drafts_what_it_knows() -> None:
    assert draft(TWO).tokens == (5,)
    assert draft(TWO).drafter == "two"
    assert draft(TWO, last=99) == Draft()
    assert propose([], [Want("r", [0], 1, 4, "", Coupling(0, 0.0))]) == [Draft()]


def test_a_draft_ends_at_its_limit_and_where_it_would_hardly_survive() -> None:
    assert draft(ONE, TWO, limit=2).tokens == (1, 2)
    circle = Scripted("circle", {0: (0, 0.5)})
    long = draft(circle, limit=64)
    assert long.survival[-1] >= LEAST_SURVIVAL > long.survival[-1] / 2


def test_the_drafts_of_a_batch_have_each_their_own_length() -> None:
    wants = [Want(str(n), [last], 1, limit, "", Coupling(0, 0.0)) for n, (last, limit) in enumerate(_CASES)]
    together = propose([ONE, TWO], wants)
    assert together == [draft(ONE, TWO, last=last, limit=limit) for last, limit in _CASES]
    assert [len(found.tokens) for found in together] == [4, 0, 1, 2]


_CASES = ((0, 8), (99, 8), (7, 8), (0, 2))


def test_a_cut_draft_is_its_beginning() -> None:
    whole = draft(ONE, TWO)
    for length in range(6):
        cut = whole.cut(length)
        assert cut.tokens == whole.tokens[:length]
        assert cut.survival == whole.survival[:length]
        assert cut.evidence == whole.evidence[:length]
