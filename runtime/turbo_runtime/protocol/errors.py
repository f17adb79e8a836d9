"""Refusals and failures in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MOST_ECHOED = 100  # characters of a name that a client sent


def cut(name: str) -> str:
    """What a client sent as a name, short enough to be told back."""
    return name if len(name) <= MOST_ECHOED else name[:MOST_ECHOED] + "..."


class ApiError(Exception):
    """An HTTP error with a sentence for the caller. `param` is the path of the offending field, such as
    `messages[0].role`.
    """

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
        """What the client reads; also sent as the last event of a stream that fails midway."""
        return {
            "error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code},
        }


def invalid(param: str | None, message: str, code: str = "invalid_value") -> ApiError:
    """A 400 for one field of the request."""
    return ApiError(400, message, code=code, param=param)


def unavailable(message: str, retry_after: int = 1) -> ApiError:
    """A 503: the server is loading, draining or lost its engine."""
    return ApiError(
        503,
        message,
        code="unavailable",
        kind="service_unavailable",
        headers={"Retry-After": str(retry_after)},
    )


def still_loading(model: str) -> ApiError:
    """A 503 before the engine is ready."""
    return unavailable(f"The model '{model}' is still loading.", retry_after=5)


def overloaded(message: str, retry_after: int = 1) -> ApiError:
    """A 429: the queue is full. OpenAI's clients retry it by themselves after `Retry-After` seconds."""
    return ApiError(
        429, message, code="queue_full", kind="rate_limit_error", headers={"Retry-After": str(retry_after)}
    )


def unauthorized(message: str) -> ApiError:
    """A 401: no key, or none that this server knows."""
    return ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def timed_out(seconds: float) -> ApiError:
    """A 408: the answers took too long. The header keeps OpenAI's clients from asking for the same again."""
    return ApiError(
        408,
        f"The answer was not complete after {seconds:g} s, the most that this server gives a request: "
        "ask for fewer tokens.",
        code="request_timeout",
        kind="timeout_error",
        headers={"x-should-retry": "false"},
    )


def failed(message: str) -> ApiError:
    """A 500: the engine could not compute the answer."""
    return ApiError(500, message, code="engine_error", kind="server_error")
