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

AnyCase: TypeAlias = "Case[Any]"
PATIENCE_SECONDS = 120.0
TOGETHER = 8


def generated(url: str, each: int) -> Counter[str]:
    """The statuses of `each` requests of both kinds to every operation; silent ones count as `silent`."""
    document = httpx.get(f"{url}/openapi.json", timeout=PATIENCE_SECONDS).json()
    schema: Any = schemathesis.openapi.from_dict(document)
    cases: list[AnyCase] = []
    for found in schema.get_all_operations():
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            _collect(found.ok(), mode, each, cases)
    with ThreadPoolExecutor(TOGETHER) as clients:
        return Counter(clients.map(lambda case: _status(case, url), cases))


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
        return str(case.call(base_url=url, timeout=PATIENCE_SECONDS).status_code)
    except requests.Timeout:
        return "silent"
    except requests.RequestException:
        return "closed"
