"""Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

MAX_NAME_LENGTH = 100  # characters of a name that a client sent

# Type and code of most errors with a status
_KINDS = {
    401: ("invalid_request_error", "invalid_api_key"),
    408: ("timeout_error", "request_timeout"),
    429: ("rate_limit_error", "queue_full"),
    500: ("server_error", "engine_error"),
    503: ("service_unavailable", "unavailable"),
}


def cut(name: str) -> str:
    """Shorten a name that a client sent, for an error message."""
    return name if len(name) <= MAX_NAME_LENGTH else name[:MAX_NAME_LENGTH] + "..."


@dataclass(eq=False)
class ApiError(Exception):
    """HTTP error with a sentence for the caller; `param` is a field's path, such as `messages[0].role`."""

    status: int
    message: str
    _: KW_ONLY
    code: str | None = None
    param: str | None = None
    kind: str | None = None
    headers: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        super().__init__(self.message)
        kind, code = _KINDS.get(self.status, ("invalid_request_error", None))
        self.kind, self.code = self.kind or kind, self.code or code

    def body(self) -> dict[str, Any]:
        """Return what the client reads, also as the last event of a stream that fails midway."""
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return {"error": error}


def invalid(param: str | None, message: str, code: str = "invalid_value") -> ApiError:
    """Return a 400 for one field of the request."""
    return ApiError(400, message, code=code, param=param)


def unavailable(message: str, retry_after: int = 1) -> ApiError:
    """Return a 503: the server is loading, draining or lost its engine."""
    return ApiError(503, message, headers={"Retry-After": str(retry_after)})
