"""An answer as plain data for `-o json` and `-o yaml`, and the words that tables and plots share. Pure.

Names of the data are camelCase. Bytes are whole numbers, times seconds, money a string as in the API.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from turbo_operator.api import (
    CapacityType,
    ConditionType,
    EngineName,
    PlanStatus,
    RolloutReason,
    TurboDeployment,
)
from turbo_operator.api.conditions import ConditionState, sentence
from turbo_operator.cli.plan_query import Answer
from turbo_operator.drafts.training import chosen
from turbo_operator.plan import Choice, EvaluatedCandidate, Plan, Predicted, Rejected
from turbo_operator.planner import money
from turbo_operator.planner.explanation.messages import time

UNKNOWN = "-"
_USUAL = {EngineName.TURBO, CapacityType.ON_DEMAND}


def as_document(answer: Answer) -> dict[str, Any]:
    """One TurboDeployment's plan; `whatIf` holds those of changes, where any was asked for."""
    td, plan, trainer = answer.question.td, answer.plan, answer.trainer
    document = {
        "name": td.metadata.name,
        "model": answer.question.model,
        **_plan(plan),
        "nearest": plan.nearest and _rejected(plan.nearest),
        "rejected": [_rejected(row) for row in plan.rejected],
    }
    if serves_another(td):
        document |= serving_document(td)
    if trainer:
        choice = trainer.choice
        document["training"] = {
            "accelerator": choice and choice.accelerator.name,
            "costPerHour": choice and _money(choice.predicted.cost_per_hour),
            "message": trained_on(answer),
        }
    if answer.changes:
        document["whatIf"] = [
            {
                "change": change.asked,
                **_plan(change.plan),
                "differencePerHour": None if change.difference is None else signed(change.difference),
                "notes": list(change.notes),
            }
            for change in answer.changes
        ]
    return document


def _plan(plan: Plan) -> dict[str, Any]:
    return {
        "feasible": plan.choice is not None,
        "replicas": plan.replicas,
        "reason": str(plan.reason),
        "message": plan.detail,
        "choice": plan.choice and _choice(plan.choice),
    }


def _choice(choice: Choice) -> dict[str, Any]:
    return {
        "engine": str(choice.engine),
        "accelerator": choice.accelerator.name,
        "capacityType": str(choice.capacity_type),
        "tensor": choice.tensor,
        "nodes": choice.nodes,
        "acceleratorsPerReplica": choice.accelerators_per_replica,
        "method": choice.method,
        "placement": choice.placement and str(choice.placement),
        "maxDraftTokens": choice.max_draft_tokens,
        "dtype": choice.dtype,
        "maxModelLen": choice.max_model_len,
        "memoryBytes": choice.memory_bytes,
        "kvCacheBytes": choice.kv_cache_bytes,
        "hostMemoryBytes": choice.host_memory_bytes,
        **_predicted(choice.predicted),
        "priceSource": choice.accelerator.price_source,
    }


def _rejected(row: Rejected) -> dict[str, Any]:
    return {
        "engine": str(row.engine),
        "accelerator": row.accelerator,
        "capacityType": str(row.capacity_type),
        "tensor": row.tensor,
        "nodes": row.nodes,
        "method": row.method,
        "replicas": row.replicas,
        **(_predicted(row.predicted) if row.predicted else {}),
        "reason": str(row.reason),
        "message": row.detail,
    }


def _predicted(predicted: Predicted) -> dict[str, Any]:
    return {
        "timeToFirstTokenSeconds": predicted.time_to_first_token,
        "timePerOutputTokenSeconds": predicted.time_per_output_token,
        "tokensPerSecond": predicted.tokens_per_second,
        "capacityTokensPerSecond": predicted.capacity_tokens_per_second,
        "costPerHour": _money(predicted.cost_per_hour),
        "costPerMillionTokens": _money(predicted.cost_per_million_tokens),
        "provenance": str(predicted.provenance),
    }


def _money(amount: Decimal | None) -> str | None:
    return None if amount is None else money(amount)


def serves_another(td: TurboDeployment) -> bool:
    """Whether the serving plan is not the plan of the spec."""
    plan, serving = td.status.plan, td.status.serving_plan
    return serving is not None and plan is not None and plan.hash != serving.hash


def serving_document(td: TurboDeployment) -> dict[str, Any]:
    """Return both plans of the status as plain data."""
    tried, serving = (
        plan and {name: value for name, value in plan.dump().items() if name != "rejected"}
        for plan in (td.status.plan, td.status.serving_plan)
    )
    return {"tried": tried, "serving": serving, "rollout": td.status.rollout and td.status.rollout.dump()}


def serving_sentences(td: TurboDeployment) -> tuple[str, ...]:
    """Describe both plans with hash, reason and predictions; empty where they are the same."""
    plan, serving, rollout = td.status.plan, td.status.serving_plan, td.status.rollout
    if plan is None or serving is None or not serves_another(td):
        return ()
    stalled = td.status.condition(ConditionType.STALLED)
    state = "waits to take over" if stalled is not None and stalled.status == "True" else "takes over"
    if rollout is not None and rollout.reason == RolloutReason.ROLLED_BACK:
        state = f"was rolled back ({sentence(rollout.message) or 'its pods did not become ready.'})"
    return (
        f"Plan {plan.hash} {state}: {_described(plan)}",
        f"Plan {serving.hash} serves: {_described(serving)}",
    )


def _described(plan: PlanStatus) -> str:
    what = f"{plan.accelerator or 'an unknown accelerator'} with {plan.method or 'unknown'} drafts"
    figures = []
    if predicted := plan.predicted:
        named = {
            "per output token": predicted.time_per_output_token,
            "to the first": predicted.time_to_first_token,
            "$/h": predicted.cost_per_hour,
        }
        figures = [f"{value} {name}" for name, value in named.items() if value is not None]
    return f"{what}, as {plan.reason or 'unknown'}; predicted {', '.join(figures) or 'nothing'}."


def candidate(row: Choice | Rejected | EvaluatedCandidate) -> str:
    """Name a replica's accelerators and what is unusual, like `h100 x8, VLLM, Spot` or `h100 2 x 8`."""
    name = row.accelerator if isinstance(row.accelerator, str) else row.accelerator.name
    if row.nodes > 1:
        name += f" {row.nodes} x {row.tensor}"
    elif row.tensor > 1:
        name += f" x{row.tensor}"
    return ", ".join([name, *(str(word) for word in (row.engine, row.capacity_type) if word not in _USUAL)])


def trained_on(answer: Answer) -> str:
    """Say what a draft is trained on and what that costs at most, or why it is not; empty without one."""
    spec = answer.question.td.spec.speculation.training
    if spec is None or answer.trainer is None:
        return ""
    choice = chosen(spec, answer.trainer)
    if isinstance(choice, ConditionState):
        return choice.message
    price, limit = choice.predicted.cost_per_hour, spec.max_cost
    cost = "" if price is None else f" for {money(price)} $/h"
    bound = "" if limit is None or not price else f", for {money(limit)} $ or {limit / price:.3g} h at most"
    return f"A draft is trained on {choice.accelerator.name}{cost}{bound}."


def duration(seconds: float | None) -> str:
    """Format seconds to three digits, like 23.4 ms or 1.25 s."""
    return UNKNOWN if seconds is None else time(seconds)


def signed(amount: Decimal) -> str:
    """Format a difference of money with its sign, like +1.25, -0.40 or 0.00."""
    sign = "+" if amount > 0 else "-" if amount < 0 else ""
    return f"{sign}{money(abs(amount))}"
