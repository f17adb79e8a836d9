"""Requests that schemathesis makes of the server's own OpenAPI document, such as it allows and others."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeAlias

import httpx
import schemathesis.openapi
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode

from crowd.outcomes import SERVED_NAME

AnyCase: TypeAlias = "Case[Any]"
PATIENCE_SECONDS = 120.0
TOGETHER = 8
_SAID = {
    "type": "object",
    "properties": {"role": {"const": "user"}, "content": {"type": "string"}},
    "required": ["role", "content"],
    "additionalProperties": False,
}


def generated(url: str, each: int) -> Counter[str]:
    """Operations and statuses of `each` requests of both kinds to every operation; silent ones count as
    `silent`.
    """
    document = httpx.get(f"{url}/openapi.json", timeout=PATIENCE_SECONDS).json()
    _narrow(document["components"]["schemas"])
    schema: Any = schemathesis.openapi.from_dict(document)
    cases: list[AnyCase] = []
    for found in schema.get_all_operations():
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            _collect(found.ok(), mode, each, cases)
    with ThreadPoolExecutor(TOGETHER) as clients:
        return Counter(clients.map(lambda case: _status(case, url), cases))


def _narrow(schemas: dict[str, Any]) -> None:
    """What is drawn at random seldom gets as far as the engine: it names another model, and messages break
    rules that no schema tells. So the model is named, and half of the chats are what users say.
    """
    for schema in (schemas["ChatRequest"], schemas["CompletionRequest"]):
        schema["properties"]["model"] = {"const": SERVED_NAME}
    fields = schemas["ChatRequest"]["properties"]
    fields["messages"] = {"anyOf": [fields["messages"], {"type": "array", "items": _SAID, "minItems": 1}]}


def _collect(operation: Any, mode: GenerationMode, each: int, cases: list[AnyCase]) -> None:
    @settings(
        max_examples=each,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def collect(case: AnyCase) -> None:
        cases.append(case)

    with suppress(Unsatisfiable):  # what takes nothing cannot be asked wrongly
        collect()


def _status(case: AnyCase, url: str) -> str:
    import requests  # what schemathesis sends with

    try:
        reply = case.call(base_url=url, timeout=PATIENCE_SECONDS)
        return f"{case.method} {case.path} {reply.status_code}"
    except requests.Timeout:
        return "silent"
    except requests.RequestException:
        return "closed"
