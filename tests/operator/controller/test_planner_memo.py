"""The same question is answered once; what may have another answer is asked anew."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from decimal import Decimal
from typing import Any

from turbo_operator.api import CapacityType, TurboDeployment, parse
from turbo_operator.controller.memo import CachedPlan, Planner
from turbo_operator.plan import Plan
from turbo_operator.planner.inputs import build_inputs
from turbo_operator.snapshot import Accelerator, NodeSupply, Snapshot, Supply
from turbo_runtime.contract.documents import ModelInfo, ModelShape

NOW = 1_700_000_000.0
SHAPE = ModelShape("LlamaForCausalLM", 134515008, 30, 576, 9, 3, 64, 49152, 8192, "bfloat16")
FACTS = ModelInfo(SHAPE, "sha256:ab", None, 270_000_000)
CPU = Accelerator("cpu", "cpu", Decimal(2), 6 << 30, prices={CapacityType.ON_DEMAND: Decimal("0.04")})


def td(**spec: Any) -> TurboDeployment:
    return parse(
        {
            "apiVersion": "serving.turbo.dev/v1alpha1",
            "kind": "TurboDeployment",
            "metadata": {"name": "chat", "namespace": "team", "uid": "u", "generation": 3},
            "spec": {"model": {"uri": "pvc://models/chat"}, **spec},
        }
    )


def seen(free: int, **more: Any) -> Snapshot:
    supply = {"cpu": Supply((NodeSupply("n", 8, free),), **more)}
    return Snapshot({"cpu": CPU}, supply, model=FACTS)


class Asking:
    """What one object's memory does."""

    def __init__(self) -> None:
        self.planner, self.cached = Planner(600), None
        self.edition = 0

    async def ask(self, it: TurboDeployment, observed: Snapshot, now: float = NOW) -> Plan:
        assert observed.model is not None
        inputs = build_inputs(it, observed.model.shape, observed)
        self.cached: CachedPlan | None = await self.planner.plan(self.cached, inputs, self.edition, now)
        return self.cached.plan


async def test_a_count_that_concerns_nobody_is_no_new_question() -> None:
    plans = Asking()
    first = await plans.ask(td(), seen(8))
    assert await plans.ask(td(), seen(7)) is first


async def test_whom_it_concerns_is_planned_anew_once() -> None:
    plans = Asking()
    assert (await plans.ask(td(), seen(8))).choice is not None
    plans.edition += 1
    short = await plans.ask(td(), seen(0))
    assert short.choice is None
    assert await plans.ask(td(), seen(0)) is short


async def test_a_count_that_moves_while_the_planner_is_at_work_is_not_lost() -> None:
    plans = Asking()
    asking = asyncio.create_task(plans.ask(td(), seen(8)))
    await asyncio.sleep(0)
    plans.edition += 1
    await asking
    assert (await plans.ask(td(), seen(0))).choice is None


async def test_another_spec_catalog_or_wait_in_vain_is_another_question_and_so_is_an_old_one() -> None:
    plans = Asking()
    first = await plans.ask(td(), seen(8))
    assert await plans.ask(td(), seen(8), NOW + 601) is not first
    for other in (
        (td(replicas=3), seen(8)),
        (td(), seen(8, unavailable_until=NOW + 60)),
        (td(), replace(seen(8), accelerators={"cpu": replace(CPU, prices={})})),
    ):
        before = await plans.ask(td(), seen(8))
        assert await plans.ask(*other) is not before
