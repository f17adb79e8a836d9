"""The OpenAI endpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from turbo_runtime.capture.recorder import HEADER as CAPTURE_HEADER
from turbo_runtime.capture.recorder import CapturedPrompt
from turbo_runtime.messages import DEFAULT_DRAFT, DraftStats
from turbo_runtime.protocol import ChatRequest, CompletionRequest, parse_chat, parse_completion
from turbo_runtime.protocol.errors import ApiError, cut, invalid, unavailable
from turbo_runtime.server.bodies import LARGE_BODY_BYTES, parse_json_object, read_body
from turbo_runtime.server.connections import run_until_disconnect
from turbo_runtime.server.preprocessing import (
    PreparedRequest,
    min_prompt_tokens,
    prepare_chat,
    prepare_completion,
)
from turbo_runtime.server.responses.reply import ChatReply, CompletionReply
from turbo_runtime.server.responses.streaming import EventStream, WholeReply
from turbo_runtime.server.served_model import ServedModel
from turbo_runtime.server.service import Service
from turbo_runtime.server.thread_offload import IsWanted

DRAFT_HEADER = "X-Turbo-Draft"

ParsedRequest = TypeVar("ParsedRequest", ChatRequest, CompletionRequest)


def build_api_router(service: Service) -> APIRouter:
    """Return `/v1/chat/completions`, `/v1/completions` and `/v1/models`."""
    router = APIRouter(prefix="/v1")
    card = {"id": service.name, "object": "model", "created": int(time.time()), "owned_by": "turbo"}

    @router.post("/chat/completions")
    async def chat(request: Request) -> Response:
        return await _generate(service, request, parse_chat, prepare_chat, ChatReply)

    @router.post("/completions")
    async def completions(request: Request) -> Response:
        return await _generate(service, request, parse_completion, prepare_completion, CompletionReply)

    @router.get("/models/")  # a client's base URL may end in a slash too many
    @router.get("/models")
    async def models(request: Request) -> Response:
        service.authenticate(request.headers.get("authorization"))
        return JSONResponse({"object": "list", "data": [card]})

    @router.get("/models/{name:path}")
    async def model(request: Request, name: str) -> Response:
        service.authenticate(request.headers.get("authorization"))
        _check_model(service, name)
        return JSONResponse(card)

    return router


async def _generate(
    service: Service,
    http: Request,
    parse: Callable[[Mapping[str, Any]], ParsedRequest],
    prepare: Callable[[ParsedRequest, ServedModel, IsWanted], PreparedRequest],
    reply_class: type[ChatReply] | type[CompletionReply],
) -> Response:
    tenant = service.authenticate(http.headers.get("authorization"))
    body = await read_body(http)
    model = service.require_model()
    if len(body) < LARGE_BODY_BYTES:
        request = parse(parse_json_object(body))
    else:  # other requests' tokens must not wait for it, nor below for a long prompt
        request = await service.preprocessing.run(lambda _: parse(parse_json_object(body)))
    _check_model(service, request.model)
    draft = select_draft(http.headers.getlist(DRAFT_HEADER), service.engine.stats.by_draft)
    num_answers = request.n * (len(request.prompt) if isinstance(request, CompletionRequest) else 1)
    service.require_model()  # the phase may have changed while the body was read
    slot = service.slots.acquire(
        tenant, num_answers, min_prompt_tokens(request, model), "n" if request.n > 1 else "prompt"
    )
    try:
        prepared = await run_until_disconnect(
            http.receive,
            service.preprocessing.run(lambda is_wanted: prepare(request, model, is_wanted)),
            service.cut,
        )
        if prepared is None:
            raise unavailable(service.cut.result() if service.cut.done() else "The client left.")
        prepared = replace(prepared, tenant=tenant, salt=request.cache_salt or "", draft=draft)
        output = service.submit(prepared, model, slot)
    except BaseException:
        service.slots.release(slot, finished=False)
        raise
    if service.capture is not None:
        header = http.headers.get(CAPTURE_HEADER)
        for prompt in prepared.prompts:
            decode = partial(model.tokenizer.decode_exactly, prompt)
            service.capture.offer(CapturedPrompt(tenant, decode), header)
    reply = reply_class(model, output)
    if request.stream:
        return EventStream(reply, request.stream_options, service.postprocessing)
    return WholeReply(reply, service.postprocessing)


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


def _check_model(service: Service, name: str) -> None:
    if name != service.name:
        raise ApiError(
            404,
            f"The model '{cut(name)}' does not exist; this server has '{service.name}'.",
            code="model_not_found",
            param="model",
        )
