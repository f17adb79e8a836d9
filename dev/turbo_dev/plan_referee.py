"""The planner's referee: the best candidate by looking at each one alone, in scalars, from the rules."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import product
from typing import Any

import numpy as np

from turbo_dev.plan_cases import (
    GIB,
    KINDS,
    NOW,
    plan,
)
from turbo_operator.api import CapacityType, EngineName, Provisioning, TurboDeploymentSpec
from turbo_operator.plan import Plan
from turbo_operator.planner.performance import capacity, queueing, step_time
from turbo_operator.planner.performance.step_time import BY_ENGINE
from turbo_operator.planner.requirements import Demand, demand
from turbo_operator.snapshot import Accelerator, Supply
from turbo_runtime.contract.documents import ModelShape

# on a CPU, on a GPU: requests, tokens of a step, tokens of a block
LIMITS = {True: (32, 512, 16), False: (256, 2048, 256)}


@dataclass(frozen=True)
class One:
    """A candidate that breaks nothing, told in scalars."""

    key: tuple[float, ...]
    accelerator: str
    kind: CapacityType
    method: str
    replicas: int
    cost: Decimal | None


def brute_force(
    wanted: TurboDeploymentSpec,
    model: ModelShape,
    there: Mapping[str, Accelerator],
    supply: Mapping[str, Supply] | None,
) -> One | None:
    """The best candidate, each looked at alone and straight from the rules; None when there is none."""
    allowed = wanted.accelerators.allowed if wanted.accelerators else None
    kinds = wanted.accelerators.capacity_types if wanted.accelerators else (CapacityType.ON_DEMAND,)
    mode, ceiling = wanted.speculation.mode, wanted.speculation.max_draft_tokens
    ceiling = 32 if ceiling is None else ceiling
    ceilings = {"Auto": (ceiling, 0), "Required": (ceiling,), "Disabled": (0,)}[mode]
    found = [
        one
        for (place, name), (order, kind), tokens in product(
            enumerate(allowed or sorted(there)), enumerate(kinds), ceilings
        )
        if name in there
        and (one := weighed(wanted, model, there[name], supply, kind, tokens, (order, tokens == 0, place)))
    ]
    return min(found, key=lambda one: one.key, default=None)


def weighed(
    wanted: TurboDeploymentSpec,
    model: ModelShape,
    row: Accelerator,
    supply: Mapping[str, Supply] | None,
    kind: CapacityType,
    tokens: int,
    order: tuple[float, ...],
) -> One | None:
    """One candidate, or None where it breaks a rule."""
    length = wanted.model.max_model_len or model.max_position
    asked, cost = demand(wanted, length), wanted.cost
    pool, size, per_token = cached(wanted, model, row, tokens)
    if pool is None:
        return None
    objective = wanted.plan_policy.objective
    known = row.memory_bandwidth is not None and "bf16" in row.flops
    speed = (
        asked.rate,
        asked.concurrency,
        asked.time_to_first_token,
        asked.time_per_output_token,
        asked.tokens_per_second,
        cost and cost.max_per_million_tokens,
    )
    judged = any(speed) or objective != "Cost"
    if judged and not known:
        return None
    planned = min(asked.prompt.mean + asked.output.mean, float(length))
    running, _, block = LIMITS[row.resource_name == "cpu"]
    slots = min(running, max(1, int(pool // (per_token * (planned + tokens + 1 + block)))))
    engine = curve(model, row, size, slots, asked) if known else None
    price = row.prices.get(kind)
    only = wanted.accelerators and wanted.accelerators.allowed and len(wanted.accelerators.allowed) == 1
    bounded = cost and (cost.max_per_hour or cost.max_per_million_tokens)
    kinds = wanted.accelerators.capacity_types if wanted.accelerators else KINDS[:1]
    if price is None and (not only or bounded or kinds != KINDS[:1]):
        return None
    need = needs(wanted, asked, engine) if judged else float(wanted.scaling.min_replicas or 1)
    external = wanted.scaling_mode == "External"
    most = wanted.scaling.max_replicas or 1000
    if need == math.inf or (need > most and not external):
        return None
    replicas = wanted.replicas if external else int(need)
    bounds = room(wanted, row, supply, kind)
    if not external and wanted.scaling_mode == "Planned" and objective != "Cost":
        for more in range(replicas, min([*bounds, most]) + 1):
            over = cost and cost.max_per_hour and price and paid(row, more) * price > cost.max_per_hour
            replicas = replicas if over else more
    if any(replicas > bound for bound in bounds):
        return None
    return billed(wanted, asked, row, engine, kind, tokens, order, replicas, int(need))


def billed(
    wanted: TurboDeploymentSpec,
    asked: Demand,
    row: Accelerator,
    engine: queueing.Engines | None,
    kind: CapacityType,
    tokens: int,
    order: tuple[float, ...],
    replicas: int,
    least: int,
) -> One | None:
    """The candidate with so many replicas; None where they cost too much."""
    cost, price = wanted.cost, row.prices.get(kind)
    objective = wanted.plan_policy.objective
    bill = None if price is None else paid(row, replicas) * price
    if cost and cost.max_per_hour is not None and bill is not None and bill > cost.max_per_hour:
        return None
    if cost and cost.max_per_million_tokens is not None:
        assert engine is not None
        assert price is not None
        tokens_per_hour = 3600 * output(asked, engine, max(replicas, 1))
        million = float(price * paid(row, replicas)) / tokens_per_hour * 1e6
        if million > float(cost.max_per_million_tokens) * (1 + 1e-12):
            return None
    external = wanted.scaling_mode == "External"
    compared = least if external else replicas  # the load says which class, whoever says how many run
    money = float((1 if price is None else price) * paid(row, compared))
    leading = 0.0
    if objective == "Throughput":
        assert engine is not None
        leading = -step(max(0.0, (1 if external else replicas) * able(asked, engine)[2]))
    elif objective == "Latency":
        assert engine is not None
        leading = token_at(asked, engine, compared)
        if wanted.scaling_mode == "Planned":  # no more than make it faster
            few = next(
                count for count in range(least, replicas + 1) if token_at(asked, engine, count) <= leading
            )
            replicas, bill = few, None if price is None else paid(row, few) * price
    return One(
        (leading, round(money, 6), *order), row.name, kind, "Suffix" if tokens else "Off", replicas, bill
    )


def token_at(asked: Demand, engine: queueing.Engines, replicas: int) -> float:
    """Time per output token of so many replicas, in steps of a hundredth."""
    return step(float(at_share(asked, engine, replicas).time_per_output_token[0]))


def step(value: float) -> float:
    """The step of a hundredth that a positive number falls into."""
    return math.floor(math.log(value) / 0.01) if value > 0 else -math.inf


def cached(
    wanted: TurboDeploymentSpec, model: ModelShape, row: Accelerator, tokens: int
) -> tuple[int | None, int, int]:
    """Bytes of the KV pool, None where the longest request does not fit; of a number; of one token."""
    cpu = row.resource_name == "cpu"
    size = {"Float32": 4, "BFloat16": 2, "Auto": 4 if cpu else 2}[wanted.model.dtype]
    length = wanted.model.max_model_len or model.max_position
    weights = (model.parameters + (model.vocab_size * model.hidden_size if cpu else 0)) * size
    per_token = 2 * model.layers * model.kv_heads * model.head_dim * size
    running, together, block = LIMITS[cpu]
    request = per_token * (length + tokens + 1 + block)
    request += -request % (GIB // 64)
    together = max(together, tokens + 1)
    logits = min(running * (tokens + 1), together) * model.vocab_size * 4
    widest = max(together * 3 * model.mlp_width * size, logits)
    activations = together * 2 * model.hidden_size * size + widest
    held = weights + request + activations
    if cpu and model.dtype == "Q4_1":
        held = max(held, 2 * weights)
    usable = int(0.95 * row.memory_bytes) - (3 * GIB // 2 if cpu else 2 * GIB)
    if held > usable:
        return None, size, per_token
    left = usable - weights - activations
    return min(left - left % (GIB // 64), running * request), size, per_token


def curve(model: ModelShape, row: Accelerator, size: int, slots: int, asked: Demand) -> queueing.Engines:
    """One candidate's step times, a call of the step-time model for each number of requests."""
    coefficients = replace(BY_ENGINE[EngineName.TURBO], **row.efficiency)
    rate = row.flops["bf16"] / (16 if size == 4 and row.resource_name != "cpu" else 1)
    assert row.memory_bandwidth is not None
    machine = step_time.Machine(row.memory_bandwidth, rate, rate, rate, math.inf, 1.0, coefficients)
    dense = float((model.parameters - model.embedding_parameters) * size)
    per_token = float(2 * model.layers * model.kv_heads * model.head_dim * size)
    work = step_time.build_work(model, dense, 0.0, per_token)
    states = queueing.rows(np.array([float(slots)]))
    decode = [
        float(step_time.decode_seconds(machine, work, float(each), 0.0, asked.mean_context))
        for each in states[0]
    ]
    read = float(step_time.prefill_seconds(machine, work, asked.prompt.mean))
    return queueing.Engines(
        rows=states,
        decode=np.array([decode]),
        prefill=np.array([read / asked.prompt.mean]),
        chunk=np.array([float(LIMITS[row.resource_name == "cpu"][1] - slots)]),
        first=np.array([coefficients.prefill_layer_seconds * model.layers]),
    )


def able(asked: Demand, engine: queueing.Engines) -> tuple[float, float, float]:
    """Requests per second, concurrency and tokens per second of one replica while the targets hold."""
    if asked.concurrency is None:
        rate = float(capacity.capacity(engine, asked)[0])
        return rate, math.nan, rate * asked.output.mean
    for running in range(int(engine.slots[0]), 0, -1):
        served = capacity.closed(engine, asked, np.array([float(running)]))
        late = [
            bound is not None and value[0] > bound.seconds
            for bound, value in (
                (asked.time_to_first_token, served.time_to_first_token),
                (asked.time_per_output_token, served.time_per_output_token),
            )
        ]
        share = 0.0 if asked.tokens_per_second is None else asked.tokens_per_second / asked.concurrency
        starved = served.tokens_per_second[0] < running * share * (1 - 1e-9)
        if not (starved or any(late)):
            return float(served.requests_per_second[0]), running, float(served.tokens_per_second[0])
    return 0.0, 0.0, 0.0


def needs(wanted: TurboDeploymentSpec, asked: Demand, engine: queueing.Engines | None) -> float:
    """Replicas that the load needs, at least the fewest; inf where no number does."""
    assert engine is not None
    rate, running, tokens = able(asked, engine)
    found = float(wanted.scaling.min_replicas or 1)
    for amount, each in (
        (asked.rate, rate),
        (asked.concurrency, running),
        (asked.tokens_per_second, tokens),
    ):
        if amount is not None:
            found = max(found, math.ceil(amount / each * (1 - 1e-9)) if each > 0 else math.inf)
    bounded = asked.time_to_first_token or asked.time_per_output_token
    return found if rate > 0 or not bounded else math.inf


def output(asked: Demand, engine: queueing.Engines, replicas: int) -> float:
    """Output tokens per second of all replicas at the planned load."""
    _, _, tokens = able(asked, engine)
    planned = asked.rate
    if planned is None and asked.tokens_per_second and not asked.concurrency:
        planned = asked.tokens_per_second / asked.output.mean
    most = replicas * tokens
    return most if planned is None else min(most, planned * asked.output.mean)


def at_share(asked: Demand, engine: queueing.Engines, replicas: int) -> capacity.ReplicaPerformance:
    """What one replica does at its share of the load."""
    if asked.concurrency is not None:
        return capacity.closed(engine, asked, np.array([max(1.0, asked.concurrency / replicas)]))
    bounds = (asked.time_to_first_token, asked.time_per_output_token)
    if not any((asked.rate, asked.tokens_per_second, *bounds)):
        return capacity.closed(engine, asked, np.ones(1))  # a request alone
    planned = asked.rate
    if planned is None and asked.tokens_per_second:
        planned = asked.tokens_per_second / asked.output.mean
    rate = able(asked, engine)[0] if planned is None else planned / replicas
    return capacity.served(engine, asked, np.array([rate]))


def paid(row: Accelerator, replicas: int) -> int:
    """One accelerator a replica; whole nodes where they are bought so."""
    node = (row.count_per_node or 1) if row.price_per_node else 1
    return -(-replicas // node) * node


def room(
    wanted: TurboDeploymentSpec, row: Accelerator, supply: Mapping[str, Supply] | None, kind: CapacityType
) -> list[int]:
    """What bounds the replicas: of all, of stock, of quota."""
    bounds = [1000]
    if wanted.accelerators and wanted.accelerators.max_total is not None:
        bounds.append(wanted.accelerators.max_total)
    if supply is None:
        return bounds
    mine = supply.get(row.name, Supply())
    waited = mine.unavailable_until is not None and mine.unavailable_until > NOW
    if row.provisioning == Provisioning.FIXED or waited:
        bounds.append(sum(node.free for node in mine.nodes if kind in node.capacity_types))
    elif row.max_count is not None:
        bounds.append(row.max_count)
    return bounds if mine.quota is None else [*bounds, mine.quota]


def planned(
    wanted: TurboDeploymentSpec,
    model: ModelShape,
    there: Mapping[str, Accelerator],
    supply: Mapping[str, Supply] | None = None,
    **more: Any,
) -> Plan:
    """The planner's answer to the same question."""
    return plan(wanted, model, there, supply, now=NOW, **more)


def cost_of(made: Plan) -> Decimal | float:
    """Of a plan to compare: infinite where there is none."""
    if made.choice is None:
        return math.inf
    return made.choice.predicted.cost_per_hour or Decimal(0)
