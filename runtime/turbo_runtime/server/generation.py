"""One request for generated text: its body, its place in the queue, its answers."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from fastapi import Request

from turbo_runtime.capture.recorder import HEADER as CAPTURE_HEADER
from turbo_runtime.capture.recorder import CapturedPrompt
from turbo_runtime.contract.endpoints import MAX_BODY_BYTES
from turbo_runtime.messages import DEFAULT_DRAFT, DraftStats
from turbo_runtime.protocol import ChatRequest, CompletionRequest, parse
from turbo_runtime.protocol.errors import ApiError, cut, invalid, unavailable
from turbo_runtime.server.connections import run_until_disconnect
from turbo_runtime.server.preprocessing import IsWanted, PreparedRequest, ServedModel, min_prompt_tokens
from turbo_runtime.server.reply import Reply
from turbo_runtime.server.request_output import RequestOutput
from turbo_runtime.server.service import Service

READ_BYTES = 4 * MAX_BODY_BYTES  # a client that still sends when the connection closes may miss the reply
FREE_BYTES = 64 * 1024  # of a body that are always held: a connection buffers as many
LARGE_BODY_BYTES = 256 * 1024  # to be parsed beside the event loop
BODY_SECONDS = 60.0
DRAFT_HEADER = "X-Turbo-Draft"

ParsedRequest = TypeVar("ParsedRequest", ChatRequest, CompletionRequest)


async def generate(
    service: Service,
    http: Request,
    request_class: type[ParsedRequest],
    prepare: Callable[[ParsedRequest, ServedModel, IsWanted], PreparedRequest],
    reply_class: type[Reply],
) -> Reply:
    """Return the response to a request, or raise ApiError."""
    tenant = service.authenticate(http.headers.get("authorization"))
    with service.bodies.account(tenant) as take:
        return await _generate(service, http, request_class, prepare, reply_class, tenant, take)


async def _generate(
    service: Service,
    http: Request,
    request_class: type[ParsedRequest],
    prepare: Callable[[ParsedRequest, ServedModel, IsWanted], PreparedRequest],
    reply_class: type[Reply],
    tenant: str,
    take: Callable[[int], None],
) -> Reply:
    body = await read_body(http, take)
    model = service.require_model()
    if len(body) < LARGE_BODY_BYTES:
        request = parse(request_class, parse_json_object(body))
    else:  # other requests' tokens must not wait for it, nor below for a long prompt
        request = await service.preprocessing.run(lambda _: parse(request_class, parse_json_object(body)))
    lora_id = service.find_adapter(request.model)
    model = replace(model, name=request.model)  # under which it is answered
    draft = select_draft(http.headers.getlist(DRAFT_HEADER), service.engine.stats.by_draft)
    num_answers = request.n * (len(request.prompt) if isinstance(request, CompletionRequest) else 1)
    service.require_model()  # the phase may have changed while the body was read
    slot = service.slots.acquire(
        tenant, num_answers, min_prompt_tokens(request, model), "n" if request.n > 1 else "prompt"
    )
    try:
        work = service.preprocessing.run(lambda is_wanted: prepare(request, model, is_wanted))
        prepared = await run_until_disconnect(http.receive, work, service.cut)
        if prepared is None:
            raise unavailable(service.cut.result() if service.cut.done() else "The client left.")
        prepared = replace(
            prepared, tenant=tenant, salt=request.cache_salt or "", draft=draft, lora_id=lora_id
        )
        service.require_engine()  # it may have ended while the prompt was tokenized
        service.slots.resize(slot, prepared.num_prompt_tokens * prepared.n)
        on_exit = partial(service.slots.release, slot, finished=True)
        output = RequestOutput(prepared, model, service, on_exit)
    except BaseException:
        service.slots.release(slot, finished=False)
        raise
    if service.capture is not None and not lora_id:  # drafts learn what the model itself answers
        header = http.headers.get(CAPTURE_HEADER)
        for prompt in prepared.prompts:
            decode = partial(model.tokenizer.decode_exactly, prompt)
            service.capture.offer(CapturedPrompt(tenant, decode, bool(prepared.salt)), header)
    options = request.stream_options if request.stream else None
    return reply_class(model, output, service.postprocessing, options)


def select_draft(header_values: Sequence[str], drafts: Iterable[DraftStats]) -> str:
    """Return the draft that a request's headers name. Raises ApiError (400) for one that is not in use."""
    name = ", ".join(header_values) if header_values else DEFAULT_DRAFT  # as HTTP joins repeated headers
    names = [draft.name for draft in drafts]
    if name in names:
        return name
    known = ", ".join(f"'{known}'" for known in names)
    raise invalid(
        DRAFT_HEADER,
        f"There is no draft '{cut(name)}' here: send the header {DRAFT_HEADER} with one of {known}, "
        "or leave it out.",
    )


async def read_body(request: Request, take: Callable[[int], None]) -> bytes:
    """Read the body; `take` the bytes of it that are held beyond `FREE_BYTES`. Raises ApiError: 408 after
    `BODY_SECONDS`, 413 beyond `MAX_BODY_BYTES`, 429 as `take` does.
    """
    body, size = bytearray(), 0
    close = {"Connection": "close"}  # it may hold more of the body, which nobody reads
    refusal: ApiError | None = None
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                size += len(chunk)
                if refusal is None and size <= MAX_BODY_BYTES:
                    try:
                        take(min(len(chunk), max(0, size - FREE_BYTES)))
                        body += chunk
                    except ApiError as error:
                        refusal = error
                else:
                    body.clear()
                    if size > READ_BYTES:
                        break
    except TimeoutError:
        message = f"The body did not come within {BODY_SECONDS:g} s."
        raise ApiError(408, message, kind="invalid_request_error", headers=close) from None
    if size > MAX_BODY_BYTES:
        message = f"The body is larger than {MAX_BODY_BYTES} bytes: send a shorter prompt."
        raise ApiError(413, message, code="request_too_large", headers=close)
    if refusal is not None:
        raise refusal
    return bytes(body)


def parse_json_object(body: bytes) -> dict[str, Any]:
    """Parse a body. Raises ApiError (400) unless it is a JSON object."""
    try:
        document = json.loads(body, parse_constant=_parse_finite, parse_float=_parse_finite)
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
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{cut(text)} is no JSON number")
    return value
