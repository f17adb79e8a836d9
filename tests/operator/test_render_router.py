"""A router in front of the pods: who it finds, what it may do, and when requests go through it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from turbo_dev.plan_cases import plan
from turbo_dev.plan_examples import SMALL, fast, named
from turbo_operator import api, render, status
from turbo_operator.api import GROUP, TurboDeployment, parse
from turbo_operator.autoscaler import History, ScalingDecision
from turbo_operator.controller.cache.projection import child
from turbo_operator.controller.cache.store import Cache, Key
from turbo_operator.controller.handlers import labeled
from turbo_operator.controller.informer import selectors_of
from turbo_operator.render import metadata, router
from turbo_operator.resources import ROUTING, Resource
from turbo_operator.settings import Settings
from turbo_operator.snapshot import ChildView, PodView, Snapshot
from turbo_operator.status import Outcome
from turbo_runtime.contract.documents import ModelInfo

NOW = 1_700_000_000.0
FACTS = ModelInfo(SMALL, "sha256:ab", None, 1)
BARE = Settings(runtime_image="registry.example/runtime:1")
SETTINGS = replace(
    BARE, router_image="registry.example/router:1", router_args=("--policy=random", "-x", "a b")
)
ROUTER = ChildView("Deployment", "chat-router", "u", None, None, 2, 1, 1, 1)
OWN = {f"{GROUP}/deployment": "chat", f"{GROUP}/owner-uid": "u-1"}


def td(**spec: Any) -> TurboDeployment:
    return parse(
        {
            "apiVersion": "serving.turbo.dev/v1alpha1",
            "kind": "TurboDeployment",
            "metadata": {"name": "chat", "namespace": "team", "uid": "u-1", "generation": 1},
            "spec": {"model": {"uri": "hf://acme/model"}, "routing": "Router", **spec},
        }
    )


def built(
    it: TurboDeployment,
    *children: ChildView,
    settings: Settings = SETTINGS,
    routers: tuple[PodView, ...] = (),
) -> dict[str, Any]:
    observed = Snapshot({}, model=FACTS, children=children, routers=routers)
    made = render.children(it, observed, None, (), settings)
    return {f"{item['kind']}/{item['metadata']['name']}": item for item in made}


def test_requests_go_through_the_router_once_it_answers_and_to_the_pods_until_then() -> None:
    pods = {**OWN, f"{GROUP}/role": "serving"}
    through = {**OWN, f"{GROUP}/role": "router"}
    assert built(td())["Service/chat"]["spec"]["selector"] == pods
    starting = replace(ROUTER, available_replicas=0)
    assert built(td(), starting)["Service/chat"]["spec"]["selector"] == pods
    assert built(td(), ROUTER)["Service/chat"]["spec"]["selector"] == through
    assert built(td(), replace(ROUTER, terminating=True))["Service/chat"]["spec"]["selector"] == pods
    assert built(td(routing="Service"), ROUTER)["Service/chat"]["spec"]["selector"] == pods


def pod_spec(**spec: Any) -> Any:
    return built(td(**spec))["Deployment/chat-router"]["spec"]["template"]["spec"]


def bindings(made: Mapping[str, Any]) -> list[Any]:
    return [body for name, body in made.items() if name.startswith("RoleBinding/")]


def test_the_router_finds_the_pods_that_serve_and_may_do_nothing_but_watch_pods() -> None:
    spec, made = pod_spec(), built(td())
    (router_container,) = spec["initContainers"]
    arguments = router_container["args"]
    at = arguments.index("--selector")
    found = dict(pair.split("=") for pair in arguments[at + 1 : at + 4])
    assert found == metadata.traffic_selector(td(), ())
    assert "--service-discovery-namespace=team" in arguments
    assert arguments[-3:] == ["--policy=random", "-x", "a b"], "the user's flags have the last word"
    (binding,) = bindings(made)
    assert binding["roleRef"]["kind"] == "ClusterRole"
    assert binding["roleRef"]["name"] == SETTINGS.router_role
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "chat-router", "namespace": "team"}]
    assert (spec["serviceAccountName"], spec["automountServiceAccountToken"]) == ("chat-router", True)
    assert spec["securityContext"]["runAsNonRoot"]


def test_nobody_but_the_activator_reaches_the_router_and_it_ends_after_that() -> None:
    spec = pod_spec()
    (router_container,), (activator,) = spec["initContainers"], spec["containers"]
    assert "--host=127.0.0.1" in router_container["args"]
    assert router_container["restartPolicy"] == "Always", "a sidecar"
    assert {port["name"] for port in router_container["ports"]} == {"metrics"}
    assert "--router-url=http://127.0.0.1:8001" in activator["args"]
    assert {port["name"]: port["containerPort"] for port in activator["ports"]}["http"] == 8000


def test_a_conversation_counts_for_two_minutes_so_that_a_new_pod_does_not_get_all_others() -> None:
    (router_container,) = pod_spec()["initContainers"]
    assert {"name": router.SESSION_EXPIRY, "value": "120"} in router_container["env"]


def test_an_answer_that_passes_through_has_as_long_to_end_as_its_pod_gives_it() -> None:
    spec = pod_spec(drain={"timeout": "200s"})
    assert spec["terminationGracePeriodSeconds"] >= 10 + 200
    assert "--drain-timeout=200" in spec["containers"][0]["args"]


@pytest.mark.parametrize(("scaling", "replicas"), [({}, 2), ({"minReplicas": 1, "maxReplicas": 1}, 1)])
def test_there_are_two_where_there_may_be_two_pods(scaling: dict[str, int], replicas: int) -> None:
    load = {"workload": {"requestsPerSecond": "1"}} if scaling else {}
    made = built(td(scaling=scaling, **load))
    assert made["Deployment/chat-router"]["spec"]["replicas"] == replicas
    assert ("PodDisruptionBudget/chat-router" in made) == (replicas > 1)


def test_a_router_that_goes_may_watch_pods_until_its_last_pod_has_ended() -> None:
    leaving = PodView("chat-router-x", "", "Running", True, "10.0.0.9", None, None, terminating=True)
    left = built(td(routing="Service"), routers=(leaving,))
    assert "ServiceAccount/chat-router" in left
    assert len(bindings(left)) == 1
    assert "Deployment/chat-router" not in left
    assert not [name for name in built(td(routing="Service")) if "/chat-router" in name]
    bare = built(td(routing="Service"), settings=BARE, routers=(leaving,))
    assert not bindings(bare), "an operator without rights to them leaves them alone"


@pytest.mark.parametrize("resource", ROUTING, ids=lambda resource: resource.kind)
def test_of_accounts_and_bindings_only_those_with_our_label_are_watched(resource: Resource) -> None:
    assert selectors_of(resource) == (("labelSelector", f"{GROUP}/deployment"),)
    assert resource in labeled(SETTINGS)
    assert resource not in labeled(BARE)


def test_another_role_is_another_binding() -> None:
    """The API server lets nobody change the role of a binding that is there."""
    (one,), (other,) = (
        bindings(built(td(), settings=replace(SETTINGS, router_role=role)))
        for role in ("a-router", "b-router")
    )
    assert one["metadata"]["name"] != other["metadata"]["name"]


def test_a_pod_is_ready_once_its_router_is() -> None:
    deployment = built(td())["Deployment/chat-router"]["spec"]
    (activator,) = deployment["template"]["spec"]["containers"]
    assert activator["startupProbe"]["httpGet"] == {"path": "/router", "port": "activator"}
    assert deployment["minReadySeconds"] == 10


def test_a_suspended_one_has_no_router_pods() -> None:
    assert built(td(suspend=True))["Deployment/chat-router"]["spec"]["replicas"] == 0


def test_a_router_is_no_variant_of_the_plan() -> None:
    made = built(td())["Deployment/chat-router"]
    meta = {**made["metadata"], "uid": "u", "resourceVersion": "1"}
    assert child({**made, "metadata": meta}).plan_hash is None


def ready(it: TurboDeployment, *children: ChildView, **more: Any) -> tuple[api.Condition, api.Condition]:
    made = plan(it.spec, SMALL, named(fast("card", 80, "1.00")))
    pod = PodView("p", "v2abc", "Running", True, "10.0.0.1", None, None)
    observed = Snapshot({}, model=FACTS, children=children, pods=(pod,), routers=more.pop("routers", ()))
    scale = ScalingDecision(1, api.ScalingReason.PLANNED, "Planned.", History())
    outcome = Outcome(scale, made, "v2abc", **more)
    computed = status.compute(it, observed, outcome, NOW)
    found = [computed.condition(kind) for kind in ("Ready", "Stalled")]
    assert found[0] is not None
    assert found[1] is not None
    return found[0], found[1]


def test_it_is_ready_once_requests_go_through_the_router() -> None:
    assert ready(td(), ROUTER)[0].status == "True"
    waits, _ = ready(td(), replace(ROUTER, available_replicas=0))
    assert (waits.status, waits.reason) == ("False", "Progressing")
    assert "The router starts." in waits.message
    pod = PodView("chat-router-x", "", "Pending", False, None, "ImagePullBackOff", "no such image.")
    fails, _ = ready(td(), replace(ROUTER, available_replicas=0), routers=(pod,))
    assert (fails.reason, "Pod chat-router-x" in fails.message) == ("ImagePullBackOff", True)
    assert "Correct image.router of the chart" in fails.message


def test_without_an_image_of_the_router_the_pods_serve_and_it_is_said_what_to_set() -> None:
    assert "Deployment/chat-router" not in built(td(), settings=BARE)
    lack = router.lack(td(), BARE)
    assert lack is not None
    assert "image.router.repository" in lack
    assert router.lack(td(routing="Service"), BARE) is None
    condition, stalled = ready(td(), routing_lack=lack)
    assert (condition.status, condition.reason, condition.message) == ("False", "UserActionRequired", lack)
    assert stalled.status == "True"


def body(kind: str, name: str, owner: str, by: str) -> dict[str, Any]:
    reference = {"kind": by, "name": owner, "uid": owner, "controller": True}
    meta = {"namespace": "team", "name": name, "uid": name, "resourceVersion": "1"}
    return {"kind": kind, "metadata": {**meta, "labels": OWN, "ownerReferences": [reference]}, "spec": {}}


def test_a_routers_pods_take_no_place_that_a_new_plan_may_have() -> None:
    """Found on a node: two replicas were planned on cores that the routers held."""
    cache, key = Cache(), Key("team", "chat")
    meta = {"namespace": "team", "name": "chat", "uid": "u-1", "resourceVersion": "1"}
    cache.put_deployment({"kind": "TurboDeployment", "metadata": meta})
    for name in ("chat-router", "chat-v2abc"):
        owned = body("Deployment", name, "u-1", "TurboDeployment")
        owned["metadata"]["ownerReferences"][0]["name"] = "chat"
        cache.put_child(owned)
        cache.pods.put_set(body("ReplicaSet", f"{name}-1", name, "Deployment"))
        cache.pods.put({**body("Pod", f"{name}-p", f"{name}-1", "ReplicaSet"), "status": {}})
    assert cache.owner_of("chat-v2abc-p") is not None
    assert cache.owner_of("chat-router-p") is None
    observed = cache.observe(key, "u-1")
    assert [pod.name for pod in observed.pods] == ["chat-v2abc-p"]
    assert [pod.name for pod in observed.routers] == ["chat-router-p"]
