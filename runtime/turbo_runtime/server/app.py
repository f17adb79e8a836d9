"""The HTTP application: all routes, and every error in OpenAI's shape."""

from __future__ import annotations

import logging

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from turbo_runtime.protocol.errors import ApiError
from turbo_runtime.server.api import api_routes
from turbo_runtime.server.openapi import OPENAPI_PATH, openapi_document
from turbo_runtime.server.probes import probe_routes
from turbo_runtime.server.service import Service

logger = logging.getLogger(__name__)


def build_app(service: Service) -> FastAPI:
    """The ASGI application over one service."""
    # The routes read their bodies themselves, so the document is written from the models that check them.
    app = FastAPI(title="Turbo", openapi_url=None)
    document = openapi_document()

    @app.get(OPENAPI_PATH)
    async def openapi() -> JSONResponse:
        return JSONResponse(document)

    routers = (api_routes(service), probe_routes(service))
    for router in routers:
        app.include_router(router)
    listed = (route.path for router in routers for route in router.routes if isinstance(route, APIRoute))
    paths = sorted({OPENAPI_PATH, *(path.replace(":path", "").rstrip("/") for path in listed)})

    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> JSONResponse:  # noqa: ARG001
        return _reply(error)

    @app.exception_handler(HTTPException)
    async def not_routed(request: Request, error: HTTPException) -> JSONResponse:
        message = f"{request.method} {request.url.path}: {error.detail}."
        if error.status_code == 404:
            message += f" This server has {', '.join(paths)}."
        code = "method_not_allowed" if error.status_code == 405 else "not_found"
        return _reply(ApiError(error.status_code, message, code=code, headers=error.headers))

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> JSONResponse:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        message = "The server failed on this request; its log says why."
        return _reply(ApiError(500, message, code="internal_error", kind="server_error"))

    return app


def _reply(error: ApiError) -> JSONResponse:
    return JSONResponse(error.body(), status_code=error.status, headers=error.headers)
