"""Specs, catalogs and supplies that the planner's laws are tried on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from itertools import product
from typing import Any

from hypothesis import strategies as st

from turbo_operator import planner
from turbo_operator.api import CapacityType, Provisioning, TurboDeploymentSpec
from turbo_operator.catalog import shapes
from turbo_operator.plan import Plan, Running
from turbo_operator.planner import PlannerInputs
from turbo_operator.planner.performance.step_time import Calibration
from turbo_operator.snapshot import Accelerator, NodeSupply, Supply
from turbo_runtime.contract.documents import ModelShape

GIB = 1 << 30
NAMES = ("alpha", "beta", "gamma", "delta")
KINDS = (CapacityType.ON_DEMAND, CapacityType.SPOT)


def shape(hub_id: str) -> ModelShape:
    """The shape of a shipped model."""
    found = shapes.shipped(hub_id)
    assert found is not None
    return found


SMALL, MIDDLE, LARGE = (
    shape(name) for name in ("HuggingFaceTB/SmolLM2-135M", "Qwen/Qwen3-8B", "Qwen/Qwen3-32B")
)
models = st.sampled_from((SMALL, MIDDLE, MIDDLE, LARGE, replace(SMALL, dtype="Q4_1")))


def rarely(draw: st.DrawFn, strategy: st.SearchStrategy[Any]) -> Any:
    """One time in four: where every demand is made at once nothing is ever feasible."""
    return draw(strategy) if draw(quarters) == 3 else None


quarters = st.integers(0, 3)
cents = st.integers(0, 2000)
priced = st.sampled_from((*6 * (KINDS,), KINDS[:1], ()))
rates = st.sampled_from((*2 * tuple(product((3e11, 9e11, 3e12), (6e13, 3e14, 1e15))), None))


@st.composite
def accelerators(draw: st.DrawFn, name: str) -> Accelerator:
    """One accelerator; its price or its speed is unknown now and then."""
    rate = draw(rates)
    elastic = draw(st.booleans())
    kinds = draw(priced)
    return Accelerator(
        name,
        draw(st.sampled_from(("cpu", "nvidia.com/gpu"))),
        Decimal(1),
        draw(st.sampled_from((24, 80, 80, 141, 2))) * GIB,
        memory_bandwidth=rate and rate[0],
        flops={} if rate is None else {"bf16": rate[1]},
        interconnect_bandwidth=draw(st.sampled_from((None, 4e11))),
        count_per_node=draw(st.sampled_from((None, 1, 4, 8))),
        prices={kind: Decimal(draw(cents)) / 100 for kind in kinds},
        price_per_node=draw(st.booleans()),
        provisioning=Provisioning.ELASTIC if elastic else Provisioning.FIXED,
        max_count=draw(st.none() | st.integers(0, 12)) if elastic else None,
    )


@st.composite
def catalog_of(draw: st.DrawFn) -> dict[str, Accelerator]:
    """Two to four accelerators by name."""
    names = sorted(draw(st.sets(st.sampled_from(NAMES), min_size=2)))
    return {name: draw(accelerators(name)) for name in names}


catalogs = catalog_of()
nodes = st.builds(
    lambda name, free, held, types: NodeSupply(name, free + held, free, None, types),
    st.sampled_from(("a", "b")),
    st.integers(0, 8),
    st.integers(0, 4),
    st.sampled_from((frozenset(CapacityType), *(frozenset({kind}) for kind in CapacityType))),
)


@st.composite
def supply_of(draw: st.DrawFn) -> dict[str, Supply] | None:
    """What the cluster has of each, or None where nothing is held against a plan."""
    if draw(quarters) < 3:
        return None
    return {
        name: Supply(
            tuple(draw(st.lists(nodes, min_size=1, max_size=3))),
            rarely(draw, st.integers(0, 12)),
            draw(st.sampled_from((None, 500.0, 1500.0))),
        )
        for name in draw(st.sets(st.sampled_from(NAMES)))
    }


supplies = supply_of()
NOW = 1000.0

budgets = st.none() | st.integers(1, 6000).map(lambda amount: f"{Decimal(amount) / 100:.2f}")
LENGTHS = ("inputTokens", "outputTokens")
lengths: list[dict[str, Any]] = [
    {name: {"mean": mean} for name, mean in zip(LENGTHS, means, strict=True) if mean}
    for means in product((None, 64, 512), (None, 32, 256))
]
# Of most loads it takes many replicas, so that a capacity a tenth off is another number of them.
loads: tuple[dict[str, Any], ...] = (
    {},
    {"requestsPerSecond": "0.02"},
    *({"requestsPerSecond": each} for each in ("3", "17", "60", "150", "400")),
    *({"concurrency": each} for each in (1, 24, 700)),
)
workloads: st.SearchStrategy[dict[str, Any]] = st.sampled_from(
    [{**length, **load} for length in lengths for load in loads]
)
latency = st.sampled_from(("2ms", "8ms", "30ms", "200ms"))
first = st.sampled_from(("60ms", "400ms", "5s"))
throughput = st.sampled_from(("900", "9000"))


@st.composite
def specs(draw: st.DrawFn) -> TurboDeploymentSpec:
    """A spec that asks for a few things."""
    allowed = rarely(draw, st.lists(st.sampled_from(NAMES), unique=True, min_size=1))
    kinds = draw(st.sampled_from((["OnDemand"], ["Spot"], ["Spot", "OnDemand"])))
    total = rarely(draw, st.integers(1, 40))
    cost = {
        "maxPerHour": draw(budgets),
        "maxPerMillionTokens": rarely(draw, st.sampled_from(("0.40", "4.00"))),
    }
    objective = draw(st.sampled_from(("Cost", "Throughput", "Latency")))
    if cost["maxPerHour"] is None and total is None:
        objective = "Cost"
    token, prompt, tokens = rarely(draw, latency), rarely(draw, first), rarely(draw, throughput)
    targets = {
        **({"timePerOutputToken": {"max": token}} if token else {}),
        **({"timeToFirstToken": {"max": prompt, "percentile": 50}} if prompt else {}),
        **({"tokensPerSecond": tokens} if tokens else {}),
    }
    workload, length = draw(workloads), draw(st.sampled_from((256, 4096, None)))
    if length == 256 and sum(workload.get(name, {}).get("mean", 0) for name in LENGTHS) >= length:
        length = 1024  # what no request holds is refused before anything is weighed
    least = rarely(draw, st.integers(1, 3))
    most = rarely(draw, st.integers(3, 9))
    mode = draw(st.sampled_from(("Auto", "Required", "Disabled")))
    return spec(
        model={
            "uri": "hf://a/b",
            "dtype": draw(st.sampled_from(("Auto", "Float32", "BFloat16"))),
            **({"maxModelLen": length} if length else {}),
        },
        accelerators={
            "capacityTypes": kinds,
            **({"allowed": allowed} if allowed else {}),
            **({"maxTotal": total} if total else {}),
        },
        speculation={"mode": mode, "maxDraftTokens": draw(st.sampled_from((1, 8, 64)))},
        workload=workload,
        targets=targets,
        cost={key: value for key, value in cost.items() if value is not None},
        planPolicy={"objective": objective},
        replicas=draw(st.integers(0, 5)),
        scaling={
            **(
                {"mode": policy}
                if (policy := draw(st.sampled_from((None, None, "Planned", "External"))))
                else {}
            ),
            **({"minReplicas": least} if least else {}),
            **({"maxReplicas": most} if most else {}),
        },
    )


def plan(
    wanted: TurboDeploymentSpec,
    model: ModelShape,
    catalog: Mapping[str, Accelerator],
    supply: Mapping[str, Supply] | None = None,
    *,
    now: float = 0.0,
    running: Running | None = None,
    calibrations: Mapping[tuple[str, str], Calibration] | None = None,
    draft: ModelShape | None = None,
) -> Plan:
    """The plan of these inputs, most of which are left out."""
    inputs = PlannerInputs(wanted, model, catalog, supply, running, calibrations or {}, draft)
    return planner.plan(inputs, now)


def spec(**fields: Any) -> TurboDeploymentSpec:
    """A spec with these fields; of engine Turbo, which serves on all of the catalogs here."""
    usual = {"model": {"uri": "hf://a/b"}, "engine": {"type": "Turbo"}}
    return TurboDeploymentSpec.model_validate({**usual, **fields})


def changed(wanted: TurboDeploymentSpec, **fields: Any) -> TurboDeploymentSpec:
    """The same spec with other fields in place."""
    return TurboDeploymentSpec.model_validate({**wanted.dump(), **fields})


@st.composite
def roomy(draw: st.DrawFn) -> tuple[TurboDeploymentSpec, dict[str, Accelerator]]:
    """A demand that most accelerators meet, so that the objective and the bill decide."""
    objective = draw(st.sampled_from(("Cost", "Throughput", "Latency")))
    whole = draw(st.booleans())
    there = {
        name: Accelerator(
            name,
            "nvidia.com/gpu",
            Decimal(1),
            draw(st.sampled_from((24, 80))) * GIB,
            memory_bandwidth=draw(st.sampled_from((3e11, 9e11, 3e12))),
            flops={"bf16": draw(st.sampled_from((6e13, 3e14, 1e15)))},
            count_per_node=draw(st.sampled_from((2, 4, 8))),
            prices={CapacityType.ON_DEMAND: Decimal(draw(st.integers(20, 500))) / 100},
            price_per_node=whole,
        )
        for name in NAMES[: draw(st.integers(2, 4))]
    }
    load: dict[str, Any] = draw(
        st.sampled_from(({"requestsPerSecond": "20"}, {"requestsPerSecond": "90"}, {"concurrency": 150}))
    )
    tokens = draw(st.sampled_from((None, "3000", "9000"))) if "concurrency" in load else None
    lengths = {"inputTokens": {"mean": 300}, "outputTokens": {"mean": 120}}
    wanted = spec(
        model={"uri": "hf://a/b", "maxModelLen": 4096},
        workload={**lengths, **load},
        targets={"tokensPerSecond": tokens} if tokens else {},
        cost={"maxPerHour": str(draw(st.integers(40, 300)))},
        planPolicy={"objective": objective},
    )
    return wanted, there
