"""The JSON body of a request, within bounds."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from fastapi import Request

from turbo_runtime.server.errors import ApiError, invalid

MAX_BODY_BYTES = 4 * 1024 * 1024


async def json_object(request: Request) -> dict[str, Any]:
    """Raises ApiError: 413 for more than `MAX_BODY_BYTES`, 400 for what is no JSON object."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise ApiError(
                413,
                f"The body is larger than {MAX_BODY_BYTES} bytes: send a shorter prompt.",
                code="request_too_large",
                headers={"Connection": "close"},  # the rest of the body is not read
            )
    try:
        document = json.loads(body, parse_constant=_no_number)
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


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
