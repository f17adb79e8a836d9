"""The HTTP application: all routes, every error in OpenAI's shape, and the OpenAPI document."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from turbo_runtime.contract import endpoints
from turbo_runtime.protocol import UNSUPPORTED, ChatRequest, CompletionRequest
from turbo_runtime.protocol.errors import ApiError
from turbo_runtime.server.generation import generate
from turbo_runtime.server.preprocessing import prepare_chat, prepare_completion
from turbo_runtime.server.reply import ChatReply, CompletionReply
from turbo_runtime.server.service import Phase, Service
from turbo_runtime.version import turbo_version

logger = logging.getLogger(__name__)

OPENAPI_PATH = "/openapi.json"

Json = dict[str, Any]
_REFERENCE = "#/components/schemas/"
_ERRORS = {
    "400": "a field is wrong or not supported, or prompt and answer pass the context",
    "401": "there is no API key, or it is not one of this server's",
    "404": "another model",
    "408": "the body or the answer took too long",
    "413": "the body is too large",
    "429": "the queue is full; Retry-After says when to come back",
    "500": "the engine failed on this request",
    "503": "the model is loading, the server is shutting down, or its engine is gone",
}
_STRING = {"type": "string"}
_ERROR_FIELDS = {"message": _STRING, "type": _STRING, "param": {"type": ["string", "null"]}, "code": _STRING}
_GETS = {
    endpoints.HEALTH_PATH: "whether server and engine are alive",
    endpoints.READY_PATH: "whether requests should be sent here",
    endpoints.LOAD_PATH: "what runs and waits",
    endpoints.METRICS_PATH: "Prometheus metrics",
    endpoints.VERSION_PATH: "what is served and what it promises",
    "/v1/models": "the served model and its adapters",
}


def build_app(service: Service) -> FastAPI:
    """Build the ASGI application over one service."""
    # The routes read their bodies themselves, so the document is written from the models that check them.
    app = FastAPI(title="Turbo", openapi_url=None)
    document = build_openapi_document()

    @app.get(OPENAPI_PATH)
    async def openapi() -> JSONResponse:
        return JSONResponse(document)

    _add_api(app, service)
    _add_probes(app, service)
    routes = (route.path for route in app.routes if isinstance(route, APIRoute))
    paths = ", ".join(sorted({path.replace(":path", "").rstrip("/") for path in routes}))

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> JSONResponse:  # noqa: ARG001
        return JSONResponse(error.body(), status_code=error.status, headers=error.headers)

    @app.exception_handler(HTTPException)
    async def routing_error(request: Request, error: HTTPException) -> JSONResponse:
        message = f"{request.method} {request.url.path}: {error.detail}."
        if error.status_code == 404:
            message += f" This server has {paths}."
        code = "method_not_allowed" if error.status_code == 405 else "not_found"
        return await api_error(
            request, ApiError(error.status_code, message, code=code, headers=error.headers)
        )

    @app.exception_handler(Exception)
    async def internal_error(request: Request, error: Exception) -> JSONResponse:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        message = "The server failed on this request; its log says why."
        return await api_error(request, ApiError(500, message, code="internal_error"))

    return app


def _add_api(app: FastAPI, service: Service) -> None:
    own = {"object": "model", "created": int(time.time()), "owned_by": "turbo"}
    cards = [
        {"id": name, **own, **({} if name == service.name else {"parent": service.name})}
        for name in service.names
    ]

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await generate(service, request, ChatRequest, prepare_chat, ChatReply)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await generate(service, request, CompletionRequest, prepare_completion, CompletionReply)

    @app.get("/v1/models/")  # a client's base URL may end in a slash too many
    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        service.authenticate(request.headers.get("authorization"))
        return JSONResponse({"object": "list", "data": cards})

    @app.get("/v1/models/{name:path}")
    async def model(request: Request, name: str) -> Response:
        service.authenticate(request.headers.get("authorization"))
        return JSONResponse(cards[service.find_adapter(name)])


def _add_probes(app: FastAPI, service: Service) -> None:
    engine = service.engine

    @app.get(endpoints.HEALTH_PATH)
    async def health() -> Response:
        if engine.is_alive:
            return JSONResponse({"status": "alive"})
        return JSONResponse({"status": engine.ended.result()}, status_code=503)

    @app.get(endpoints.READY_PATH)
    async def ready() -> Response:
        """Whether a load balancer should send requests here."""
        status, is_ready = service.phase.value, False
        if not engine.is_alive:
            status = engine.ended.result()
        elif engine.watchdog.is_late:
            status = f"the engine has not finished a step for {engine.watchdog.silent_seconds:.0f} s"
        else:
            is_ready = service.phase is Phase.SERVING
        return JSONResponse({"status": status}, status_code=200 if is_ready else 503)

    @app.get(endpoints.LOAD_PATH)
    async def load() -> Response:
        return Response(service.build_load().to_json(), media_type="application/json")

    @app.get(endpoints.METRICS_PATH)
    async def metrics() -> Response:
        if service.model is not None:
            service.metrics.set_load(service.build_load(), engine.watchdog.silent_seconds)
            service.metrics.set_cache(service.model.info.block_size, service.model.info.kv_blocks)
        if (capture := service.capture) is not None:
            service.metrics.set_capture(capture.outcomes, capture.size, capture.problem)
        return Response(service.metrics.render(), media_type=CONTENT_TYPE_LATEST)

    @app.get(endpoints.VERSION_PATH)
    async def version() -> Response:
        model = service.require_loaded()
        info, stats = model.info, engine.stats
        return JSONResponse(
            {
                "version": turbo_version(),
                "model": model.name,
                "adapters": service.names[1:],
                "digest": info.digest,
                "guarantee": info.guarantee,
                "guarantee_reason": info.guarantee_reason or None,
                "arithmetic": info.arithmetic,
                "device": info.device,
                "dtype": info.dtype,
                "threads": asdict(info.threads),
                "tensor_parallel_size": info.tensor_parallel_size,
                "draft_version": stats.draft_version or None,
                "drafts": {draft.name: draft.version or None for draft in stats.by_draft},
                "draft_error": stats.draft_error or None,
                "max_model_len": model.context,
            }
        )


def build_openapi_document() -> Json:
    """Build the document, as OpenAPI 3.1."""
    error = {"type": "object", "required": [*_ERROR_FIELDS], "properties": _ERROR_FIELDS}
    schemas: Json = {"Error": {"type": "object", "required": ["error"], "properties": {"error": error}}}
    for model, unsupported in UNSUPPORTED.items():
        schema = model.model_json_schema(ref_template=_REFERENCE + "{model}")
        schemas |= schema.pop("$defs", {})
        rejected = {  # but for the values that change nothing
            name: {"enum": [*parameter.harmless, None], "description": f"Not supported: {parameter.remedy}."}
            for name, parameter in unsupported.items()
        }
        schemas[model.__name__] = schema | {"properties": schema["properties"] | rejected}
    for schema in schemas.values():  # null means absent
        properties = schema.get("properties", {})
        for name in properties.keys() - schema.get("required", []):
            properties[name] = {"anyOf": [properties[name], {"type": "null"}]}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Turbo", "version": turbo_version()},
        "paths": {
            "/v1/chat/completions": {"post": _post("a chat, through the model's chat template", ChatRequest)},
            "/v1/completions": {"post": _post("a completion of a prompt", CompletionRequest)},
            **{path: {"get": _get(summary)} for path, summary in _GETS.items()},
        },
        "components": {"schemas": schemas, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
    }


def _post(summary: str, model: type) -> Json:
    body = {"application/json": {"schema": {"$ref": _REFERENCE + model.__name__}}}
    error = {"application/json": {"schema": {"$ref": _REFERENCE + "Error"}}}
    content: Json = {"application/json": {}, "text/event-stream": {}}
    success = {"description": "the answer, whole or as a stream of events", "content": content}
    errors = {code: {"description": text, "content": error} for code, text in _ERRORS.items()}
    return {
        "summary": summary,
        "security": [{}, {"key": []}],
        "requestBody": {"required": True, "content": body},
        "responses": {"200": success, **errors},
    }


def _get(summary: str) -> Json:
    descriptions = {"200": summary, "401": _ERRORS["401"], "503": _ERRORS["503"]}
    responses = {code: {"description": text} for code, text in descriptions.items()}
    return {"summary": summary, "responses": responses}
