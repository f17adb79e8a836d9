"""The cache: the newest state wins whatever order it arrives in, and only what we own is ours."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from turbo_operator.api import ANNOTATION_APPLIED_HASH, GROUP, CapacityType
from turbo_operator.controller.cache.store import Cache, Key
from turbo_operator.controller.informer import ObjectHandler
from turbo_operator.inventory.store import InventoryStore
from turbo_operator.snapshot import Accelerator, LoadSample, Occupancy
from turbo_runtime.contract.documents import Load

KEY = Key("team", "chat")
LOAD = Load(2, 3, 10, 0, 0.5, 1000, 3, 9, 6, 40, "bitwise", False)


def child(
    kind: str = "Service",
    name: str = "chat",
    version: int = 1,
    uid: str = "u1",
    owner: str = "td",
    **extra: Any,
) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": kind,
        "metadata": {
            "namespace": KEY.namespace,
            "name": name,
            "uid": uid,
            "resourceVersion": str(version),
            "labels": {f"{GROUP}/deployment": KEY.name},
            "annotations": {ANNOTATION_APPLIED_HASH: f"hash-{version}"},
            "ownerReferences": [
                {"kind": "TurboDeployment", "name": KEY.name, "uid": owner, "controller": True}
            ],
        },
        **extra,
    }


def pod(name: str, version: int, ready: bool = True, role: str = "serving", **status: Any) -> dict[str, Any]:
    body = child("Pod", name, version, uid=name)
    body["metadata"]["labels"] |= {f"{GROUP}/role": role, f"{GROUP}/plan-hash": "abc"}
    owner = {"kind": "ReplicaSet", "name": "chat-abc-1", "uid": "rs", "controller": True}
    if role == "inspect":
        owner = {"kind": "Job", "name": "chat-inspect-1", "uid": "j", "controller": True}
    body["metadata"]["ownerReferences"] = [owner]
    ready_condition = {"type": "Ready", "status": "True" if ready else "False"}
    body["status"] = {"phase": "Running", "podIP": "10.0.0.9", "conditions": [ready_condition], **status}
    return body


def with_roots() -> Cache:
    """A cache that knows what the pods come from."""
    cache = Cache()
    cache.put_child(child("Deployment", "chat-abc", uid="d"))
    cache.put_child(child("Job", "chat-inspect-1", uid="j"))
    cache.pods.put_set(replica_set())
    return cache


def replica_set() -> dict[str, Any]:
    body = child("ReplicaSet", "chat-abc-1", uid="rs")
    owner = {"kind": "Deployment", "name": "chat-abc", "uid": "d", "controller": True}
    body["metadata"]["ownerReferences"] = [owner]
    return body


def num_kept(cache: Cache) -> int:
    parts = [*vars(cache).values(), *cache._stores.values()]
    return sum(len(part) for part in parts if hasattr(part, "__len__") and part is not cache._stores)


@given(st.permutations(range(1, 7)))
def test_the_newest_version_of_a_child_stays_whatever_the_order_of_arrival(order: list[int]) -> None:
    cache = Cache()
    for version in order:
        cache.put_child(child(version=version))
    assert [view.applied_hash for view in cache.observe(KEY, "td").children] == ["hash-6"]


@given(st.lists(st.integers(min_value=1, max_value=9), max_size=8))
def test_events_of_a_childs_last_moments_do_not_bring_it_back_after_our_deletion(versions: list[int]) -> None:
    cache = Cache()
    cache.put_child(child(version=5))
    cache.mark_deleted(KEY, cache.observe(KEY, "td").children[0])
    for version in versions:
        cache.put_child(child(version=version))
        assert cache.observe(KEY, "td").children == ()
    cache.drop_child(child(version=10))
    cache.put_child(child(version=11, uid="u2"))
    assert [view.uid for view in cache.observe(KEY, "td").children] == ["u2"]


def test_a_child_that_another_object_controls_is_not_observed() -> None:
    cache = Cache()
    cache.put_child(child(owner="an earlier TurboDeployment of that name"))
    assert cache.observe(KEY, "td").children == ()


def test_what_a_list_shows_that_was_taken_before_its_deletion_does_not_come_back() -> None:
    cache = Cache()
    old = child(version=5)
    cache.put_child(old)
    cache.drop_child(child(version=8))
    cache.put_child(old)
    assert cache.keep_children("Service", ["u1"], "6") == set()
    assert cache.observe(KEY, "td").children == ()


def test_a_child_is_known_by_its_owner_whatever_its_labels_say() -> None:
    cache = Cache()
    for labels in ({}, {f"{GROUP}/deployment": "other"}):
        ours, strangers = child(uid="ours"), child(name="theirs", uid="theirs")
        ours["metadata"]["labels"] = labels
        del strangers["metadata"]["ownerReferences"]
        cache.put_child(ours)
        assert cache.put_child(strangers) == set()
        assert cache.drop_child(strangers) == set()
        assert [view.uid for view in cache.observe(KEY, "td").children] == ["ours"]


def test_a_child_that_is_given_away_is_ours_no_longer() -> None:
    cache = with_roots()
    cache.pods.put(pod("p", 1))
    disowned = child("Deployment", "chat-abc", version=2, uid="d")
    del disowned["metadata"]["ownerReferences"]
    assert cache.put_child(disowned) == {KEY}
    assert [view.kind for view in cache.observe(KEY, "td").children] == ["Job"]
    assert cache.observe(KEY, "td").pods == ()


def test_a_child_that_lost_the_label_of_its_watch_comes_back_by_any_sight_of_it_since() -> None:
    """A watch by label calls it a deletion, at the version at which the label went."""
    cache = Cache()
    cache.put_child(child(version=5))
    assert cache.drop_child(child(version=8)) == {KEY}
    assert cache.put_child(child(version=7)) == set()
    assert cache.put_child(child(version=8)) == {KEY}


def test_a_deletion_that_comes_after_a_newer_sight_of_the_child_was_a_label_lost_and_put_back() -> None:
    cache = Cache()
    cache.put_child(child(version=9))
    assert cache.drop_child(child(version=8)) == set()
    assert len(cache.observe(KEY, "td").children) == 1


def test_a_variant_s_hash_is_read_from_its_name() -> None:
    cache = Cache()
    body = child("Deployment", "chat-abc")
    body["metadata"]["labels"][f"{GROUP}/plan-hash"] = "edited"
    cache.put_child(body)
    assert cache.observe(KEY, "td").children[0].plan_hash == "abc"


def test_the_deletion_of_an_earlier_object_does_not_remove_its_successor() -> None:
    cache = Cache()
    cache.put_child(child(version=7, uid="new"))
    cache.drop_child(child(version=6, uid="old"))
    assert [view.uid for view in cache.observe(KEY, "td").children] == ["new"]


def test_a_full_list_drops_what_it_does_not_show_but_nothing_newer() -> None:
    cache = Cache()
    cache.put_child(child(name="kept", uid="kept", version=3))
    cache.put_child(child(name="missed", uid="missed", version=4))
    cache.put_child(child(name="newer", uid="newer", version=12))
    cache.put_child(child(kind="Deployment", name="other", uid="other", version=2))
    assert cache.keep_children("Service", ["kept"], "10") == {KEY}
    assert [view.name for view in cache.observe(KEY, "td").children] == ["other", "kept", "newer"]


def test_a_status_that_changes_nothing_we_look_at_wakes_nobody() -> None:
    cache = with_roots()
    assert cache.pods.put(pod("a", 1)) == {KEY}
    assert cache.pods.put(pod("a", 2, qosClass="Burstable")) == set()
    assert cache.pods.put(pod("a", 3, ready=False)) == {KEY}


def deployment(version: int, uid: str = "td", **status: Any) -> dict[str, Any]:
    meta = {"namespace": KEY.namespace, "name": KEY.name, "uid": uid, "resourceVersion": str(version)}
    return {"kind": "TurboDeployment", "metadata": meta, "status": status}


def test_the_answer_to_a_write_that_arrives_after_the_deletion_does_not_bring_the_object_back() -> None:
    cache = Cache()
    cache.put_deployment(deployment(5))
    assert cache.deployments.drop(deployment(7)) is True
    assert cache.put_deployment(deployment(6, url="late")) is False
    assert sorted(cache.deployments) == []
    cache.deployments.keep_only([], "6")  # a list from before the deletion
    assert cache.put_deployment(deployment(6)) is False
    assert cache.put_deployment(deployment(9, uid="its successor")) is True


def test_the_late_deletion_of_an_earlier_deployment_drops_nothing() -> None:
    cache = Cache()
    cache.put_deployment(deployment(9, uid="successor"))
    assert cache.deployments.drop(deployment(8, uid="td")) is False
    assert sorted(cache.deployments) == [KEY]


def accelerator(version: int, uid: str = "a") -> dict[str, Any]:
    return {"metadata": {"name": "cpu", "uid": uid, "resourceVersion": str(version)}}


def row(price: str) -> Accelerator:
    return Accelerator("cpu", "cpu", Decimal(1), 1 << 30, prices={CapacityType.ON_DEMAND: Decimal(price)})


def planned_with(cache: Cache) -> list[Decimal | None]:
    return [each.prices.get("OnDemand") for each in cache.observe(KEY, "td").accelerators.values()]


def test_a_stale_list_does_not_undo_a_price() -> None:
    cache = Cache()
    assert cache.accelerators.put(accelerator(5), row("2")) is True
    assert cache.accelerators.put(accelerator(4), row("1")) is False
    assert planned_with(cache) == [Decimal(2)]
    assert cache.accelerators.put(accelerator(6), row("2")) is False  # newer, and the same to the planner


def test_an_accelerator_made_during_a_list_stays() -> None:
    cache = Cache()
    cache.accelerators.put(accelerator(12), row("1"))
    assert cache.accelerators.keep_only([], "10") == set()
    assert planned_with(cache) == [Decimal(1)]
    assert cache.accelerators.keep_only([], "12") == {Key("", "cpu")}
    assert planned_with(cache) == []


def test_an_accelerator_that_cannot_be_read_is_not_planned_with_until_it_is_corrected() -> None:
    cache = Cache()
    cache.accelerators.put(accelerator(1), row("1"))
    assert cache.accelerators.put(accelerator(3), None) is True
    assert cache.accelerators.put(accelerator(2), row("1")) is False
    assert planned_with(cache) == []
    assert cache.accelerators.put(accelerator(4), row("1")) is True


def test_a_deleted_accelerator_stays_deleted_whatever_list_arrives_late() -> None:
    cache = Cache()
    cache.accelerators.put(accelerator(1), row("1"))
    assert cache.accelerators.drop(accelerator(3)) is True
    assert cache.accelerators.put(accelerator(2), row("1")) is False
    assert cache.accelerators.put(accelerator(5, uid="b"), row("1")) is True
    assert cache.accelerators.drop(accelerator(3)) is False


def test_nothing_is_kept_of_what_is_gone() -> None:
    cache = with_roots()
    cache.pods.put(pod("a", 2))
    cache.pods.put(pod("of a Job", 3, role="inspect"))
    cache.children(Key("team", "never heard of"), "u")
    for kind, name, uid in (("Deployment", "chat-abc", "d"), ("Job", "chat-inspect-1", "j")):
        cache.drop_child(child(kind, name, version=4, uid=uid))
    cache.pods.drop_set(replica_set())
    assert len(cache.observe(KEY, "td").pods) == 1  # it ends, and is paid meanwhile
    cache.pods.drop(pod("a", 5))
    cache.pods.drop(pod("of a Job", 6))
    assert num_kept(cache) == 0


def test_what_we_deleted_is_kept_in_mind_until_a_list_of_its_kind_and_place_shows_it_gone() -> None:
    """A watch that was cut off never tells of the deletion."""
    cache = Cache()
    cache.put_child(child(version=5))
    cache.mark_deleted(KEY, cache.observe(KEY, "td").children[0])
    for kind, uids, namespace in (
        ("Service", ["u1"], None),  # it is going still
        ("Deployment", [], None),
        ("Service", [], "elsewhere"),
    ):
        cache.keep_children(kind, uids, "6", namespace)
        cache.put_child(child(version=7))
        assert cache.observe(KEY, "td").children == ()
    cache.keep_children("Service", [], "8")
    cache.put_child(child(version=7))  # an event from before that list
    assert cache.observe(KEY, "td").children == ()
    cache.keep_children("Service", [], "9")
    assert num_kept(cache) == len(cache._stores["Service"]._deletions) == 0


def test_pods_that_an_earlier_object_of_the_name_left_are_no_room_for_its_successor() -> None:
    cache, inventory = Cache(), InventoryStore(lambda uid: cache.owner_of(uid))
    handler = ObjectHandler(cache, inventory, *3 * (lambda _: None,))
    orphaned = child("ReplicaSet", "chat-abc-1", uid="rs")
    labels = {"plan-hash": "abc", "owner-uid": "td", "role": "serving"}
    orphaned["metadata"]["labels"] |= {f"{GROUP}/{name}": value for name, value in labels.items()}
    del orphaned["metadata"]["ownerReferences"]
    for kind, body in (("ReplicaSet", orphaned), ("Pod", pod("p", 1)), ("TurboDeployment", deployment(1))):
        handler.put(kind, body)
    assert cache.owner_of("p") == KEY.owner
    for change in (
        lambda: handler.drop("TurboDeployment", deployment(2)),
        lambda: handler.put("TurboDeployment", deployment(3, uid="its successor")),
    ):
        inventory.take_stock({}, 0.0)
        change()
        assert inventory.moved
        assert cache.owner_of("p") is None


def test_inspect_pods_are_not_serving_pods() -> None:
    ended = {"name": "inspect", "state": {"terminated": {"exitCode": 0, "message": "{}"}}}
    cache = with_roots()
    cache.pods.put(pod("i", 1, ready=False, role="inspect", containerStatuses=[ended]))
    assert cache.observe(KEY, "td").pods == ()
    (seen,) = cache.pods.inspecting(KEY, "td")
    assert (seen.job, seen.exit_code, seen.message) == ("chat-inspect-1", 0, "{}")


def waiting(reason: str, **last: Any) -> dict[str, Any]:
    return {"name": "turbo", "state": {"waiting": {"reason": reason, "message": "why"}}, "lastState": last}


def test_a_crash_loop_by_lack_of_memory_says_so_and_a_start_says_nothing() -> None:
    cache = with_roots()
    killed = waiting("CrashLoopBackOff", terminated={"reason": "OOMKilled", "exitCode": 137})
    cache.pods.put(pod("killed", 1, ready=False, containerStatuses=[killed]))
    cache.pods.put(pod("pulling", 2, ready=False, containerStatuses=[waiting("ErrImagePull")]))
    cache.pods.put(pod("starting", 3, ready=False, containerStatuses=[waiting("ContainerCreating")]))
    unscheduled = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/3 nodes",
    }
    cache.pods.put(pod("unscheduled", 4, ready=False, conditions=[unscheduled]))
    reasons = {view.name: (view.reason, view.message) for view in cache.observe(KEY, "td").pods}
    assert reasons == {
        "killed": ("OOMKilled", "container turbo ran out of memory"),
        "pulling": ("ErrImagePull", "why"),
        "starting": (None, None),
        "unscheduled": ("Unschedulable", "0/3 nodes"),
    }


def test_a_load_stays_with_its_pod_and_goes_with_it() -> None:
    cache = with_roots()
    cache.pods.put(pod("p", 1))
    assert not cache.pods.put_report(KEY, "p", 100.0, LOAD)
    assert cache.pods.put(pod("p", 2)) == set()
    assert cache.observe(KEY, "td").pods[0].load == LoadSample(100.0, LOAD)
    cache.pods.drop(pod("p", 2))
    assert not cache.pods.put_report(KEY, "p", 115.0, LOAD)
    successor = pod("p", 3)
    successor["metadata"]["uid"] = "another"
    cache.pods.put(successor)
    assert cache.observe(KEY, "td").pods[0].load is None


def test_the_output_per_second_is_what_was_said_since() -> None:
    cache = with_roots()
    cache.pods.put(pod("p", 1))

    def rate(at: float, generated: int) -> float | None:
        cache.pods.put_report(KEY, "p", at, replace(LOAD, generated_tokens=generated))
        sample = cache.observe(KEY, "td").pods[0].load
        assert sample is not None
        return sample.tokens_per_second

    assert rate(100.0, 50) is None
    assert rate(110.0, 150) == 10.0
    assert rate(120.0, 20) is None  # the process was started again
    assert rate(130.0, 20) == 0.0


def test_what_was_under_way_adds_up_over_time() -> None:
    sample = LoadSample.after(None, 100.0, LOAD)
    assert sample.occupancy == Occupancy()
    sample = LoadSample.after(sample, 110.0, replace(LOAD, running_requests=4, running_tokens=30))
    sample = LoadSample.after(sample, 112.0, replace(LOAD, running_requests=4, running_tokens=30))
    assert sample.occupancy == Occupancy(30.0 + 8.0, 100.0 + 32.0, 200.0 + 60.0)


def test_a_load_that_tells_of_another_draft_is_news() -> None:
    cache = with_roots()
    cache.pods.put(pod("p", 1))
    assert cache.pods.put_report(KEY, "p", 1.0, LOAD) is False
    assert cache.pods.put_report(KEY, "p", 2.0, replace(LOAD, draft_version="a")) is True
    assert cache.pods.put_report(KEY, "p", 3.0, replace(LOAD, draft_version="a")) is False
    assert (
        cache.pods.put_report(KEY, "p", 4.0, replace(LOAD, draft_version="a", draft_error="broken")) is True
    )
    assert cache.pods.put_report(KEY, "p", 5.0, LOAD) is True
