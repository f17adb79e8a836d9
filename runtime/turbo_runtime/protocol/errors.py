"""Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MAX_NAME_LENGTH = 100  # characters of a name that a client sent


def cut(name: str) -> str:
    """Shorten a name that a client sent, for an error message."""
    return name if len(name) <= MAX_NAME_LENGTH else name[:MAX_NAME_LENGTH] + "..."


class ApiError(Exception):
    """HTTP error with a sentence for the caller; `param` is a field's path, such as `messages[0].role`."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        kind: str = "invalid_request_error",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.kind = kind
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """Return what the client reads, also as the last event of a stream that fails midway."""
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return {"error": error}


def invalid(param: str | None, message: str, code: str = "invalid_value") -> ApiError:
    """Return a 400 for one field of the request."""
    return ApiError(400, message, code=code, param=param)


def unavailable(message: str, retry_after: int = 1) -> ApiError:
    """Return a 503: the server is loading, draining or lost its engine."""
    headers = {"Retry-After": str(retry_after)}
    return ApiError(503, message, code="unavailable", kind="service_unavailable", headers=headers)


def still_loading(model: str) -> ApiError:
    """Return a 503 before the engine is ready."""
    return unavailable(f"The model '{model}' is still loading.", retry_after=5)


def overloaded(message: str, retry_after: int = 1) -> ApiError:
    """Return a 429: the queue is full. OpenAI's clients retry after `Retry-After` seconds."""
    headers = {"Retry-After": str(retry_after)}
    return ApiError(429, message, code="queue_full", kind="rate_limit_error", headers=headers)


def unauthorized(message: str) -> ApiError:
    """Return a 401: no key, or none that this server knows."""
    return ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def timed_out(seconds: float) -> ApiError:
    """Return a 408: the answers took too long. The header keeps OpenAI's clients from retrying."""
    return ApiError(
        408,
        f"The answer was not complete after {seconds:g} s, the most that this server gives a request: "
        "ask for fewer tokens.",
        code="request_timeout",
        kind="timeout_error",
        headers={"x-should-retry": "false"},
    )


def failed(message: str) -> ApiError:
    """Return a 500: the engine could not compute the answer."""
    return ApiError(500, message, code="engine_error", kind="server_error")
