"""A look decides by what it sees now, not by what it saw before it waited for the planner."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from turbo_operator import render
from turbo_operator.api import TurboDeployment, parse
from turbo_operator.controller.budgets.reservations import Reservations
from turbo_operator.controller.cache.store import Cache, Key
from turbo_operator.controller.kube import Kube
from turbo_operator.controller.memo import CachedPlan, Planner
from turbo_operator.controller.reconciler import Reconciler
from turbo_operator.drafts import canary, training
from turbo_operator.inventory.store import InventoryStore
from turbo_operator.planner import PlannerInputs
from turbo_operator.settings import Settings
from turbo_operator.snapshot import Snapshot
from turbo_runtime.contract.documents import ModelInfo, ModelShape

NOW = 1_700_000_000.0
KEY = Key("team", "chat")
SHAPE = ModelShape("LlamaForCausalLM", 134515008, 30, 576, 9, 3, 64, 49152, 8192, "bfloat16")
FACTS = ModelInfo(SHAPE, "sha256:ab", None, 270_000_000)


def body(version: int, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "serving.turbo.dev/v1alpha1",
        "kind": "TurboDeployment",
        "metadata": {
            "name": KEY.name,
            "namespace": KEY.namespace,
            "uid": "u",
            "generation": version,
            "resourceVersion": str(version),
        },
        "spec": {"model": {"uri": "pvc://models/chat"}, **spec},
    }


def facts(td: TurboDeployment) -> dict[str, Any]:
    owner = {"kind": "TurboDeployment", "name": KEY.name, "uid": "u", "controller": True}
    name = render.model_configmap_name(td)
    meta = {"name": name, "namespace": KEY.namespace, "uid": "c", "resourceVersion": "1"}
    data = render.facts_data(td, FACTS)
    return {"kind": "ConfigMap", "metadata": {**meta, "ownerReferences": [owner]}, "data": data}


class Untouched:
    """An API server that must not be asked for anything."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} was called")


def reconciler_of(cache: Cache) -> Reconciler:
    cache.put_deployment(body(1))
    cache.put_child(facts(parse(body(1))))
    api: Kube = Untouched()  # type: ignore[assignment]
    settings = Settings(runtime_image="runtime:1")
    return Reconciler(cache, InventoryStore(cache.owner_of), api, settings, lambda: NOW, Reservations(cache))


async def test_a_training_is_asked_for_by_the_gain_it_is_decided_by(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Found in review: the planner was asked before the gain was known, and a training waited for ever."""
    decide, speedups = training.decide, []

    def remember(td: TurboDeployment, observed: Snapshot, *rest: Any) -> training.TrainingDecision:
        speedups.append(observed.speedup)
        return decide(td, observed, *rest)

    monkeypatch.setattr(training, "decide", remember)
    monkeypatch.setattr(canary, "add_verdict", lambda observed, *_: replace(observed, speedup=1.5))
    with pytest.raises(AssertionError, match="was called"):
        await reconciler_of(Cache()).reconcile(KEY)
    assert speedups == [1.5, 1.5]


async def test_a_spec_that_changed_while_the_planner_was_waited_for_is_looked_at_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Found in review: replicas were lowered by what pods and spec were before the planner's queue."""
    cache = Cache()
    reconciler = reconciler_of(cache)
    compute = Planner.plan

    async def compute_slowly(
        planner: Planner, last: CachedPlan | None, inputs: PlannerInputs, edition: int, now: float
    ) -> CachedPlan:
        plan = await compute(planner, last, inputs, edition, now)
        cache.put_deployment(body(2, suspend=True))
        return plan

    monkeypatch.setattr(Planner, "plan", compute_slowly)
    assert await reconciler.reconcile(KEY) == 0.0
