"""An answer as plain data for `-o json` and `-o yaml`. Pure.

Names are camelCase. Bytes are whole numbers, times seconds, money a string as everywhere in the API.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from turbo_operator.cli import serving
from turbo_operator.cli.formatting import signed
from turbo_operator.cli.plan_query import Answer, Change
from turbo_operator.plan import Choice, Plan, Predicted, Rejected
from turbo_operator.planner import money


def as_document(answer: Answer) -> dict[str, Any]:
    """One TurboDeployment's plan; `whatIf` holds those of changes, where any was asked for."""
    document = {
        "name": answer.question.td.metadata.name,
        "model": answer.question.model,
        **_plan(answer.plan),
        "nearest": answer.plan.nearest and _rejected(answer.plan.nearest),
        "rejected": [_rejected(row) for row in answer.plan.rejected],
    }
    if serving.is_apart(answer.question.td):
        document |= serving.as_document(answer.question.td)
    if answer.training:
        choice = answer.training.choice
        document["training"] = {
            "accelerator": choice and choice.accelerator.name,
            "costPerHour": choice and _dollars(choice.predicted.cost_per_hour),
            "message": answer.training.detail,
        }
    if answer.changes:
        document["whatIf"] = [_change(change) for change in answer.changes]
    return document


def _plan(plan: Plan) -> dict[str, Any]:
    return {
        "feasible": plan.choice is not None,
        "replicas": plan.replicas,
        "reason": str(plan.reason),
        "message": plan.detail,
        "choice": plan.choice and _choice(plan.choice),
    }


def _change(change: Change) -> dict[str, Any]:
    return {
        "change": change.asked,
        **_plan(change.plan),
        "differencePerHour": None if change.difference is None else signed(change.difference),
        "notes": list(change.notes),
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
        "costPerHour": _dollars(predicted.cost_per_hour),
        "costPerMillionTokens": _dollars(predicted.cost_per_million_tokens),
        "provenance": str(predicted.provenance),
    }


def _dollars(amount: Decimal | None) -> str | None:
    return None if amount is None else money(amount)
