"""The JSON body of a request, within bounds."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any, NoReturn

from fastapi import Request

from turbo_runtime.protocol.errors import ApiError, cut, invalid

MAX_BODY_BYTES = 4 * 1024 * 1024
READ_BYTES = 4 * MAX_BODY_BYTES  # who is still sending when the connection closes may not see the reply
LARGE_BODY_BYTES = 256 * 1024  # to be read beside the event loop
BODY_SECONDS = 60.0


async def read_body(request: Request) -> bytes:
    """Raises ApiError: 408 for a body that takes longer than `BODY_SECONDS`, 413 for one of more than
    `MAX_BODY_BYTES`.
    """
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await _body(request)
    except TimeoutError:
        raise ApiError(
            408,
            f"The body did not come within {BODY_SECONDS:g} s.",
            code="request_timeout",
            headers={"Connection": "close"},
        ) from None


def json_object(body: bytes) -> dict[str, Any]:
    """Raises ApiError: 400 for what is no JSON object."""
    try:
        document = json.loads(body, parse_constant=_no_number, parse_float=_finite)
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


async def _body(request: Request) -> bytes:
    body, size = bytearray(), 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= MAX_BODY_BYTES:
            body += chunk
        elif size > READ_BYTES:
            break
    if size > MAX_BODY_BYTES:
        raise ApiError(
            413,
            f"The body is larger than {MAX_BODY_BYTES} bytes: send a shorter prompt.",
            code="request_too_large",
            headers={"Connection": "close"},  # there may be more of the body, which is not read
        )
    return bytes(body)


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_number(text)


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{cut(name)} is no JSON number")
