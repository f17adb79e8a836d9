"""From a JSON object to a checked request, or to a refusal that names the field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from turbo_runtime.protocol.chat import ChatRequest
from turbo_runtime.protocol.completion import CompletionRequest
from turbo_runtime.protocol.errors import ApiError, cut, invalid
from turbo_runtime.protocol.sampling import Sampling
from turbo_runtime.protocol.unsupported import CHAT, COMPLETION, Unsupported, keep_supported

Parsed = TypeVar("Parsed", bound=Sampling)


def parse_chat(body: Mapping[str, Any]) -> ChatRequest:
    """Raises ApiError (400) that names the field."""
    return _parse(ChatRequest, CHAT, body)


def parse_completion(body: Mapping[str, Any]) -> CompletionRequest:
    """Raises ApiError (400) that names the field."""
    return _parse(CompletionRequest, COMPLETION, body)


def _parse(kind: type[Parsed], unsupported: Mapping[str, Unsupported], body: Mapping[str, Any]) -> Parsed:
    kept = keep_supported(body, unsupported, kind.model_fields)
    try:
        return kind.model_validate(kept)
    except ValidationError as error:
        raise _first(error, kept) from error


def _first(error: ValidationError, body: Mapping[str, Any]) -> ApiError:
    """The first problem as one sentence: a client can mend one at a time."""
    problem = error.errors(include_url=False)[0]
    param = _path(_sent(problem["loc"], body, missing=problem["type"] == "missing"))
    if problem["type"] == "missing":
        return invalid(param, f"'{param}' is missing.", "missing_required_parameter")
    if problem["type"] == "extra_forbidden":
        return invalid(
            param, f"'{param}' is not supported by this server: leave it out.", "unsupported_parameter"
        )
    reason = problem["msg"].removeprefix("Value error, ")
    code = "invalid_type" if problem["type"].endswith("_type") else "invalid_value"
    return invalid(param, f"Invalid '{param}': {reason[0].lower()}{reason[1:]}.", code)


def _sent(loc: tuple[int | str, ...], body: Any, *, missing: bool) -> list[int | str]:
    """The part of pydantic's location that the client sent: it also names which type of a union it tried."""
    steps: list[int | str] = []
    for step in loc:
        if _holds(body, step):
            body = body[step]
        elif not (missing and step == loc[-1]):
            continue
        steps.append(step)
    return steps


def _holds(body: object, step: int | str) -> bool:
    return step in body if isinstance(body, dict) else isinstance(body, list) and isinstance(step, int)


def _path(loc: list[int | str]) -> str:
    path = ""
    for step in loc:
        path += f"[{step}]" if isinstance(step, int) else f".{cut(step)}" if path else cut(step)
    return path
