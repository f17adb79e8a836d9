"""A change of the cluster wakes those whose plan it may change, and nobody else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal

import pytest

from turbo_dev.fleet import chosen
from turbo_operator.api import PlanReason
from turbo_operator.inventory.impact import Change, compare, concerns
from turbo_operator.inventory.supply import ClusterInventory, Node, Owner, PodUsage, Quota, take_stock
from turbo_operator.plan import Choice, EvaluatedCandidate, Plan
from turbo_operator.snapshot import Accelerator

GPU = "nvidia.com/gpu"
ME = Owner("team", "chat")
H100 = Accelerator("h100", GPU, Decimal(1), 80 << 30, node_selector={"product": "H100"})
L4 = Accelerator("l4", GPU, Decimal(1), 24 << 30, node_selector={"product": "L4"})
CHOICE = chosen(H100)
NO_L4 = EvaluatedCandidate("l4", 1, "Off", reason=PlanReason.INSUFFICIENT_CAPACITY)


def stock(
    h100: int = 0, l4: int = 0, mine: int = 0, quota: int | None = None, others: Sequence[str | None] = ()
) -> ClusterInventory:
    """`mine` are its pods on H100s, `others` what further pods of its were made for; None is to inspect."""
    nodes = [
        Node(product, {"product": product}, (), True, {GPU: count * 1000})
        for product, count in (("H100", h100), ("L4", l4))
    ]
    pods = [PodUsage(ME, "H100", {GPU: 1000}, {}, accelerator="h100")] * mine
    pods += [PodUsage(ME, "L4", {"cpu": 100}, {}, accelerator=other) for other in others]
    quotas = [] if quota is None else [Quota("team", {GPU: quota})]
    return take_stock({"h100": H100, "l4": L4}, nodes, pods, quotas)


def plan(replicas: int = 2, *rejected: EvaluatedCandidate, choice: Choice | None = CHOICE) -> Plan:
    reason = PlanReason.FEASIBLE if choice else PlanReason.INSUFFICIENT_CAPACITY
    return Plan(choice, replicas, reason, "So it is.", rejected)


def is_woken(it: Plan, before: ClusterInventory, after: ClusterInventory) -> bool:
    change = compare(before, after)
    return bool(change) and concerns(it, ME, change, after)


def test_the_same_stock_is_no_change() -> None:
    assert not compare(stock(4, 2), stock(4, 2))
    none: frozenset[str] = frozenset()
    change = Change(frozenset({"l4"}), frozenset({"h100"}), frozenset(), none)
    assert compare(stock(4, 2), stock(3, 3)) == change


@pytest.mark.parametrize(
    ("it", "before", "after", "woken"),
    [
        (plan(2), stock(4), stock(3), False),  # enough is left
        (plan(2), stock(4), stock(1), True),
        (plan(2), stock(4, mine=2), stock(2, mine=2), False),  # all of its pods have their place
        (plan(2), stock(4, mine=1), stock(1, mine=1), True),
        (plan(2), stock(4, mine=1), stock(0, mine=1, others=[None]), True),  # that one serves nobody
        (plan(2), stock(4), stock(1, others=["l4", "l4"]), True),  # those are of the plan before
        (plan(2), stock(1), stock(4), False),  # more of what it has is no other plan
        (plan(2), stock(4, 0), stock(4, 1), False),
        (plan(2, NO_L4), stock(4, 0), stock(4, 1), True),
        (plan(2, NO_L4), stock(4, 1), stock(4, 0), False),
        (plan(2, choice=None), stock(1), stock(2), True),
        (plan(2, choice=None), stock(2), stock(1), False),
        (plan(2), stock(4, quota=3), stock(4, quota=2), True),
        (plan(2), stock(4), stock(4, quota=2), True),
    ],
)
def test_who_is_planned_anew(
    it: Plan, before: ClusterInventory, after: ClusterInventory, woken: bool
) -> None:
    assert is_woken(it, before, after) is woken


def test_whoever_was_refused_some_is_woken_by_it_whatever_its_condition_names_first() -> None:
    """The nearest refusal may be of money, and what is short elsewhere be within it."""
    dear = EvaluatedCandidate("h100", 1, "Off", reason=PlanReason.BUDGET_EXCEEDED)
    it = Plan(None, 1, PlanReason.BUDGET_EXCEEDED, "Nearest: it costs more.", (dear, NO_L4))
    assert is_woken(it, stock(4, 0), stock(4, 1))
    assert not is_woken(it, stock(4, 0), stock(5, 0))


def test_cores_and_memory_that_are_freed_beside_accelerators_wake_whoever_was_refused_those() -> None:
    def beside(memory: int, l4: int = 1) -> ClusterInventory:
        has = {GPU: 1000, "cpu": 8000, "memory": 64_000}
        node = Node("L4", {"product": "L4"}, (), True, has)
        other = PodUsage(None, "L4", {GPU: 1000 - l4 * 1000, "memory": 64_000 - memory}, {})
        return take_stock({"l4": L4}, [node], [other])

    assert is_woken(plan(2, NO_L4), beside(8_000), beside(32_000))
    assert not is_woken(plan(2, NO_L4), beside(32_000), beside(8_000))
    assert not is_woken(plan(2), beside(8_000), beside(32_000))
    assert not is_woken(plan(2, NO_L4), beside(8_000, l4=0), beside(32_000, l4=0))  # none is free


def test_a_node_that_becomes_one_of_another_capacity_type_wakes_whom_it_is_lost_and_gained_for() -> None:
    def as_(kind: str) -> ClusterInventory:
        labels = {"product": "L4", "karpenter.sh/capacity-type": kind}
        return take_stock({"l4": L4}, [Node("L4", labels, (), True, {GPU: 1000})], [])

    assert is_woken(plan(2, NO_L4), as_("on-demand"), as_("spot"))
    assert is_woken(plan(1, choice=chosen(L4)), as_("on-demand"), as_("spot"))
    assert not is_woken(plan(1, choice=chosen(L4)), as_("on-demand"), as_("on-demand"))


def test_a_place_in_a_quota_that_another_one_leaves_is_noticed() -> None:
    theirs = PodUsage(Owner("team", "other"), None, {GPU: 1000}, {}, namespace="team")
    before, after = (
        take_stock({"h100": H100}, [], pods, [Quota("team", {GPU: 2000})]) for pods in ([theirs], [])
    )
    assert is_woken(plan(2), before, after)


def test_quotas_of_other_namespaces_wake_nobody_here() -> None:
    elsewhere = replace(stock(4), quotas=(Quota("elsewhere", {GPU: 1}),))
    assert not is_woken(plan(2), stock(4), elsewhere)


def test_whose_place_another_one_takes_at_once_is_planned_anew() -> None:
    """Found on the real node: in a rollout a stranger's pod took the place, and the plan was said to hold."""
    before, one = stock(2, mine=2), stock(2, mine=1)
    stranger = PodUsage(None, "H100", {GPU: 1000}, {})
    taken = take_stock(one.accelerators, one.nodes.values(), [*one.own[ME], stranger])
    assert is_woken(plan(2), before, taken)
    assert not is_woken(plan(2), before, one), "it is free for its own next pod"
    assert not is_woken(plan(1), before, taken), "one replica was too many"
