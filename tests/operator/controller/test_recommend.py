"""With planPolicy.apply Recommend a plan is made for what a Deployment does, and nothing for pods."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from turbo_dev.small_world import KEY, World
from turbo_dev.trainings import CORES, NOW, td
from turbo_operator.api import CapacityType, Provisioning, TurboDeployment
from turbo_operator.reference import MeasuredLoad, Reference
from turbo_operator.snapshot import AcceleratorLabels

LOAD = MeasuredLoad(0.5, 300.0, 40.0, NOW - 60)
CPU = AcceleratorLabels(accelerator="cpu", accelerators=4)
SEEN = Reference("vllm", None, replicas=3, ready=3, placed=(CPU, CPU, CPU), answering=3, load=LOAD)
FAST = replace(
    CORES, memory_bandwidth=50e9, flops={"bf16": 4e12, "fp32": 2e12}, provisioning=Provisioning.ELASTIC
)


def asked(**spec: Any) -> TurboDeployment:
    policy = {"apply": "Recommend", "deploymentRef": {"name": "vllm"}}
    return td(absent=True, spec={"capture": None, "planPolicy": policy, **spec})


def world(row: Any = FAST) -> World:
    it = World()
    it.cache.accelerators.put({"metadata": {"name": "cpu", "uid": "a", "resourceVersion": "2"}}, row)
    return it


async def looked(it: World, seen: Reference | None, **spec: Any) -> World:
    await it.written(asked(**spec))
    if seen is not None:
        it.cache.put_reference(KEY, seen, {"p"})
    await it.settled()
    return it


async def test_a_plan_is_recommended_with_what_it_saves_and_no_child_makes_a_pod() -> None:
    it = await looked(world(), SEEN)
    status, reason, message = it.condition("Ready")
    assert (status, reason) == ("True", "Recommended"), message
    plan, saving = it.status["pendingPlan"], it.status["saving"]
    assert plan["accelerator"] == "cpu"
    runs, planned = Decimal("0.48"), Decimal(plan["predicted"]["costPerHour"])
    assert Decimal(saving["perHour"]) == runs - planned
    assert saving["accelerators"] == 12 - plan["replicas"] * plan["acceleratorsPerReplica"]
    assert f"It saves {saving['perHour']} $/h: Deployment vllm has 12 x cpu for 0.48 $/h." in message
    assert "Without speculation the same load would take" in message
    kinds = {kind for kind, _ in it.server.objects}
    assert kinds == {"TurboDeployment", "ConfigMap"}, "facts of the model, and nothing else"
    assert (it.condition("Reconciling")[0], it.condition("Stalled")[0]) == ("False", "False")


async def test_the_measured_load_is_in_the_status_and_moves_by_tenths() -> None:
    it = await looked(world(), SEEN)
    reference = it.status["reference"]
    assert (reference["requestsPerSecond"], reference["inputTokens"], reference["outputTokens"]) == (
        "0.5",
        300,
        40,
    )
    assert (reference["replicas"], reference["readyReplicas"], reference["accelerators"]) == (3, 3, 12)
    it.cache.put_reference(KEY, replace(SEEN, load=LOAD._replace(requests_per_second=0.54)), {"p"})
    await it.settled()
    assert it.status["reference"] == reference
    it.cache.put_reference(KEY, replace(SEEN, load=LOAD._replace(requests_per_second=0.6)), {"p"})
    await it.settled()
    assert it.status["reference"]["requestsPerSecond"] == "0.6"


async def test_what_the_spec_states_goes_before_what_was_measured() -> None:
    it = await looked(world(), SEEN, workload={"requestsPerSecond": "5"})
    stated = it.status["pendingPlan"]["predicted"]["tokensPerSecond"]
    assert float(stated) == pytest.approx(5 * 40, rel=0.01)


async def test_a_start_of_the_operator_keeps_the_recommendation_until_the_deployment_is_seen() -> None:
    it = await looked(world(), SEEN)
    before = it.status
    it.cache.drop_reference(KEY)
    await it.settled()
    assert it.status == before


@pytest.mark.parametrize(
    ("seen", "reason", "words"),
    [
        (
            Reference("vllm", "There is no Deployment vllm in namespace team."),
            "DeploymentNotFound",
            "no Deployment",
        ),
        (replace(SEEN, answering=0, load=None), "MetricsMissing", "deploymentRef.port"),
        (replace(SEEN, load=None), "WaitingForTraffic", "spec.workload"),
        (None, "WaitingForTraffic", "spec.workload"),
    ],
)
async def test_what_is_missing_for_a_recommendation_is_said(
    seen: Reference | None, reason: str, words: str
) -> None:
    it = await looked(world(), seen)
    assert it.condition("Ready")[:2] == ("False", reason)
    assert words in it.condition("Ready")[2]
    assert it.condition("Reconciling")[:2] == ("True", reason)
    assert it.condition("PlanFeasible")[:2] == ("Unknown", "LoadUnknown")
    assert "pendingPlan" not in it.status


async def test_a_node_or_a_price_that_is_not_known_is_named_and_no_saving_is_made_up() -> None:
    it = await looked(world(), replace(SEEN, unidentified="n7"))
    assert "node n7 of its pods is of no TurboAccelerator" in it.condition("Ready")[2]
    assert "saving" not in it.status
    dear = replace(FAST, prices={CapacityType.ON_DEMAND: Decimal(4)})
    one = replace(SEEN, replicas=1, placed=(replace(CPU, accelerators=1),))
    it = await looked(world(dear), one, workload={"requestsPerSecond": "50"})
    assert "It saves nothing" in it.condition("Ready")[2]
    assert "saving" not in it.status


async def test_no_plan_for_the_load_says_why() -> None:
    it = await looked(world(), SEEN, targets={"timePerOutputToken": {"max": "1ms"}})
    assert it.condition("Ready")[:2] == ("False", "TargetUnreachable")
    assert it.condition("Stalled")[0] == "True"


async def test_a_suspended_one_rests() -> None:
    it = await looked(world(), SEEN, suspend=True)
    assert it.condition("Ready")[:2] == ("False", "Suspended")
    assert it.condition("Reconciling")[0] == "False"


async def test_the_pods_of_the_deployment_count_as_room_for_the_plan() -> None:
    it = await looked(world(), SEEN)
    assert it.cache.owner_of("p") == KEY.owner
    it.cache.drop_reference(KEY)
    assert it.cache.owner_of("p") is None
