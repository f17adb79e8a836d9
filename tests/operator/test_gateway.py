"""An InferencePool: whom it selects, when it is there, and what gateways say of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turbo_dev.plan_cases import plan
from turbo_dev.plan_examples import SMALL, fast, named
from turbo_operator import api, render, status
from turbo_operator.api import GROUP, TurboDeployment, parse
from turbo_operator.autoscaler import History, ScalingDecision
from turbo_operator.controller.cache.projection import child
from turbo_operator.controller.field_ownership import added_fields
from turbo_operator.controller.handlers import watched
from turbo_operator.controller.informer import selectors_of
from turbo_operator.render import gateway
from turbo_operator.resources import INFERENCEPOOL
from turbo_operator.settings import Settings
from turbo_operator.snapshot import ChildView, GatewayView, PodView, Presence, Snapshot
from turbo_operator.status import Outcome
from turbo_runtime.contract.documents import ModelInfo

NOW = 1_700_000_000.0
FACTS = ModelInfo(SMALL, "sha256:ab", None, 1)
SETTINGS = Settings(runtime_image="registry.example/runtime:1")
POOL = ChildView("InferencePool", "chat", "u", None)
PLACE = "InferencePool/chat"


def td(name: str = "chat", **spec: Any) -> TurboDeployment:
    return parse(
        {
            "apiVersion": "serving.turbo.dev/v1alpha1",
            "kind": "TurboDeployment",
            "metadata": {"name": name, "namespace": "team", "uid": "u-1", "generation": 1},
            "spec": {"model": {"uri": "hf://acme/model"}, "routing": "Gateway", **spec},
        }
    )


def built(
    it: TurboDeployment, *children: ChildView, pool_kind: Presence = Presence.PRESENT
) -> dict[str, Any]:
    observed = Snapshot({}, model=FACTS, children=children, pool_kind=pool_kind)
    made = render.children(it, observed, None, (), SETTINGS)
    return {f"{item['kind']}/{item['metadata']['name']}": item for item in made}


def frozen(uid: str | None) -> ChildView:
    """A variant whose pods have this uid in their labels."""
    labels = {} if uid is None else {f"{GROUP}/owner-uid": uid}
    return ChildView("ControllerRevision", "chat-a", "r", None, "a", data={"metadata": {"labels": labels}})


@given(st.lists(st.sampled_from(["u-1", None]), max_size=3), st.sampled_from(["Turbo", "VLLM"]))
def test_a_pool_has_the_pods_of_the_service_and_their_port(uids: list[str | None], engine: str) -> None:
    made = built(td(engine={"type": engine}), *map(frozen, uids))
    spec = made[PLACE]["spec"]
    assert spec["selector"]["matchLabels"] == made["Service/chat"]["spec"]["selector"]
    assert spec["selector"]["matchLabels"][f"{GROUP}/role"] == "serving", "and no worker of a group"
    assert spec["targetPorts"] == [{"number": 8000}]
    assert made[PLACE]["metadata"]["ownerReferences"][0]["uid"] == "u-1"


@pytest.mark.parametrize("routing", ["Service", "Router"])
def test_other_routing_has_no_pool_and_differs_in_nothing_else_from_one_with_a_pool(routing: str) -> None:
    pooled, other = built(td()), built(td(routing=routing))
    assert PLACE not in other
    assert {name: body for name, body in pooled.items() if name != PLACE} == other


@pytest.mark.parametrize(
    ("pool_kind", "remedy"),
    [
        (Presence.ABSENT, "install the Gateway API Inference Extension"),
        (Presence.REFUSED, "the operator's right to list and watch inferencepools"),
    ],
)
def test_without_the_kind_or_the_right_to_it_there_is_no_pool_and_it_is_said_what_helps(
    pool_kind: Presence, remedy: str
) -> None:
    """Found in review: where a right was missing, it was said to install what was installed."""
    assert PLACE not in built(td(), pool_kind=pool_kind)
    lack = gateway.lack(td(), Snapshot({}, pool_kind=pool_kind))
    assert lack is not None
    assert remedy in lack
    assert ("install" in lack) == (pool_kind == Presence.ABSENT)
    assert gateway.lack(td(), Snapshot({})) is None
    assert gateway.lack(td(routing="Service"), Snapshot({}, pool_kind=pool_kind)) is None
    conditions = said(td(), (), routing_lack=lack)
    assert conditions["Ready"] == ("False", "UserActionRequired", lack)
    assert conditions["Stalled"] == ("True", "UserActionRequired", lack)


def test_nobody_has_to_do_anything_while_it_is_not_known_whether_there_is_the_kind() -> None:
    """Found in review: an API server that did not answer was taken for one without the kind."""
    assert PLACE not in built(td(), pool_kind=Presence.UNKNOWN)
    assert gateway.lack(td(), Snapshot({}, pool_kind=Presence.UNKNOWN)) is None
    conditions = said(td(), (), Presence.UNKNOWN)
    assert conditions["PoolAccepted"][:2] == ("Unknown", "Pending")
    assert "It is unknown whether the cluster has InferencePools" in conditions["PoolAccepted"][2]
    assert conditions["Stalled"][0] == "False"


def test_the_endpoint_picker_is_that_of_upstreams_chart_or_the_one_that_is_named() -> None:
    usual = {"group": "", "kind": "Service", "name": "chat-epp", "port": {"number": 9002}}
    assert built(td())[PLACE]["spec"]["endpointPickerRef"] == {**usual, "failureMode": "FailClose"}
    named = td(gateway={"endpointPicker": {"name": "mine", "port": 9000, "failureMode": "FailOpen"}})
    own = {**usual, "name": "mine", "port": {"number": 9000}, "failureMode": "FailOpen"}
    assert built(named)[PLACE]["spec"]["endpointPickerRef"] == own
    long = "a" * 50
    pool = built(td(long))[f"InferencePool/{long}"]
    assert pool["spec"]["endpointPickerRef"]["name"] == "a" * 40 + "-epp", "as the chart cuts it"


def test_a_pool_of_a_stranger_is_not_watched_and_neither_is_the_kind_where_it_may_be_missing() -> None:
    assert selectors_of(INFERENCEPOOL) == (("labelSelector", f"{GROUP}/deployment"),)
    assert INFERENCEPOOL not in watched(SETTINGS)


def test_a_label_that_somebody_adds_to_the_selector_is_noticed() -> None:
    ours = {"f:spec": {"f:selector": {"f:matchLabels": {f"f:{GROUP}/role": {}}}}}
    theirs = {"f:spec": {"f:selector": {"f:matchLabels": {"f:zone": {}}}}}
    managed = [
        {"manager": "turbo-operator", "operation": "Apply", "fieldsV1": ours},
        {"manager": "kubectl-edit", "operation": "Update", "fieldsV1": theirs},
    ]
    assert added_fields("InferencePool", managed) == ("/f:selector/f:matchLabels/f:zone",)


def parent(*conditions: tuple[str, str], seen: int | None = 2, **ref: str) -> dict[str, Any]:
    at = {} if seen is None else {"observedGeneration": seen}
    said = [
        {"type": kind, "status": value, "reason": "InvalidExtensionRef", "message": "no chat-epp", **at}
        for kind, value in conditions
    ]
    return {"parentRef": {"name": "inference", **ref}, "conditions": said}


def gateways(*parents: dict[str, Any]) -> tuple[GatewayView, ...]:
    meta = {"name": "chat", "namespace": "team", "uid": "u", "generation": 2}
    return child({"kind": "InferencePool", "metadata": meta, "status": {"parents": list(parents)}}).gateways


WELL = (("Accepted", "True"), ("ResolvedRefs", "True"))


def test_what_gateways_say_is_read_but_for_what_they_said_of_an_earlier_spec() -> None:
    assert gateways() == ()
    assert gateways(parent(*WELL)) == (GatewayView("Gateway team/inference", True),)
    assert gateways(parent(*WELL, seen=None, namespace="infra", kind="Mesh")) == (
        GatewayView("Mesh infra/inference", True),
    )
    assert gateways(parent(*WELL, seen=1)) == (GatewayView("Gateway team/inference", False),)
    assert gateways(parent(("Accepted", "True"), ("ResolvedRefs", "False"))) == (
        GatewayView("Gateway team/inference", False, "InvalidExtensionRef: no chat-epp"),
    )


def said(
    it: TurboDeployment,
    children: tuple[ChildView, ...],
    pool_kind: Presence = Presence.PRESENT,
    **more: Any,
) -> dict[str, tuple[str, str, str]]:
    made = plan(it.spec, SMALL, named(fast("card", 80, "1.00")))
    pod = PodView("p", "v2abc", "Running", True, "10.0.0.1", None, None)
    scale = ScalingDecision(1, api.ScalingReason.PLANNED, "Planned.", History())
    observed = Snapshot({}, model=FACTS, children=children, pods=(pod,), pool_kind=pool_kind)
    computed = status.compute(it, observed, Outcome(scale, made, "v2abc", **more), NOW)
    return {each.type: (each.status, str(each.reason), each.message) for each in computed.conditions}


@pytest.mark.parametrize(
    ("parents", "state", "part"),
    [
        ((), ("Unknown", "NoGateway"), "an HTTPRoute that has it as a backend"),
        ((parent(*WELL, seen=1),), ("Unknown", "Pending"), "Gateway team/inference has yet to accept"),
        ((parent(*WELL),), ("True", "Accepted"), "takes requests from Gateway team/inference."),
        (
            (parent(*WELL), parent(("Accepted", "False"), name="other")),
            ("False", "NotAccepted"),
            "Gateway team/other says of InferencePool chat: InvalidExtensionRef: no chat-epp.",
        ),
    ],
)
def test_a_condition_has_what_gateways_say_and_does_not_hold_up_ready(
    parents: tuple[dict[str, Any], ...], state: tuple[str, str], part: str
) -> None:
    conditions = said(td(), (replace(POOL, gateways=gateways(*parents)),))
    assert conditions["PoolAccepted"][:2] == state
    assert part in conditions["PoolAccepted"][2]
    assert conditions["Ready"][:2] == ("True", "Serving")


def test_there_is_no_such_condition_without_a_pool() -> None:
    assert "PoolAccepted" not in said(td(), ())
    assert "PoolAccepted" not in said(td(), (replace(POOL, terminating=True),))
    assert "PoolAccepted" not in said(td(routing="Service"), (POOL,))
