"""The HTTP application: all routes, and every error in OpenAI's shape."""

from __future__ import annotations

import logging

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from turbo_runtime.contract import endpoints
from turbo_runtime.protocol.errors import ApiError, still_loading
from turbo_runtime.server.api import build_api_router
from turbo_runtime.server.openapi import OPENAPI_PATH, build_openapi_document
from turbo_runtime.server.service import Service
from turbo_runtime.version import turbo_version

logger = logging.getLogger(__name__)


def build_app(service: Service) -> FastAPI:
    """Build the ASGI application over one service."""
    # The routes read their bodies themselves, so the document is written from the models that check them.
    app = FastAPI(title="Turbo", openapi_url=None)
    document = build_openapi_document()

    @app.get(OPENAPI_PATH)
    async def openapi() -> JSONResponse:
        return JSONResponse(document)

    routers = (build_api_router(service), build_probe_router(service))
    for router in routers:
        app.include_router(router)
    routes = (route.path for router in routers for route in router.routes if isinstance(route, APIRoute))
    paths = sorted({OPENAPI_PATH, *(path.replace(":path", "").rstrip("/") for path in routes)})

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> JSONResponse:  # noqa: ARG001
        return _error_response(error)

    @app.exception_handler(HTTPException)
    async def routing_error(request: Request, error: HTTPException) -> JSONResponse:
        message = f"{request.method} {request.url.path}: {error.detail}."
        if error.status_code == 404:
            message += f" This server has {', '.join(paths)}."
        code = "method_not_allowed" if error.status_code == 405 else "not_found"
        return _error_response(ApiError(error.status_code, message, code=code, headers=error.headers))

    @app.exception_handler(Exception)
    async def internal_error(request: Request, error: Exception) -> JSONResponse:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        message = "The server failed on this request; its log says why."
        return _error_response(ApiError(500, message, code="internal_error", kind="server_error"))

    return app


def _error_response(error: ApiError) -> JSONResponse:
    return JSONResponse(error.body(), status_code=error.status, headers=error.headers)


def build_probe_router(service: Service) -> APIRouter:
    """Return `/health`, `/ready`, `/load`, `/metrics` and `/version`."""
    router = APIRouter()
    engine = service.engine

    @router.get(endpoints.HEALTH_PATH)
    async def health() -> Response:
        if engine.is_alive:
            return JSONResponse({"status": "alive"})
        return JSONResponse({"status": engine.ended.result()}, status_code=503)

    @router.get(endpoints.READY_PATH)
    async def ready() -> Response:
        status = service.phase.value
        if not engine.is_alive:
            status = engine.ended.result()
        elif engine.watchdog.is_late:
            status = f"the engine has not finished a step for {engine.watchdog.silent_seconds:.0f} s"
        return JSONResponse({"status": status}, status_code=200 if service.is_ready else 503)

    @router.get(endpoints.LOAD_PATH)
    async def load() -> Response:
        current = service.build_load()
        if current is None:
            raise still_loading(service.name)
        return Response(current.to_json(), media_type="application/json")

    @router.get(endpoints.METRICS_PATH)
    async def metrics() -> Response:
        if (load := service.build_load()) is not None:
            service.metrics.set_load(load, engine.watchdog.silent_seconds)
        if (capture := service.capture) is not None:
            service.metrics.update_capture(capture.outcomes, capture.size, capture.problem)
        return Response(service.metrics.render(), media_type=CONTENT_TYPE_LATEST)

    @router.get(endpoints.VERSION_PATH)
    async def version() -> Response:
        model = service.model
        if model is None:
            raise still_loading(service.name)
        info, stats = model.info, engine.stats
        return JSONResponse(
            {
                "version": turbo_version(),
                "model": model.name,
                "digest": info.digest,
                "guarantee": info.guarantee,
                "guarantee_reason": info.guarantee_reason or None,
                "arithmetic": info.arithmetic,
                "device": info.device,
                "dtype": info.dtype,
                "draft_version": stats.draft_version or None,
                "drafts": {draft.name: draft.version or None for draft in stats.by_draft},
                "draft_error": stats.draft_error or None,
                "max_model_len": model.context,
            }
        )

    return router
