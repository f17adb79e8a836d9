"""The OpenAI endpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from turbo_runtime.capture.recorder import HEADER as CAPTURE_HEADER
from turbo_runtime.capture.recorder import CapturedPrompt
from turbo_runtime.protocol import ChatRequest, CompletionRequest, parse_chat, parse_completion
from turbo_runtime.protocol.errors import ApiError, cut, unavailable
from turbo_runtime.server.bodies import LARGE_BODY_BYTES, json_object, read_body
from turbo_runtime.server.disconnect import unless_client_leaves
from turbo_runtime.server.draft_selection import DRAFT_HEADER, chosen_draft
from turbo_runtime.server.preprocessing import PreparedRequest, chat_job, completion_job, least_tokens
from turbo_runtime.server.responses.openai import Reply
from turbo_runtime.server.responses.serializers import ChatShape, CompletionShape
from turbo_runtime.server.responses.streaming import EventStream, WholeReply
from turbo_runtime.server.served_model import ServedModel
from turbo_runtime.server.service import Service
from turbo_runtime.server.thread_offload import Wanted

Checked = TypeVar("Checked", ChatRequest, CompletionRequest)


def api_routes(service: Service) -> APIRouter:
    """`/v1/chat/completions`, `/v1/completions` and `/v1/models`."""
    router = APIRouter(prefix="/v1")
    created = int(time.time())

    @router.post("/chat/completions")
    async def chat(request: Request) -> Response:
        return await _answer(service, request, parse_chat, chat_job, ChatShape)

    @router.post("/completions")
    async def completions(request: Request) -> Response:
        return await _answer(service, request, parse_completion, completion_job, CompletionShape)

    @router.get("/models/")  # a client's base URL may end in a slash too many
    @router.get("/models")
    async def models(request: Request) -> Response:
        service.tenant(request.headers.get("authorization"))
        return JSONResponse({"object": "list", "data": [_card(service, created)]})

    @router.get("/models/{name:path}")
    async def model(request: Request, name: str) -> Response:
        service.tenant(request.headers.get("authorization"))
        _check_name(service, name)
        return JSONResponse(_card(service, created))

    return router


async def _answer(
    service: Service,
    http: Request,
    parse: Callable[[Mapping[str, Any]], Checked],
    job_of: Callable[[Checked, ServedModel, Wanted], PreparedRequest],
    shape: type[ChatShape] | type[CompletionShape],
) -> Response:
    tenant = service.tenant(http.headers.get("authorization"))
    body = await read_body(http)
    model = service.open_model()
    if len(body) < LARGE_BODY_BYTES:
        request = parse(json_object(body))
    else:  # other requests' tokens must not wait for it, nor below for a long prompt
        request = await service.preparing.run(lambda _: parse(json_object(body)))
    _check_name(service, request.model)
    draft = chosen_draft(http.headers.getlist(DRAFT_HEADER), service.engine.stats.by_draft)
    choices = request.n * (len(request.prompt) if isinstance(request, CompletionRequest) else 1)
    service.open_model()  # the phase may have changed since
    place = service.places.take(
        tenant, choices, least_tokens(request, model), "n" if request.n > 1 else "prompt"
    )
    try:
        job = await unless_client_leaves(
            http.receive,
            service.preparing.run(lambda wanted: job_of(request, model, wanted)),
            service.cut,
        )
        if job is None:
            raise unavailable(service.cut.result() if service.cut.done() else "The client left.")
        job = replace(job, tenant=tenant, salt=request.cache_salt or "", draft=draft)
        answers = service.answers(job, model, place)
    except BaseException:
        place.leave(answered=False)
        raise
    if service.capture is not None:
        told = http.headers.get(CAPTURE_HEADER)
        for prompt in job.prompts:
            service.capture.offer(CapturedPrompt(tenant, partial(model.tokenizer.written, prompt)), told)
    reply = Reply(shape(job, model.tokenizer.bytes_of), model, answers)
    if request.stream:
        return EventStream(reply, request.stream_options, service.writing)
    return WholeReply(reply, service.writing)


def _check_name(service: Service, name: str) -> None:
    if name != service.name:
        raise ApiError(
            404,
            f"The model '{cut(name)}' does not exist; this server has '{service.name}'.",
            code="model_not_found",
            param="model",
        )


def _card(service: Service, created: int) -> dict[str, Any]:
    return {"id": service.name, "object": "model", "created": created, "owned_by": "turbo"}
