"""What an activator answers by itself when a request cannot be passed on."""

from __future__ import annotations

from http import HTTPStatus

from aiohttp import web

RETRY_AFTER_SECONDS = 10


class RequestError(Exception):
    """A request that is answered here, with a status and a sentence."""

    def __init__(self, status: HTTPStatus, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message

    def response(self) -> web.Response:
        """Return the error as the OpenAI API writes one."""
        is_ours = self.status >= HTTPStatus.INTERNAL_SERVER_ERROR
        kind = "server_error" if is_ours else "invalid_request_error"
        error = {"message": self.message, "type": kind, "param": None, "code": self.code}
        retry = {"Retry-After": str(RETRY_AFTER_SECONDS)} if is_ours else {}
        return web.json_response({"error": error}, status=self.status, headers=retry)


def too_large(max_bytes: int) -> RequestError:
    """Refuse a body."""
    message = f"The request is larger than {max_bytes} bytes."
    return RequestError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "requesttoo_large", message)
