"""What a TurboBudget refuses, and that no two TurboDeployments take the same dollar."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turbo_operator.api import WithinBudgetReason
from turbo_operator.commitments import NO_BUDGET, NOTHING, Allowance, Amount, Budget, Commitments, Entry

TEAM = Budget("team", max_per_hour=Decimal(10))


def amount(per_hour: str | int = 0, unpriced: int = 0, **accelerators: int) -> Amount:
    held = Counter(accelerators)
    free = Counter(mystery=unpriced) if unpriced else Counter[str]()
    return Amount(Decimal(per_hour), held + free, free, (held + free).total())


def refused(budget: Budget, wanted: Amount, held: Amount = NOTHING, others: Amount = NOTHING) -> str | None:
    return Allowance((budget,), held=held, others=others).refuses(wanted)


def test_without_a_budget_nothing_is_refused() -> None:
    assert NO_BUDGET.refuses(amount(1000, l4=900)) is None
    assert (NO_BUDGET.broken, NO_BUDGET.allowed) == (None, None)


def test_money_is_refused_beyond_what_others_leave() -> None:
    assert refused(TEAM, amount(10, l4=1)) is None
    assert refused(TEAM, amount("10.01", l4=1)) == "TurboBudget team has maxPerHour 10"
    clause = refused(TEAM, amount(4, l4=1), others=amount("6.50", l4=2))
    assert clause == "TurboBudget team has maxPerHour 10, of which others have 6.5"
    assert refused(TEAM, amount("3.5", l4=1), others=amount("6.50", l4=2)) is None


def test_accelerators_are_refused_beyond_what_others_leave() -> None:
    budget = Budget("team", max_total=4)
    assert refused(budget, amount(900, l4=4)) is None
    clause = refused(budget, amount(l4=2), others=amount(l4=1, h100=2))
    assert clause == "TurboBudget team has accelerators.maxTotal 4, of which others have 3"


def test_what_a_budget_does_not_allow_is_refused_and_what_runs_of_it_stays() -> None:
    budget = Budget("team", allowed=frozenset({"l4"}))
    assert refused(budget, amount(l4=9)) is None
    assert refused(budget, amount(l4=1, h100=1)) == "TurboBudget team does not allow h100"
    assert refused(budget, amount(h100=2), held=amount(h100=2)) is None
    assert refused(budget, amount(h100=3), held=amount(h100=2)) is not None
    assert refused(Budget("none", allowed=frozenset()), amount(l4=1)) == "TurboBudget none does not allow l4"


def test_a_lowered_budget_refuses_only_growth() -> None:
    held, others = amount(8, l4=2), amount(8, l4=2)
    assert refused(TEAM, held, held, others) is None
    assert refused(TEAM, amount(4, l4=1), held, others) is None
    assert refused(TEAM, amount("8.01", l4=2), held, others) is not None
    assert Allowance((TEAM,), held=held, others=others).broken == (
        WithinBudgetReason.BUDGET_EXCEEDED,
        "TurboBudget team has maxPerHour 10",
    )


def test_what_has_no_price_may_not_grow_within_a_budget_of_money() -> None:
    clause = refused(TEAM, amount(unpriced=1))
    assert clause == "TurboBudget team has maxPerHour, and mystery has no price"
    assert refused(TEAM, amount(unpriced=1), held=amount(unpriced=1)) is None
    assert refused(Budget("count", max_total=1), amount(unpriced=1)) is None


def test_while_what_others_hold_has_no_price_no_money_is_spent() -> None:
    clause = refused(TEAM, amount(1, l4=1), others=amount(unpriced=1))
    assert clause == "TurboBudget team has maxPerHour, and mystery, which others have, has no price"
    assert refused(TEAM, amount(1, l4=1), held=amount(1, l4=1), others=amount(unpriced=1)) is None


def test_a_budget_that_cannot_be_read_lets_nothing_grow() -> None:
    budget = Budget("odd", is_readable=False)
    assert refused(budget, amount(l4=1)) == "TurboBudget odd cannot be read"
    assert refused(budget, amount(l4=1), held=amount(l4=2)) is None


def test_each_of_several_budgets_holds() -> None:
    budgets = (
        TEAM,
        Budget("few", max_total=1, allowed=frozenset({"l4", "h100"})),
        Budget("l4s", allowed=frozenset({"l4"})),
    )
    allowance = Allowance(budgets)
    assert allowance.refuses(amount(1, l4=1)) is None
    assert allowance.refuses(amount(11, l4=1)) == "TurboBudget team has maxPerHour 10"
    assert allowance.refuses(amount(1, l4=2)) == "TurboBudget few has accelerators.maxTotal 1"
    assert allowance.allowed == {"l4"}


def test_what_trainings_hold_counts_beside_replicas() -> None:
    allowance = Allowance((TEAM,), held=amount(6, l4=2), trainings=amount(1, l4=1), earlier=amount(1))
    assert allowance.refuses(amount(8, l4=3)) is None
    assert allowance.refuses(amount(9, l4=3)) == "TurboBudget team has maxPerHour 10"


def test_sums_follow_entries_that_come_change_and_go() -> None:
    commitments: Commitments[str] = Commitments()
    commitments.enter("a", Entry(amount(1, l4=1), amount(3, l4=3)))
    commitments.enter("b", Entry(amount(2, h100=1), amount(2, h100=1)))
    assert (commitments.held, commitments.committed) == (amount(3, l4=1, h100=1), amount(5, l4=3, h100=1))
    assert commitments.others("a") == amount(2, h100=1)
    assert commitments.others("none") == commitments.committed
    commitments.enter("a", Entry(amount(1, l4=1), amount(1, l4=1)))
    commitments.remove("b")
    commitments.remove("b")
    assert commitments.committed == commitments.held == amount(1, l4=1)
    commitments.remove("a")
    assert (commitments.held, dict(commitments.entries)) == (NOTHING, {})


counts = st.integers(0, 6)
limits = st.one_of(st.none(), st.integers(0, 12))
wishes = st.lists(st.tuples(st.sampled_from("abc"), counts, st.booleans(), limits, limits), max_size=30)


@given(wishes)
def test_no_two_take_the_same_dollar_whatever_they_wish_and_however_the_budget_moves(
    steps: list[tuple[str, int, bool, int | None, int | None]],
) -> None:
    """What is committed is within the budget, or no more than it was before."""
    commitments: Commitments[str] = Commitments()
    held = dict.fromkeys("abc", NOTHING)
    for name, count, arrives, per_hour, total in steps:
        budget = Budget("team", None if per_hour is None else Decimal(per_hour), total)
        before, wanted = commitments.committed, amount(count, l4=count)
        last = commitments.entries.get(name)
        own = held[name] | (last.committed if last else NOTHING)
        allowance = Allowance((budget,), held=own, others=commitments.others(name))
        if allowance.refuses(wanted) is None:
            commitments.enter(name, Entry(held[name], held[name] | wanted))
        if arrives and name in commitments.entries:  # what was decided is there
            held[name] = wanted if allowance.refuses(wanted) is None else held[name]
            commitments.enter(name, Entry(held[name], held[name]))
        after = commitments.committed
        if total is not None:
            assert after.total <= max(total, before.total)
        if per_hour is not None:
            assert after.per_hour <= max(Decimal(per_hour), before.per_hour)
        assert after == sum((entry.committed for entry in commitments.entries.values()), NOTHING)


@pytest.mark.parametrize(
    "budget", [TEAM, Budget("count", max_total=3), Budget("l4", allowed=frozenset({"l4"}))]
)
def test_a_budget_is_exceeded_by_what_it_would_refuse_to_an_only_one(budget: Budget) -> None:
    assert budget.check(NOTHING) == (WithinBudgetReason.WITHIN_BUDGET, "")
    clause = refused(budget, amount(20, h100=4))
    assert budget.check(amount(20, h100=4)) == (WithinBudgetReason.BUDGET_EXCEEDED, clause)


def test_what_has_no_price_is_not_known_to_be_within_money_and_may_be_above_another_limit() -> None:
    both = replace(TEAM, max_total=2)
    assert both.check(amount(unpriced=2))[0] == WithinBudgetReason.PRICE_UNKNOWN
    assert both.check(amount(unpriced=3))[0] == WithinBudgetReason.BUDGET_EXCEEDED
    unreadable = Budget("odd", is_readable=False)
    assert unreadable.check(NOTHING) == (
        WithinBudgetReason.BUDGET_UNREADABLE,
        "TurboBudget odd cannot be read",
    )


def test_own_accelerators_without_a_price_let_no_money_grow() -> None:
    """Found in review: what ran counted as nothing."""
    held = amount(unpriced=2)
    clause = "TurboBudget team has maxPerHour, and mystery has no price"
    assert refused(TEAM, held + amount(9, l4=3), held) == clause
    assert refused(TEAM, held, held) is None


def test_one_kind_in_place_of_another_is_as_many() -> None:
    """Found in review: a rollout from one accelerator to another counted both."""
    either = amount(4, a100=4) | amount(3, a100=3, h100=1) | amount(6, h100=4)
    assert (either.total, either.per_hour) == (4, 6)
    assert either.accelerators == Counter(a100=4, h100=4)
