"""What is left of a budget counts all that is there and all that was decided, whoever looks first."""

from __future__ import annotations

import itertools
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from turbo_dev.small_world import KEY, World
from turbo_dev.trainings import td
from turbo_operator.api import GROUP, CapacityType, TurboDeployment
from turbo_operator.commitments import NOTHING, Amount, Budget, Entry
from turbo_operator.controller.budgets.reservations import DOUBT_SECONDS, Reservations, most_expensive
from turbo_operator.controller.budgets.status_writer import ACCELERATORS, PER_HOUR, BudgetStatusWriter
from turbo_operator.controller.cache.store import Cache, Key
from turbo_operator.controller.informer import ObjectHandler
from turbo_operator.controller.kube import KubeError
from turbo_operator.inventory.store import InventoryStore
from turbo_operator.snapshot import Accelerator

NOW = 1_700_000_000.0
L4 = Accelerator("l4", "nvidia.com/gpu", Decimal(1), 24 << 30, prices={CapacityType.ON_DEMAND: Decimal(1)})
CHAT, DOCS = Key("team", "chat"), Key("team", "docs")
_versions = itertools.count(1)


def l4s(count: int) -> Amount:
    return Amount.of("l4", count, Decimal(count)) if count else NOTHING


def meta(name: str, uid: str, **more: Any) -> dict[str, Any]:
    version = str(next(_versions))
    return {"namespace": "team", "name": name, "uid": uid, "resourceVersion": version, **more}


def owned(kind: str, key: Key, owner: str, name: str, **spec: Any) -> dict[str, Any]:
    labels = {f"{GROUP}/deployment": key.name, f"{GROUP}/accelerator": "l4"}
    by = {"kind": "TurboDeployment", "name": key.name, "uid": owner, "controller": True}
    return {
        "kind": kind,
        "metadata": meta(name, f"{name} of {owner}", labels=labels, ownerReferences=[by]),
        "spec": {"template": {"metadata": {"labels": labels}}, **spec},
    }


def workload(key: Key, replicas: int, owner: str = "u") -> dict[str, Any]:
    return owned("Deployment", key, owner, f"{key.name}-v1", replicas=replicas)


def training(key: Key) -> dict[str, Any]:
    return owned("Job", key, "u", f"{key.name}-train-1")


def budget(**spec: Any) -> dict[str, Any]:
    return {"kind": "TurboBudget", "metadata": meta("team", "b", generation=3), "spec": spec}


def price(cache: Cache, dollars: Decimal | None) -> None:
    prices = {} if dollars is None else {CapacityType.ON_DEMAND: dollars}
    place = {"name": "l4", "uid": "a", "resourceVersion": str(next(_versions))}
    cache.accelerators.put({"metadata": place}, replace(L4, prices=prices))


def cluster(*bodies: dict[str, Any]) -> tuple[Cache, ObjectHandler]:
    cache = Cache()
    handler = ObjectHandler(cache, InventoryStore(cache.owner_of), *3 * (lambda _: None,))
    price(cache, Decimal(1))
    for body in bodies:
        handler.put(body["kind"], body)
    return cache, handler


def test_what_nobody_has_looked_at_yet_counts_as_it_is_there() -> None:
    cache, _ = cluster(
        budget(accelerators={"maxTotal": 9}), workload(CHAT, 2), workload(DOCS, 3), training(DOCS)
    )
    left = Reservations(cache).allowance(CHAT, "u", NOW)
    assert (left.held, left.trainings, left.others) == (l4s(2), NOTHING, l4s(4))
    assert left.refuses(l4s(5)) is None
    assert left.refuses(l4s(6)) is not None
    assert Reservations(cache).allowance(DOCS, "u", NOW).trainings == l4s(1)


def test_what_was_decided_counts_before_it_is_there_and_until_the_next_decision() -> None:
    cache, _ = cluster(budget(accelerators={"maxTotal": 4}), workload(CHAT, 1), workload(DOCS, 1))
    reservations = Reservations(cache)
    assert reservations.allowance(DOCS, "u", NOW).refuses(l4s(3)) is None
    reservations.enter(DOCS, Entry(l4s(1), l4s(3)), NOW)
    assert reservations.allowance(CHAT, "u", NOW).refuses(l4s(2)) is not None
    reservations.enter(DOCS, Entry(l4s(1), l4s(1)), NOW)
    assert reservations.allowance(CHAT, "u", NOW).refuses(l4s(3)) is None


def test_of_a_deleted_one_what_is_left_counts_until_it_is_gone() -> None:
    cache, handler = cluster(budget(accelerators={"maxTotal": 4}), workload(CHAT, 1), workload(DOCS, 3))
    reservations = Reservations(cache)
    reservations.enter(DOCS, Entry(l4s(3), l4s(3)), NOW)
    reservations.enter_held(DOCS, NOW)
    assert reservations.allowance(CHAT, "u", NOW).others == l4s(3)
    handler.drop("Deployment", workload(DOCS, 3))
    reservations.enter_held(DOCS, NOW)
    assert reservations.allowance(CHAT, "u", NOW).others == NOTHING


def test_what_an_earlier_object_of_the_same_name_has_left_is_not_the_new_ones() -> None:
    cache, _ = cluster(budget(accelerators={"maxTotal": 4}), workload(CHAT, 3, "earlier"))
    left = Reservations(cache).allowance(CHAT, "u", NOW)
    assert (left.held, left.earlier) == (l4s(3), l4s(3))
    assert left.refuses(l4s(1)) is None
    assert left.refuses(l4s(2)) is not None


def test_namespaces_know_nothing_of_each_other() -> None:
    cache, _ = cluster(budget(accelerators={"maxTotal": 4}))
    reservations = Reservations(cache)
    reservations.enter(Key("others", "chat"), Entry(l4s(9), l4s(9)), NOW)
    assert reservations.allowance(CHAT, "u", NOW).others == NOTHING


def test_each_limit_is_read_and_what_cannot_be_read_lets_nothing_grow() -> None:
    cache, handler = cluster(budget(maxPerHour="2.5"))
    assert cache.budgets_of("team") == (Budget("team", Decimal("2.5"), uid="b", generation=3),)
    handler.put("TurboBudget", budget(accelerators={"maxTotal": 0, "allowed": []}))
    assert cache.budgets_of("team") == (Budget("team", None, 0, frozenset(), uid="b", generation=3),)
    handler.put("TurboBudget", budget(maxPerHour=7))
    assert [each.is_readable for each in cache.budgets_of("team")] == [False]
    assert Reservations(cache).allowance(CHAT, "u", NOW).refuses(l4s(1)) == "TurboBudget team cannot be read"
    handler.drop("TurboBudget", budget())
    assert cache.budgets_of("team") == ()


def test_a_price_that_rises_counts_for_all_at_once() -> None:
    """Found in review: entries kept the price of their day, and others grew into the difference."""
    cache, _ = cluster(budget(maxPerHour="10"), workload(CHAT, 4), workload(DOCS, 1))
    reservations = Reservations(cache)
    reservations.enter(CHAT, Entry(l4s(4), l4s(4)), NOW)
    reservations.enter(DOCS, Entry(l4s(1), l4s(2)), NOW)
    assert reservations.allowance(DOCS, "u", NOW).others == l4s(4)
    price(cache, Decimal(2))
    left = reservations.allowance(DOCS, "u", NOW)
    assert left.others == Amount.of("l4", 4, Decimal(8))
    assert left.held == Amount.of("l4", 2, Decimal(4))
    assert left.refuses(Amount.of("l4", 3, Decimal(6))) is not None
    price(cache, None)
    assert reservations.allowance(DOCS, "u", NOW).others == Amount.of("l4", 4, None)


def test_nodes_that_are_bought_whole_are_valued_whole() -> None:
    row = replace(L4, price_per_node=True, count_per_node=4)
    assert most_expensive(l4s(5), {"l4": row}).per_hour == 8
    assert most_expensive(l4s(5), {}) == Amount.of("l4", 5, None)


def test_an_entry_is_not_lowered_while_a_write_may_have_been_carried_out_unseen() -> None:
    """Found in review: the answer of a write was lost, and the next look counted what it saw."""
    cache, _ = cluster(budget(accelerators={"maxTotal": 6}), workload(CHAT, 2), workload(DOCS, 1))
    reservations = Reservations(cache)
    reservations.enter(CHAT, Entry(l4s(2), l4s(5)), NOW)
    reservations.doubt(CHAT, NOW)
    reservations.enter(CHAT, Entry(l4s(2), l4s(2)), NOW + 1)
    assert reservations.allowance(DOCS, "u", NOW + 1).others == l4s(5)
    reservations.enter(CHAT, Entry(l4s(2), l4s(2)), NOW + DOUBT_SECONDS)
    assert reservations.allowance(DOCS, "u", NOW + DOUBT_SECONDS).others == l4s(2)


class Server:
    """Keeps the statuses that are written, but for those of what `fails`."""

    def __init__(self) -> None:
        self.written: list[dict[str, Any]] = []
        self.fails: set[str] = set()

    async def apply_status(self, _resource: Any, wanted: dict[str, Any]) -> dict[str, Any]:
        if wanted["metadata"]["name"] in self.fails:
            raise KubeError(500, "Unable", "no status is taken")
        self.written.append(wanted)
        return wanted


async def test_the_status_shows_what_is_taken_and_is_written_once() -> None:
    cache, handler = cluster(budget(maxPerHour="4"), workload(CHAT, 2), workload(DOCS, 1))
    reservations, server = Reservations(cache), Server()
    api: Any = server
    writer = BudgetStatusWriter(cache, reservations, api, lambda: NOW)
    reservations.enter(DOCS, Entry(l4s(1), l4s(2)), NOW)
    await writer.write()
    await writer.write()
    (wanted,) = server.written
    assert wanted["metadata"] == {"name": "team", "namespace": "team", "uid": "b"}
    (within,) = wanted["status"].pop("conditions")
    assert (within["type"], within["status"], within["reason"]) == ("WithinBudget", "True", "WithinBudget")
    assert wanted["status"] == {
        "observedGeneration": 3,
        "inUse": {"perHour": "3.00", "accelerators": 3},
        "committed": {"perHour": "4.00", "accelerators": 4},
        "deployments": [
            {"name": "chat", "perHour": "2.00", "accelerators": 2},
            {"name": "docs", "perHour": "2.00", "accelerators": 2},
        ],
    }
    assert PER_HOUR.labels("team", "team", "limit")._value.get() == 4
    assert ACCELERATORS.labels("team", "team", "committed")._value.get() == 4
    handler.put("TurboBudget", budget(accelerators={"maxTotal": 3}))
    await writer.write()
    limits = [sample.labels["state"] for metric in PER_HOUR.collect() for sample in metric.samples]
    assert "limit" not in limits, "it has none of money any more"
    handler.put("TurboBudget", budget(maxPerHour="3"))
    await writer.write()
    (exceeded,) = server.written[-1]["status"]["conditions"]
    assert (exceeded["status"], exceeded["reason"]) == ("False", "BudgetExceeded")
    assert exceeded["message"].startswith("TurboBudget team has maxPerHour 3, and more is taken")
    handler.drop("TurboBudget", budget())
    await writer.write()
    samples = [sample.labels["name"] for metric in PER_HOUR.collect() for sample in metric.samples]
    assert "team" not in samples


async def test_one_status_that_is_not_taken_keeps_no_other_back_and_leaves_no_figures() -> None:
    """Found in review."""
    cache, handler = cluster(budget(maxPerHour="4"))
    other = budget(maxPerHour=7)
    other["metadata"] |= {"name": "zoo", "uid": "z"}
    handler.put("TurboBudget", other)
    server = Server()
    server.fails = {"team"}
    api: Any = server
    writer = BudgetStatusWriter(cache, Reservations(cache), api, lambda: NOW)
    await writer.write()
    (wanted,) = server.written
    (unreadable,) = wanted["status"]["conditions"]
    assert (wanted["metadata"]["name"], unreadable["status"]) == ("zoo", "Unknown")
    assert unreadable["message"].startswith("TurboBudget zoo cannot be read: apply it again")
    handler.drop("TurboBudget", budget())
    await writer.write()
    assert "team" not in {sample.labels["name"] for metric in PER_HOUR.collect() for sample in metric.samples}


async def rolled(world: World, it: TurboDeployment) -> None:
    """Somebody applies the spec, and pods come and go."""
    await world.written(it)
    for _ in range(12):
        await world.settled()
        world.run_pods()
        world.now += 30


@pytest.mark.parametrize(
    ("replicas", "limit"),
    [
        (4, Budget("team", max_total=3)),
        (4, Budget("team", is_readable=False)),
        (4, Budget("team", allowed=frozenset({"other"}))),
        (4, Budget("team", max_per_hour=Decimal("0.01"))),
        (1, Budget("team", max_total=0)),
    ],
)
async def test_a_rollout_goes_on_above_a_lowered_budget_and_ends_with_all_replicas(
    replicas: int, limit: Budget
) -> None:
    """Found in review: a replica that had gone first did not come back, nor did its successor."""
    world, spec = World(), {"replicas": replicas, "rollout": {"maxUnavailable": 1, "minReadySeconds": 0}}
    await rolled(world, td(absent=True, spec=spec))
    before = world.replicas
    assert sum(before.values()) == replicas
    world.cache.budgets.put({"metadata": meta("team", "b")}, limit)
    other = {"podTemplate": {"spec": {"env": [{"name": "LOG", "value": "a"}]}}}
    await rolled(world, td(absent=True, spec={**spec, **other}))
    assert sum(world.replicas.values()) == replicas
    assert world.replicas.keys().isdisjoint(before)
    assert world.reconciler.reservations.commitments("team", NOW).committed.total == replicas


async def test_a_deployment_gets_what_the_budget_leaves_and_says_so() -> None:
    world = World()
    world.cache.budgets.put({"metadata": meta("team", "b")}, Budget("team", max_total=1))
    await world.written(td(absent=True, spec={"replicas": 3}))
    await world.settled()
    assert sum(world.replicas.values()) == 1
    clause = "TurboBudget team has accelerators.maxTotal 1"
    assert clause in world.condition("Reconciling")[2]
    assert world.condition("Stalled")[0] == "False", "another may leave something"
    world.cache.budgets.put({"metadata": meta("team", "b")}, Budget("team", max_total=9))
    world.run_pods()
    await world.settled()
    assert sum(world.replicas.values()) == 3
    world.cache.budgets.put({"metadata": meta("team", "b")}, Budget("team", max_total=2))
    world.run_pods()
    await world.settled()
    assert sum(world.replicas.values()) == 3, "a lowered budget ends nothing"
    assert world.condition("WithinBudget") == (
        "False",
        "BudgetExceeded",
        "TurboBudget team has accelerators.maxTotal 2: nothing more starts in the namespace.",
    )


async def test_a_training_waits_for_what_the_budget_leaves() -> None:
    world = World()
    world.cache.budgets.put({"metadata": meta("team", "b")}, Budget("team", max_total=1))
    await world.written(td())
    await world.settled()
    world.run_pods()
    await world.settled()
    assert [name for name in world.jobs if "-train-" in name] == []
    status, reason, message = world.condition("DraftTrained")
    assert (status, reason) == ("False", "WaitingForBudget")
    assert "TurboBudget team has accelerators.maxTotal 1" in message
    world.cache.budgets.put({"metadata": meta("team", "b")}, Budget("team", max_total=2))
    await world.settled()
    assert [name for name in world.jobs if "-train-" in name] == ["chat-train-1"]
    entries = world.reconciler.reservations.commitments("team", NOW).entries
    assert entries[KEY].committed.total == 2
