"""A replica on several nodes: one LeaderWorkerSet group, whose leader stands for all of its pods."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turbo_dev.plan_cases import plan
from turbo_dev.plan_examples import LARGE, accelerator, named
from turbo_operator import render
from turbo_operator.api import GROUP, TurboDeployment, parse
from turbo_operator.budget import labeled_footprint
from turbo_operator.controller.cache.groups import merge_groups
from turbo_operator.controller.cache.pods import Key, Pods, Root
from turbo_operator.controller.cache.projection import child, serving_pod
from turbo_operator.controller.cache.store import Cache
from turbo_operator.controller.snapshot_builder import build_snapshot
from turbo_operator.inventory.store import InventoryStore
from turbo_operator.plan import Choice
from turbo_operator.planner import build_inputs
from turbo_operator.render.metadata import serving_selector
from turbo_operator.render.template import pod_template
from turbo_operator.resources import LEADERWORKERSET
from turbo_operator.rollout import Variant, variant_states
from turbo_operator.settings import Settings
from turbo_operator.snapshot import ChildView, PodView, Presence, Snapshot
from turbo_operator.status import fields
from turbo_runtime.contract.documents import ModelInfo

NOW = 1_700_000_000.0
KEY = Key("team", "chat")
CARD = accelerator("mid", 40, "1.00")
FACTS = ModelInfo(LARGE, "sha256:ab", "c0ffee", 1)
SETTINGS = Settings(runtime_image="registry.example/runtime:1")
PLAN = "v2abc"


def td(**spec: Any) -> TurboDeployment:
    return parse(
        {
            "apiVersion": "serving.turbo.dev/v1alpha1",
            "kind": "TurboDeployment",
            "metadata": {"name": "chat", "namespace": "team", "uid": "u-1", "generation": 1},
            "spec": {
                "model": {"uri": "hf://acme/model", "maxModelLen": 512},
                "engine": {"type": "VLLM"},
                "parallelism": {"tensor": 1, "pipeline": 3},
                **spec,
            },
        }
    )


def chosen(it: TurboDeployment) -> Choice:
    choice = plan(it.spec, LARGE, named(CARD)).choice
    assert choice is not None
    assert choice.nodes == 3
    return choice


def frozen(it: TurboDeployment) -> dict[str, Any]:
    return pod_template(it, chosen(it), FACTS, PLAN, SETTINGS)


def member(number: int, group: str = "0", **more: Any) -> PodView:
    name = f"chat-{PLAN}-{group}" + (f"-{number}" if number else "")
    view = PodView(name, PLAN, "Running", True, "10.0.0.1", None, None, group=group, worker=number, nodes=3)
    return replace(view, **{"ready_since": NOW - 60.0, **more})


def test_leader_and_workers_are_of_one_plan_and_only_the_leader_is_served_from() -> None:
    it = td()
    template = frozen(it)
    leader, (answering,) = template["metadata"]["labels"], template["spec"]["containers"]
    worker, (headless,) = template["worker"]["metadata"]["labels"], template["worker"]["spec"]["containers"]
    assert template["nodes"] == 3
    assert serving_selector(it).items() <= leader.items()
    assert not serving_selector(it).items() <= worker.items()
    assert {"readinessProbe", "ports", "startupProbe"} <= answering.keys()
    assert not {"readinessProbe", "livenessProbe", "startupProbe", "ports"} & headless.keys()
    for container, rank in ((answering, "0"), (headless, "$(LWS_WORKER_INDEX)")):
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert {"--nnodes=3", "--pipeline-parallel-size=3", f"--node-rank={rank}"} <= set(container["args"])
        assert "--master-addr=$(LWS_LEADER_ADDRESS)" in container["args"]
    assert ("--headless" in answering["args"], "--headless" in headless["args"]) == (False, True)
    assert (leader[f"{GROUP}/accelerator-count"], leader[f"{GROUP}/nodes"]) == ("1", "3")


def test_a_worker_stays_for_as_long_as_its_leader_has_requests() -> None:
    template = frozen(td())
    hooks = [
        each["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        for each in (template, template["worker"])
    ]
    assert hooks[0][2] == "http://127.0.0.1:8000/metrics"
    assert hooks[1][2] == "http://$LWS_LEADER_ADDRESS:8000/metrics"
    graces = {each["spec"]["terminationGracePeriodSeconds"] for each in (template, template["worker"])}
    assert len(graces) == 1


def test_the_workload_is_a_leader_worker_set_that_its_frozen_templates_make_again() -> None:
    it = td()
    template = frozen(it)
    revision = child(render.revision(it, PLAN, template) | {"metadata": {"name": f"chat-{PLAN}", "uid": "r"}})
    observed = Snapshot({}, model=FACTS, children=(replace(revision, plan_hash=PLAN),))
    made = render.children(it, observed, None, [Variant(PLAN, 2)], SETTINGS, min_available=1)
    (group,) = (item for item in made if item["kind"] == "LeaderWorkerSet")
    assert not any(item["kind"] == "Deployment" for item in made)
    assert group["spec"]["replicas"] == 2
    assert group["spec"]["leaderWorkerTemplate"]["size"] == 3
    assert render.frozen_templates(group) == template
    built = [item for item in made if item["kind"] == "PodDisruptionBudget"]
    (budget,) = (item["spec"] for item in built)
    assert budget["minAvailable"] == 5, "of six pods one may leave, and takes its replica with it"
    (roles,) = budget["selector"]["matchExpressions"]
    assert (roles["key"], roles["values"]) == (f"{GROUP}/role", ["serving", "worker"])
    assert f"{GROUP}/role" not in budget["selector"]["matchLabels"]
    (alone,) = (
        item["spec"]
        for item in render.children(it, observed, None, [Variant(PLAN, 1)], SETTINGS, min_available=0)
        if item["kind"] == "PodDisruptionBudget"
    )
    assert alone["minAvailable"] == 0, "the only replica may be drained"


def test_another_number_of_nodes_is_another_plan() -> None:
    it = td()
    choice = chosen(it)
    hashes = {
        render.plan_hash(it, replace(choice, nodes=nodes, accelerators_per_replica=3), FACTS)
        for nodes in (1, 3)
    }
    assert len(hashes) == 2


def test_a_replica_is_its_leader() -> None:
    leader = member(0)
    assert merge_groups([member(2), leader, member(1)]) == (leader,)


def test_what_holds_up_a_worker_holds_up_its_replica_and_is_told_of_it() -> None:
    waits = {"ready": False, "reason": "Unschedulable", "message": "0/3 nodes.", "pending_since": NOW}
    (merged,) = merge_groups([member(0, ready=False), member(1, **waits), member(2)])
    assert merged.name == f"chat-{PLAN}-0"
    assert (merged.ready, merged.reason, merged.message) == (
        False,
        "Unschedulable",
        f"chat-{PLAN}-0-1: 0/3 nodes.",
    )
    assert merged.waits_for_node


def test_a_replica_holds_its_accelerators_until_its_last_worker_has_ended() -> None:
    (merged,) = merge_groups([member(2, terminating=True)])
    assert (merged.terminating, merged.ready, merged.is_present) == (True, False, True)
    assert labeled_footprint(merged, {}).per_replica == 3
    ended = replace(member(2, terminating=True), phase="Failed")
    assert merge_groups([ended]) == ()


@given(st.permutations([0, 1, 2, 3]), st.integers(0, 2))
def test_a_group_is_one_replica_in_whatever_order_its_pods_are_seen(order: list[int], groups: int) -> None:
    pods = [member(number, str(group)) for group in range(groups) for number in order if number < 3]
    merged = merge_groups([*pods, PodView("other", "p", "Running", True, None, None, None)])
    assert [pod.name for pod in merged] == [f"chat-{PLAN}-{group}" for group in range(groups)] + ["other"]


def test_groups_are_counted_by_leaders_that_have_been_ready_for_long_enough() -> None:
    """The status of a LeaderWorkerSet says neither since when one is ready nor which spec it has seen."""
    view = ChildView("LeaderWorkerSet", f"chat-{PLAN}", "u", None, PLAN, 2, accelerators=1, nodes=3)
    young = member(0, "1", ready_since=NOW - 5.0)
    (state,) = variant_states([view], [member(0), young], {}, NOW, min_ready_seconds=10.0)
    assert (state.available, state.ready, state.replicas, state.exists) == (1, 2, 2, True)
    assert state.footprint is not None
    assert (state.footprint.per_replica, state.footprint.nodes) == (3, 3)
    (state,) = variant_states([replace(view, replicas=1)], [member(0), young], {}, NOW)
    assert state.available == 0, "one of them is about to go"


def body(name: str, kind: str, owner: tuple[str, str], **labels: str) -> dict[str, Any]:
    reference = {"kind": owner[0], "name": owner[1], "uid": owner[1], "controller": True}
    meta = {"namespace": "team", "name": name, "uid": name, "resourceVersion": "1", "labels": labels}
    return {"kind": kind, "metadata": {**meta, "ownerReferences": [reference]}, "spec": {}, "status": {}}


LABELED = {f"{GROUP}/deployment": "chat", "leaderworkerset.sigs.k8s.io/name": f"chat-{PLAN}"}
LEADER = body("leader", "Pod", ("StatefulSet", "leaders"), **LABELED)
WORKER = body("worker", "Pod", ("StatefulSet", "workers"), **LABELED)
LEADERS = body("leaders", "StatefulSet", ("LeaderWorkerSet", "lws"))
WORKERS = body("workers", "StatefulSet", ("Pod", "leader"))


@given(st.permutations([LEADER, WORKER, LEADERS, WORKERS, None]))
def test_workers_are_ours_by_what_controls_their_leader_in_whatever_order_that_is_seen(order: Any) -> None:
    pods = Pods()
    for each in order:
        if each is None:
            pods.put_root("lws", Root(KEY, "u-1", PLAN))
        else:
            (pods.put if each["kind"] == "Pod" else pods.put_set)(each)
    assert [view.name for view in pods.of(KEY, "u-1")] == ["leader", "worker"]


def test_workers_stay_ours_while_they_end_after_their_leader_and_nothing_is_kept_of_them_then() -> None:
    pods = Pods()
    pods.put_root("lws", Root(KEY, "u-1", PLAN))
    for each in (LEADERS, WORKERS):
        pods.put_set(each)
    for each in (LEADER, WORKER):
        pods.put(each)
    assert pods.drop(LEADER) == {KEY}
    assert [view.name for view in pods.of(KEY, "u-1")] == ["worker"]
    assert pods.root_of("worker") is not None
    pods.drop(WORKER)
    pods.drop_set(WORKERS)
    pods.drop_set(LEADERS)
    pods.drop_root("lws")
    assert len(pods) == 0


def test_a_full_list_of_one_kind_of_set_says_nothing_of_the_other() -> None:
    pods = Pods()
    pods.put_root("lws", Root(KEY, "u-1", PLAN))
    pods.put_set(LEADERS)
    pods.put(LEADER)
    pods.keep_only("ReplicaSet", set(), None)
    assert [view.name for view in pods.of(KEY, "u-1")] == ["leader"]


def test_a_pod_says_which_of_its_group_it_is() -> None:
    labels = {
        **LABELED,
        "leaderworkerset.sigs.k8s.io/group-index": "4",
        "leaderworkerset.sigs.k8s.io/worker-index": "2",
        f"{GROUP}/nodes": "3",
    }
    view = serving_pod(body("w", "Pod", ("StatefulSet", "workers"), **labels))
    assert (view.group, view.worker, view.nodes) == ("4", 2, 3)
    plain = serving_pod(body("w", "Pod", ("ReplicaSet", "rs"), **{f"{GROUP}/deployment": "chat"}))
    assert (plain.group, plain.worker, plain.nodes) == (None, 0, 1)


@pytest.mark.parametrize("name", ["chat", "c" * 37])
def test_a_name_that_fits_may_have_groups(name: str) -> None:
    cache = Cache()
    inventory = InventoryStore(cache.owner_of)

    def lack(name: str) -> str | None:
        it = td()
        cased = it.model_copy(update={"metadata": it.metadata.model_copy(update={"name": name})})
        observed = build_snapshot(cache, inventory, Key("team", name), cased, NOW)
        return build_inputs(cased, LARGE, observed).group_lack

    assert "LeaderWorkerSet" in (lack(name) or "")
    cache.presences[LEADERWORKERSET.kind, "team"] = Presence.REFUSED
    assert "right to list and watch LeaderWorkerSets" in (lack(name) or "")
    cache.presences[LEADERWORKERSET.kind, "team"] = Presence.PRESENT
    assert lack(name) is None
    assert "at most 37 characters, and this has 38: choose a shorter one" in (lack("c" * 38) or "")


def test_sets_that_control_one_another_a_thousand_times_over_end_nothing() -> None:
    """Found in review: whoever may create ReplicaSets could end the operator by a long chain of them."""
    pods = Pods()
    pods.put_root("lws", Root(KEY, "u-1", PLAN))
    owner = ("LeaderWorkerSet", "lws")
    for number in range(2000):
        pods.put_set(body(f"s{number}", "ReplicaSet", owner))
        owner = ("ReplicaSet", f"s{number}")
    pods.put(body("deep", "Pod", owner, **LABELED))
    assert pods.of(KEY) == []
    assert pods.root_of("deep") is None


def test_the_group_of_a_stranger_is_passed_over() -> None:
    """Found in review: `turbo plan --context` ended where somebody else runs a LeaderWorkerSet."""
    pods = Pods()
    pods.put_set(WORKERS)
    leader = body("leader", "Pod", ("StatefulSet", "leaders"))
    assert pods.put(leader) == set()
    assert pods.drop(leader) == set()


def test_a_replica_costs_its_price_while_one_of_its_pods_waits() -> None:
    """Found in review: a node's accelerators were held for nothing."""
    row = replace(CARD, name="mid")
    (merged,) = merge_groups([member(0, ready=False, accelerator="mid"), member(1, pending_since=NOW)])
    assert merged.pending_since is not None
    assert fields.cost_per_hour(Snapshot({"mid": row}, pods=(merged,))) == 3
