"""The same question is answered once; what may have another answer is asked anew."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from decimal import Decimal
from typing import Any

from turbo_operator.api import CapacityType, TurboDeployment, parse
from turbo_operator.controller.cache.store import Key
from turbo_operator.controller.plan_cache import PlanCache
from turbo_operator.snapshot import Accelerator, NodeSupply, Snapshot, Supply
from turbo_runtime.contract.model import ModelInfo, ModelShape

KEY = Key("team", "chat")
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


async def test_a_count_that_concerns_nobody_is_no_new_question() -> None:
    plans = PlanCache(600)
    first = await plans.ask(KEY, td(), seen(8), plans.edition(KEY), NOW)
    assert first is not None
    assert await plans.ask(KEY, td(), seen(7), plans.edition(KEY), NOW) is first
    assert plans.last(KEY) is first


async def test_whom_it_concerns_is_planned_anew_once() -> None:
    plans = PlanCache(600)
    assert (await plans.ask(KEY, td(), seen(8), plans.edition(KEY), NOW)).choice is not None
    plans.outdate(KEY)
    short = await plans.ask(KEY, td(), seen(0), plans.edition(KEY), NOW)
    assert short.choice is None
    assert await plans.ask(KEY, td(), seen(0), plans.edition(KEY), NOW) is short


async def test_a_count_that_moves_while_the_planner_is_at_work_is_not_lost() -> None:
    plans = PlanCache(600)
    edition = plans.edition(KEY)
    asking = asyncio.create_task(plans.ask(KEY, td(), seen(8), edition, NOW))
    await asyncio.sleep(0)
    plans.outdate(KEY)
    await asking
    assert (await plans.ask(KEY, td(), seen(0), plans.edition(KEY), NOW)).choice is None


async def test_another_spec_catalogue_or_wait_in_vain_is_another_question_and_so_is_an_old_one() -> None:
    plans = PlanCache(600)
    first = await plans.ask(KEY, td(), seen(8), 0, NOW)
    assert await plans.ask(KEY, td(), seen(8), 0, NOW + 601) is not first
    for other in (
        (td(replicas=3), seen(8)),
        (td(), seen(8, exhausted_until=NOW + 60)),
        (td(), replace(seen(8), accelerators={"cpu": replace(CPU, prices={})})),
    ):
        before = await plans.ask(KEY, td(), seen(8), 0, NOW)
        assert await plans.ask(KEY, *other, 0, NOW) is not before


async def test_nothing_is_asked_while_the_model_is_unknown_nor_kept_of_what_is_gone() -> None:
    plans = PlanCache(600)
    assert await plans.ask(KEY, td(), replace(seen(8), model=None), 0, NOW) is None
    await plans.ask(KEY, td(), seen(8), 0, NOW)
    plans.forget(KEY)
    assert plans.last(KEY) is None
