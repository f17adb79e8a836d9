"""The OpenAI endpoints."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from turbo_runtime.server.bodies import json_object
from turbo_runtime.server.delivery import EventStream, WholeReply
from turbo_runtime.server.errors import ApiError, cut
from turbo_runtime.server.jobs import Job, chat_job, completion_job
from turbo_runtime.server.model import ServedModel
from turbo_runtime.server.replies import Reply
from turbo_runtime.server.requests import ChatRequest, CompletionRequest, parse_chat, parse_completion
from turbo_runtime.server.service import Service
from turbo_runtime.server.shapes import ChatShape, CompletionShape

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
    job_of: Callable[[Checked, ServedModel], Job],
    shape: type[ChatShape] | type[CompletionShape],
) -> Response:
    tenant = service.tenant(http.headers.get("authorization"))
    body = await json_object(http)
    model = service.open_model()
    request = parse(body)
    _check_name(service, request.model)
    # A long prompt takes a while to tokenise, and other requests' tokens must not wait for it.
    async with service.tokenising:
        job = await asyncio.to_thread(job_of, request, model)
    job = replace(job, tenant=tenant, salt=request.cache_salt or "")
    reply = Reply(shape(job, model.tokenizer.bytes_of), model, service.answers(job, model))
    return EventStream(reply, request.stream_options) if request.stream else WholeReply(reply)


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
