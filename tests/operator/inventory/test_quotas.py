"""What quotas leave: what they bound, less what the pods of all others hold."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from turbo_operator.inventory import usage
from turbo_operator.inventory.store import InventoryStore
from turbo_operator.inventory.supply import Owner, PodUsage, Quota, supply_of, take_stock
from turbo_operator.snapshot import Accelerator

GIB = 1 << 30
GPU = "nvidia.com/gpu"
MINE, THEIRS = Owner("team", "chat"), Owner("team", "other")
H100 = Accelerator("h100", GPU, Decimal(1), 80 * GIB)
CATALOG = {"h100": H100, "cpu": Accelerator("cpu", "cpu", Decimal(2), 4 * GIB)}


def pod(gpus: int = 1, owner: Owner | None = None, **more: Any) -> PodUsage:
    amounts = {GPU: gpus * 1000}
    return PodUsage(owner, None, amounts, amounts, namespace="team", **more)


@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 4))
def test_a_quota_leaves_what_it_has_left_and_what_we_hold_of_it(hard: int, theirs: int, mine: int) -> None:
    quota = Quota("team", {"requests." + GPU: hard * 1000})
    elsewhere = Quota("elsewhere", {"requests." + GPU: 0})
    pods = [pod(mine, owner=MINE), pod(theirs, owner=THEIRS)]
    supply = supply_of(take_stock(CATALOG, [], pods, [quota, elsewhere]), MINE)
    assert supply["h100"].quota == max(0, hard - theirs)
    assert supply["cpu"].quota is None


@given(st.integers(0, 6))
def test_the_status_of_a_quota_which_lags_behind_its_pods_takes_no_place_from_anybody(used: int) -> None:
    """Found by the storm: a status that still counted a pod which was gone had a replica make room."""
    body = {
        "metadata": {"name": "q", "namespace": "team"},
        "spec": {"hard": {f"requests.{GPU}": "8"}},
        "status": {"used": {f"requests.{GPU}": str(used)}},
    }
    quota = usage.quota(body)
    assert quota is not None
    pods = [pod(3, owner=MINE), pod(2, owner=THEIRS)]
    assert supply_of(take_stock(CATALOG, [], pods, [quota]), MINE)["h100"].quota == 6


def test_pods_that_a_quota_does_not_charge_take_none_of_it() -> None:
    quota = Quota("team", {"requests." + GPU: 8000}, frozenset({"NotTerminating"}))
    pods = [
        pod(1, owner=THEIRS),
        pod(1, owner=THEIRS, scopes=frozenset({"NotBestEffort"})),
        pod(1, owner=MINE, leaving=True, overdue=99.0),
        pod(1, owner=THEIRS, leaving=True, overdue=99.0),
        pod(1, owner=THEIRS, leaving=True, overdue=101.0),
        replace(pod(1), namespace="elsewhere"),
    ]
    assert supply_of(take_stock(CATALOG, [], pods, [quota], now=100.0), MINE)["h100"].quota == 6


def test_our_pod_that_cannot_end_is_not_counted_twice() -> None:
    """Found in review: a pod on a lost node, charged still, took the place of the one that followed it."""
    quota = Quota("team", {"requests." + GPU: 2000})
    pods = [pod(1, owner=MINE), pod(1, owner=MINE, leaving=True, overdue=99.0)]
    assert supply_of(take_stock(CATALOG, [], pods, [quota], now=100.0), MINE)["h100"].quota == 2


def test_a_place_in_a_quota_that_another_took_since_the_count_is_gone() -> None:
    """Found in review: a share as old as the last count, and pods as they are, came to one more than all."""
    store = InventoryStore(lambda uid: MINE if uid == "mine" else None)
    quota = {
        "metadata": {"name": "q", "uid": "q", "namespace": "team"},
        "spec": {"hard": {f"requests.{GPU}": "4"}},
    }

    def put(name: str) -> None:
        container = {"name": "c", "resources": {"requests": {GPU: "1"}}}
        meta = {"name": name, "uid": name, "namespace": "team"}
        store.put("Pod", {"metadata": meta, "spec": {"containers": [container]}})

    store.put("ResourceQuota", quota)
    put("mine")
    store.take_stock(CATALOG, 0.0)
    put("theirs")
    assert supply_of(store.stock, MINE)["h100"].quota == 4
    assert supply_of(store.stock_for("team", 0.0), MINE)["h100"].quota == 3
    assert supply_of(store.stock_for("elsewhere", 0.0), Owner("elsewhere", "chat"))["h100"].quota is None


def test_the_tightest_quota_counts_and_limits_count_too() -> None:
    quotas = [Quota("team", {"cpu": 8000}), Quota("team", {"limits.memory": 9 * GIB * 1000})]
    theirs = PodUsage(THEIRS, None, {}, {"memory": GIB * 1000}, namespace="team")
    assert supply_of(take_stock(CATALOG, [], [theirs], quotas), MINE)["cpu"].quota == 2


def test_a_quota_of_other_pods_is_left_out() -> None:
    body = {"metadata": {"name": "q", "namespace": "team"}, "spec": {"hard": {"cpu": "1"}}}
    assert usage.quota(body) == Quota("team", {"cpu": 1000})
    assert usage.quota({**body, "spec": {"scopes": ["BestEffort"]}}) is None
    scoped = usage.quota({**body, "spec": {"scopes": ["NotTerminating"]}})
    assert scoped is not None
    assert scoped.scopes == {"NotTerminating"}
