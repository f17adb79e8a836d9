"""The JSON body of a request, within bounds."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any, NoReturn

from fastapi import Request

from turbo_runtime.protocol.errors import ApiError, cut, invalid

MAX_BODY_BYTES = 4 * 1024 * 1024
READ_BYTES = 4 * MAX_BODY_BYTES  # a client that still sends when the connection closes may miss the reply
LARGE_BODY_BYTES = 256 * 1024  # to be parsed beside the event loop
BODY_SECONDS = 60.0


async def read_body(request: Request) -> bytes:
    """Read the body. Raises ApiError: 408 after `BODY_SECONDS`, 413 beyond `MAX_BODY_BYTES`."""
    body, size = bytearray(), 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                size += len(chunk)
                if size <= MAX_BODY_BYTES:
                    body += chunk
                elif size > READ_BYTES:
                    break
    except TimeoutError:
        message = f"The body did not come within {BODY_SECONDS:g} s."
        raise _closing_error(408, message, "request_timeout") from None
    if size > MAX_BODY_BYTES:
        message = f"The body is larger than {MAX_BODY_BYTES} bytes: send a shorter prompt."
        raise _closing_error(413, message, "request_too_large")
    return bytes(body)


def _closing_error(status: int, message: str, code: str) -> ApiError:
    """The connection may hold more of the body, which nobody reads."""
    return ApiError(status, message, code=code, headers={"Connection": "close"})


def parse_json_object(body: bytes) -> dict[str, Any]:
    """Parse a body. Raises ApiError (400) unless it is a JSON object."""
    try:
        document = json.loads(body, parse_constant=_reject_number, parse_float=_parse_finite)
    except (ValueError, RecursionError) as error:
        raise invalid(None, f"The body is no JSON: {error}.", "invalid_json") from error
    if b"\\ud" in body.lower():  # perhaps half of a surrogate pair, which is no character and has no bytes
        try:
            json.dumps(document, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise invalid(None, "The body holds half of a surrogate pair.", "invalid_json") from error
    if not isinstance(document, dict):
        raise invalid(None, f"The body must be a JSON object, not {type(document).__name__}.", "invalid_json")
    return document


def _parse_finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _reject_number(text)


def _reject_number(name: str) -> NoReturn:
    raise ValueError(f"{cut(name)} is no JSON number")
