"""No status says two things that cannot hold together, whatever is seen and in whatever order."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from turbo_dev.status_coherence import contradictions, impossible_changes
from turbo_operator import planner
from turbo_operator.api import CapacityType, TurboDeployment, parse
from turbo_operator.autoscaler import History
from turbo_operator.catalog import shapes
from turbo_operator.controller.decision import decide
from turbo_operator.render import plan_hash
from turbo_operator.rollout import seconds_left
from turbo_operator.settings import Settings
from turbo_operator.snapshot import Accelerator, ChildView, NodeSupply, PodView, Snapshot, Supply
from turbo_operator.status import compute
from turbo_runtime.contract.documents import ModelInfo

GIB = 1 << 30
NOW = 1_700_000_000.0
SHAPE = shapes.shipped("HuggingFaceTB/SmolLM2-135M")
assert SHAPE is not None
FACTS = ModelInfo(SHAPE, "sha256:ab", None, 270_000_000)
PRICES = {CapacityType.ON_DEMAND: Decimal("0.04")}
CPU = Accelerator("cpu", "cpu", Decimal(2), 6 * GIB, prices=PRICES, price_source="mine")
SETTINGS = Settings(runtime_image="runtime:1")
OLD = "v1old00000"

specs = st.fixed_dictionaries(
    {},
    optional={
        "replicas": st.integers(0, 3),
        "suspend": st.booleans(),
        "cost": st.sampled_from(({"maxPerHour": "0.04"}, {"maxPerHour": "0.09"}, {"maxPerHour": "0.01"})),
        "accelerators": st.sampled_from(({"maxTotal": 1}, {"maxTotal": 2}, {"allowed": ["cpu"]})),
        "speculation": st.sampled_from(({"maxDraftTokens": 4}, {"mode": "Disabled"})),
        "rollout": st.sampled_from(({"maxUnavailable": 1}, {"maxSurge": 0}, {"progressDeadline": "30s"})),
    },
)
pods = st.lists(
    st.tuples(
        st.booleans(),  # of the plan that is asked for, else of the one before
        st.sampled_from(("ready", "starting", "unplaced", "failing", "ending", "ended")),
    ),
    max_size=4,
)
looks = st.lists(
    st.tuples(
        specs,
        pods,
        st.integers(0, 3),  # replicas of the old variant
        st.integers(0, 3),  # and of the new one
        st.booleans(),  # whether the model is known
        st.sampled_from((None, 0, 1, 3)),  # accelerators that nodes have free
        st.sampled_from((1.0, 40.0, 700.0)),  # seconds since the look before
    ),
    min_size=1,
    max_size=6,
)


def object_with(spec: dict[str, Any], status: dict[str, Any], generation: int) -> TurboDeployment:
    return parse(document(spec, status, generation))


def document(spec: dict[str, Any], status: dict[str, Any], generation: int) -> dict[str, Any]:
    return {
        "apiVersion": "serving.turbo.dev/v1alpha1",
        "kind": "TurboDeployment",
        "metadata": {"name": "chat", "namespace": "team", "uid": "u", "generation": generation},
        "spec": {"model": {"uri": "pvc://models/chat"}, **spec},
        "status": status,
    }


def variant(name: str, replicas: int, available: int) -> tuple[ChildView, ChildView]:
    deployment = ChildView(
        "Deployment",
        f"chat-{name}",
        f"d-{name}",
        None,
        plan_hash=name,
        replicas=replicas,
        available_replicas=min(available, replicas),
        accelerator="cpu",
    )
    revision = ChildView(
        "ControllerRevision",
        f"chat-{name}",
        f"r-{name}",
        None,
        plan_hash=name,
        data={"spec": {}, "metadata": {}},
    )
    return deployment, replace(revision, accelerator="cpu")


def pod(number: int, of: str, state: str, now: float) -> PodView:
    view = PodView(f"p{number}", of, "Running", state == "ready", "10.0.0.1", None, None, accelerator="cpu")
    if state == "ready":
        return replace(view, ready_since=now - 30)
    if state == "unplaced":
        said = {"reason": "Unschedulable", "message": "no node", "pending_since": now - 20}
        return replace(view, phase="Pending", **said)
    if state == "failing":
        return replace(view, reason="ImagePullBackOff", message="no such image")
    if state == "ended":
        return replace(view, phase="Failed", reason="Evicted", message="the node was low on memory")
    return replace(view, terminating=state == "ending")


@settings(max_examples=400)
@given(looks)
def test_no_status_contradicts_itself(history: list[tuple[Any, ...]]) -> None:
    status: dict[str, Any] = {}
    now, scaling = NOW, History()
    spec_before: dict[str, Any] | None = None
    generation = 0
    for spec, seen, old_replicas, new_replicas, known, free, seconds in history:
        now += seconds
        generation += spec != spec_before
        before = document(spec_before or {}, status, generation)
        spec_before = spec
        it = object_with(spec, status, generation)
        supply = None if free is None else {"cpu": Supply((NodeSupply("n", 4, free),))}
        observed = Snapshot({"cpu": CPU}, supply, model=FACTS if known else None)
        plan = planner.plan(planner.build_inputs(it, FACTS.shape, observed), now) if known else None
        choice = plan.served if plan is not None else None
        wanted = plan_hash(it, choice, FACTS) if choice is not None else "v1none0000"
        named = [(wanted if mine else OLD, state) for mine, state in seen]
        views = [pod(number, of, state, now) for number, (of, state) in enumerate(named)]
        ready = {name: sum(each.ready for each in views if each.plan_hash == name) for name in (OLD, wanted)}
        children = (*variant(OLD, old_replicas, ready[OLD]), *variant(wanted, new_replicas, ready[wanted]))
        observed = replace(observed, children=children, pods=tuple(views))
        decision = decide(it, observed, SETTINGS, now, plan, scaling)
        scaling = decision.scale.history
        if decision.plan_hash is None:  # no deadline runs, or the operator would look without a pause
            assert seconds_left(decision.rollout.status, now, 30.0) is None
        for refused in (None, "The API server refused: no."):
            after = document(spec, compute(it, observed, decision, now, refused).dump(), generation)
            assert contradictions(after) == []
            assert impossible_changes(before, after) == []
        status = compute(it, observed, decision, now).dump()
