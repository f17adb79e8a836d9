"""Whose a pod is: what controls it says so, in whatever order that is seen, and its labels do not."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from turbo_operator.api import GROUP
from turbo_operator.controller.cache.pods import Key, Pods, Root
from turbo_operator.inventory.supply import Owner
from turbo_operator.snapshot import PodView, TrainPod

KEY = Key("team", "chat")
LABELS = {f"{GROUP}/deployment": "chat", f"{GROUP}/role": "serving", f"{GROUP}/plan-hash": "abc"}


def body(
    name: str, kind: str = "", uid: str = "", controller: str = "", labels: dict[str, str] = LABELS
) -> dict[str, Any]:
    owner = {"kind": kind, "name": controller, "uid": uid, "controller": True}
    owners = [owner] if kind else []
    return {
        "kind": "Pod" if name.startswith("p") else "ReplicaSet",
        "metadata": {
            "namespace": "team",
            "name": name,
            "uid": name,
            "labels": labels,
            "ownerReferences": owners,
        },
    }


POD = body("p", "ReplicaSet", "rs", "chat-abc-1")
SET = body("rs", "Deployment", "d", "chat-abc")
ROOT = Root(KEY, "td", "abc")


def names(pods: Pods) -> list[str]:
    return [view.name for view in pods.of(KEY, "td")]


@given(st.permutations(["pod", "set", "root"]))
def test_a_pod_is_found_whatever_order_the_watches_come_in_and_the_last_one_wakes(order: list[str]) -> None:
    pods = Pods()
    woken = set()
    for each in order:
        assert names(pods) == []
        if each == "pod":
            woken = pods.put(POD)
        elif each == "set":
            woken = pods.put_set(SET)
        else:
            pods.put_root("d", ROOT)
    assert names(pods) == ["p"]
    assert woken == {KEY} or order[-1] == "root"  # a child that is new wakes by itself
    assert pods.root_of("p").owner == Owner("team", "chat")  # type: ignore[union-attr]
    assert pods.of(KEY, "an earlier one") == []


def test_a_strangers_pod_with_our_labels_is_not_ours() -> None:
    pods = Pods()
    pods.put_root("d", ROOT)
    for stranger in (body("bare"), body("theirs", "ReplicaSet", "other", "other-1")):
        assert pods.put(stranger) == set()
        assert pods.root_of(stranger["metadata"]["uid"]) is None
    assert names(pods) == []


def test_a_pod_whose_labels_come_and_go_is_ours_as_long_as_its_replica_set_has_it() -> None:
    pods = Pods()
    pods.put_root("d", ROOT)
    pods.put_set(SET)
    pods.put(POD)
    assert pods.put(body("p", labels={})) == {KEY}  # let go
    assert names(pods) == []
    assert pods.put(POD) == {KEY}  # taken again
    assert names(pods) == ["p"]


def test_a_pod_of_a_job_needs_no_label_and_trains_if_its_job_does() -> None:
    pods = Pods()
    pods.put_root("j", Root(KEY, "td", "", trains=True))
    assert pods.put(body("t", "Job", "j", "chat-train-1", labels={})) == {KEY}
    (view,) = pods.of(KEY, "td")
    assert isinstance(view, TrainPod)
    assert pods.root_of("t").owner == Owner("team", "chat").trainer  # type: ignore[union-attr]


def test_a_pod_runs_the_plan_of_its_deployment_whatever_its_label_says() -> None:
    pods = Pods()
    pods.put(body("p", "ReplicaSet", "rs", "chat-abc-1", labels=LABELS | {f"{GROUP}/plan-hash": "edited"}))
    pods.put_set(SET)
    pods.put_root("d", ROOT)
    (view,) = pods.of(KEY, "td")
    assert isinstance(view, PodView)
    assert view.plan_hash == "abc"


def test_pods_end_after_what_controls_them_and_a_full_list_shows_them_gone() -> None:
    pods = Pods()
    pods.put_root("d", ROOT)
    pods.put_set(SET)
    pods.put(POD)
    pods.drop_root("d")
    assert pods.keep_only("ReplicaSet", set(), None) == set()
    assert names(pods) == ["p"]
    assert pods.keep_only("Pod", set(), "elsewhere") == set()
    assert pods.keep_only("Pod", set(), "team") == {KEY}
    assert len(pods) == 0


def test_a_replica_set_that_its_deployment_lets_go_takes_its_pods_along() -> None:
    pods = Pods()
    pods.put_root("d", ROOT)
    pods.put_set(SET)
    pods.put(POD)
    assert pods.put_set(body("rs")) == {KEY}
    assert names(pods) == []


def orphan(name: str = "chat-abc-1", uid: str = "td") -> dict[str, Any]:
    labels = LABELS | {f"{GROUP}/owner-uid": uid}
    meta = body("rs", labels=labels)["metadata"] | {"name": name}
    return {"kind": "ReplicaSet", "metadata": meta}


def test_the_pods_of_a_replica_set_that_was_orphaned_stay_ours_until_it_is_adopted_or_gone() -> None:
    pods = Pods()
    pods.put_root("d", ROOT)
    pods.put_set(SET)
    pods.put(POD)
    assert pods.put_set(orphan()) == {KEY}
    pods.drop_root("d")
    assert names(pods) == ["p"]
    assert pods.root_of("p").owner == Owner("team", "chat")  # type: ignore[union-attr]
    assert pods.of(KEY, "an earlier one") == []
    pods.put_root("d2", ROOT)
    assert pods.put_set(body("rs", "Deployment", "d2", "chat-abc")) == {KEY}
    assert names(pods) == ["p"]
    pods.put_set(orphan())
    pods.drop_root("d2")
    pods.drop_set(orphan())
    assert pods.drop(POD) == {KEY}
    assert len(pods) == 0


def test_an_orphan_is_not_ours_by_labels_that_its_name_contradicts_or_where_another_controls_it() -> None:
    pods = Pods()
    pods.put(POD)
    theirs = orphan()
    theirs["metadata"]["ownerReferences"] = body("rs", "Deployment", "theirs", "chat-abc")["metadata"][
        "ownerReferences"
    ]
    for stranger in (orphan("chat-edited-1"), orphan("rs"), orphan(uid=""), theirs):
        assert pods.put_set(stranger) == set()
        assert names(pods) == []
        assert pods.root_of("p") is None


def test_a_pod_whose_replica_set_was_taken_from_it_too_stays_ours_until_the_next_adopts_it() -> None:
    """Found by a user: its Deployment was made again for no pod, adopted this one and ended it."""
    pods = Pods()
    meta = {"name": "chat-abc-1-x", "resourceVersion": "7", "labels": LABELS | {f"{GROUP}/owner-uid": "td"}}
    lost = {"metadata": body("p")["metadata"] | meta}
    assert pods.put(lost) == {KEY}
    (view,) = pods.of(KEY, "td")
    assert isinstance(view, PodView)
    assert (view.plan_hash, view.orphan) == ("abc", "7")
    isolated = {**meta["labels"], f"{GROUP}/role": "debug"}  # type: ignore[dict-item]
    for other in (meta | {"name": "p"}, meta | {"labels": LABELS}, meta | {"labels": isolated}):
        assert Pods().put({"metadata": body("p")["metadata"] | other}) == set()
    pods.put_set(SET)
    pods.put_root("d", ROOT)
    adopted = {"metadata": POD["metadata"] | meta}
    assert pods.put(adopted) == {KEY}
    (view,) = pods.of(KEY, "td")
    assert isinstance(view, PodView)
    assert view.orphan is None
    pods.drop(adopted)
    pods.drop_root("d")
    pods.drop_set(SET)
    assert len(pods) == 0


def test_an_orphan_with_a_name_that_kubernetes_cut_is_ours() -> None:
    pods, name = Pods(), "c" * 50
    labels = LABELS | {f"{GROUP}/deployment": name, f"{GROUP}/owner-uid": "td"}
    cut = f"{name}-abc-5cf9bcfb9b-"[:58] + "x7k2p"
    lost = {"metadata": body("p", labels=labels)["metadata"] | {"name": cut, "resourceVersion": "7"}}
    assert pods.put(lost) == {Key("team", name)}


def test_an_orphan_is_to_be_relabeled_for_the_replica_set_that_its_variant_has() -> None:
    pods = Pods()
    labels = LABELS | {f"{GROUP}/owner-uid": "td", "pod-template-hash": "1"}
    lost = body("p", labels=labels)
    lost["metadata"] |= {"name": "chat-abc-1-x", "resourceVersion": "7"}
    pods.put(lost)
    pods.put_root("d", ROOT)
    assert pods.adoptable(KEY, "td") == []
    pods.put_set(body("rs1", "Deployment", "d", "chat-abc", labels | {"pod-template-hash": "1"}))
    assert pods.adoptable(KEY, "td") == [], "it adopts by itself"
    pods.drop_set(body("rs1"))
    pods.put_set(body("rs2", "Deployment", "d", "chat-abc", labels | {"pod-template-hash": "2"}))
    assert [(pod.name, template_hash) for pod, template_hash in pods.adoptable(KEY, "td")] == [
        ("chat-abc-1-x", "2")
    ]
    assert pods.adoptable(KEY, "an earlier one") == []


def test_a_replica_set_that_is_deleted_without_its_pods_says_so_until_it_is_gone() -> None:
    pods = Pods()
    leaving = orphan()
    leaving["metadata"] |= {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["orphan"]}
    pods.put_set(leaving)
    assert pods.releasing(KEY, "td") == {"abc"}
    assert pods.releasing(KEY, "an earlier one") == frozenset()
    assert pods.drop_set(leaving) == {KEY}
    assert pods.releasing(KEY, "td") == frozenset()
    assert len(pods) == 0


def test_nothing_is_kept_of_strangers_pods_without_our_label() -> None:
    pods = Pods()
    for number in range(100):
        pods.put(body(f"p{number}", "ReplicaSet", "other", "other-1", labels={"app": "other"}))
        pods.put(body(f"j{number}", "Job", "other", "other", labels={}))
    assert len(pods) == 0
