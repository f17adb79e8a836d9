"""The OpenAI endpoints."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from turbo_runtime.server.bodies import json_object
from turbo_runtime.server.errors import ApiError
from turbo_runtime.server.jobs import Job, chat_job, completion_job
from turbo_runtime.server.model import ServedModel
from turbo_runtime.server.replies import SSE_DONE, ChatShape, CompletionShape, Reply, sse
from turbo_runtime.server.requests import ChatRequest, CompletionRequest, parse_chat, parse_completion
from turbo_runtime.server.service import Service

CLIENT_CLOSED_REQUEST = 499  # nginx's number; nobody is left to read it

Checked = TypeVar("Checked", ChatRequest, CompletionRequest)


def api_routes(service: Service) -> APIRouter:
    """`/v1/chat/completions`, `/v1/completions` and `/v1/models`."""
    router = APIRouter(prefix="/v1")
    created = int(time.time())
    chat_shape, completion_shape = ChatShape(), CompletionShape()

    @router.post("/chat/completions")
    async def chat(request: Request) -> Response:
        return await _answer(service, request, parse_chat, chat_job, chat_shape)

    @router.post("/completions")
    async def completions(request: Request) -> Response:
        return await _answer(service, request, parse_completion, completion_job, completion_shape)

    @router.get("/models/")  # a client's base URL may end in a slash too many
    @router.get("/models")
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [_card(service, created)]})

    @router.get("/models/{name:path}")
    async def model(name: str) -> Response:
        _check_name(service, name)
        return JSONResponse(_card(service, created))

    return router


async def _answer(
    service: Service,
    http: Request,
    parse: Callable[[Mapping[str, Any]], Checked],
    job_of: Callable[[Checked, ServedModel], Job],
    shape: ChatShape | CompletionShape,
) -> Response:
    body = await json_object(http)
    model = service.open_model()
    request = parse(body)
    _check_name(service, request.model)
    # A long prompt takes a while to tokenise, and other requests' tokens must not wait for it.
    async with service.tokenising:
        job = await asyncio.to_thread(job_of, request, model)
    reply = Reply(shape, model, service.answers(job, model))
    headers = {"Connection": "close"} if service.draining else {}  # pooled clients then turn to another pod
    if request.stream:
        return _EventStream(reply, request.stream_options.include_usage, headers)
    with reply.answers:
        whole = await _unless_client_leaves(http, _collect(reply))
    return (
        Response(status_code=CLIENT_CLOSED_REQUEST) if whole is None else JSONResponse(whole, headers=headers)
    )


async def _collect(reply: Reply) -> dict[str, Any]:
    texts, reasons = [""] * reply.answers.choices, [""] * reply.answers.choices
    async for piece in reply.answers.pieces():
        texts[piece.index] += piece.text
        reasons[piece.index] = piece.finish_reason or ""
    return reply.whole(texts, reasons)


async def _events(reply: Reply, include_usage: bool) -> AsyncIterator[str]:
    """The stream's events; an error midway is its last one, since the status line is long gone."""
    started: set[int] = set()
    unfinished = reply.answers.choices
    try:
        async for piece in reply.answers.pieces():
            if piece.index not in started:
                started.add(piece.index)
                for opening in reply.opening(piece.index):
                    yield sse({**opening, "usage": None} if include_usage else opening)
            event = reply.event(piece)
            unfinished -= piece.finish_reason is not None
            if include_usage:
                event["usage"] = None
            elif unfinished == 0:
                event["turbo"] = reply.turbo()
            yield sse(event)
    except ApiError as error:
        yield sse(error.body())
        return
    if include_usage:
        yield sse(reply.closing())
    yield SSE_DONE


class _EventStream(StreamingResponse):
    """Ends with its answers: when the client leaves, the engine is told at once."""

    def __init__(self, reply: Reply, include_usage: bool, headers: Mapping[str, str]) -> None:
        super().__init__(
            _events(reply, include_usage),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-cache", **headers},
        )
        self._answers = reply.answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._answers:
            await super().__call__(scope, receive, send)


async def _unless_client_leaves(
    http: Request, work: Coroutine[Any, Any, dict[str, Any]]
) -> dict[str, Any] | None:
    """The result of `work`, or None when the client closed the connection first; `work` is then cancelled."""
    task = asyncio.create_task(work)
    leaving = asyncio.create_task(_client_left(http))
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for unfinished in (task, leaving):
            unfinished.cancel()
        await asyncio.wait({task, leaving})


async def _client_left(http: Request) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


def _check_name(service: Service, name: str) -> None:
    if name != service.name:
        raise ApiError(
            404,
            f"The model '{name}' does not exist; this server has '{service.name}'.",
            code="model_not_found",
            param="model",
        )


def _card(service: Service, created: int) -> dict[str, Any]:
    return {"id": service.name, "object": "model", "created": created, "owned_by": "turbo"}
