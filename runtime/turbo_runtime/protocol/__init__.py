"""What a client may send: the fields of both endpoints, their types and ranges."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from turbo_runtime.protocol.errors import ApiError, cut, invalid
from turbo_runtime.protocol.requests import ChatRequest, CompletionRequest
from turbo_runtime.protocol.sampling import Sampling
from turbo_runtime.protocol.unsupported import CHAT, COMPLETION, Unsupported, drop_harmless

__all__ = ["UNSUPPORTED", "ChatRequest", "CompletionRequest", "parse"]

Request = TypeVar("Request", bound=Sampling)
UNSUPPORTED: Mapping[type[Sampling], Mapping[str, Unsupported]] = {
    ChatRequest: CHAT,
    CompletionRequest: COMPLETION,
}


def parse(model: type[Request], body: Mapping[str, Any]) -> Request:
    """Parse the body of a request. Raises ApiError (400) that names the field."""
    fields = drop_harmless(body, UNSUPPORTED[model], model.model_fields)
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise _to_api_error(error, fields) from error


def _to_api_error(error: ValidationError, body: Mapping[str, Any]) -> ApiError:
    """Report the first problem as one sentence: a client can fix one at a time."""
    problem = error.errors(include_url=False)[0]
    kind = problem["type"]
    param = _format_path(problem["loc"], body, is_missing=kind == "missing")
    if kind == "missing":
        return invalid(param, f"'{param}' is missing.", "missing_required_parameter")
    if kind == "extra_forbidden":
        message = f"'{param}' is not supported by this server: leave it out."
        return invalid(param, message, "unsupported_parameter")
    reason = problem["msg"].removeprefix("Value error, ")
    code = "invalid_type" if kind.endswith("_type") else "invalid_value"
    return invalid(param, f"Invalid '{param}': {reason[0].lower()}{reason[1:]}.", code)


def _format_path(location: tuple[int | str, ...], body: Any, *, is_missing: bool) -> str:
    """Leave out what the client did not send: pydantic also names which type of a union it tried."""
    path = ""
    for step in location:
        if step in body if isinstance(body, dict) else isinstance(body, list) and isinstance(step, int):
            body = body[step]
        elif not (is_missing and step == location[-1]):
            continue
        path += f"[{step}]" if isinstance(step, int) else f".{cut(step)}"
    return path.removeprefix(".")
