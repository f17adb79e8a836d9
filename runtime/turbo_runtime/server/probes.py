"""What Kubernetes, Prometheus and the operator read."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from turbo_runtime.contract import endpoints
from turbo_runtime.protocol.errors import still_loading
from turbo_runtime.server.service import Service
from turbo_runtime.version import turbo_version


def probe_routes(service: Service) -> APIRouter:
    """`/health`, `/ready`, `/load`, `/metrics` and `/version`."""
    router = APIRouter()

    @router.get(endpoints.HEALTH_PATH)
    async def health() -> Response:
        if service.engine.alive:
            return JSONResponse({"status": "alive"})
        return JSONResponse({"status": service.engine.ended.result()}, status_code=503)

    @router.get(endpoints.READY_PATH)
    async def ready() -> Response:
        engine, reason = service.engine, service.phase.value
        if not engine.alive:
            reason = engine.ended.result()
        elif engine.late:
            reason = f"the engine has not finished a step for {engine.silent_seconds:.0f} s"
        return JSONResponse({"status": reason}, status_code=200 if service.ready else 503)

    @router.get(endpoints.LOAD_PATH)
    async def load() -> Response:
        now = service.load_now()
        if now is None:
            raise still_loading(service.name)
        return Response(now.to_json(), media_type="application/json")

    @router.get(endpoints.METRICS_PATH)
    async def metrics() -> Response:
        now = service.load_now()
        if now is not None:
            service.metrics.observe_load(now)
            service.metrics.observe_heartbeat(service.engine.silent_seconds)
        if (capture := service.capture) is not None:
            service.metrics.follow_capture(capture.outcomes, capture.size, capture.problem)
        return Response(service.metrics.page(), media_type=CONTENT_TYPE_LATEST)

    @router.get(endpoints.VERSION_PATH)
    async def version() -> Response:
        model = service.loaded
        if model is None:
            raise still_loading(service.name)
        facts = model.facts
        return JSONResponse(
            {
                "version": turbo_version(),
                "model": model.name,
                "digest": facts.digest,
                "guarantee": facts.guarantee,
                "law_reason": facts.law_reason or None,
                "arithmetic": facts.arithmetic,
                "device": facts.device,
                "dtype": facts.dtype,
                "draft_version": service.engine.stats.draft_version or None,
                "drafts": {draft.name: draft.version or None for draft in service.engine.stats.by_draft},
                "draft_problem": service.engine.stats.draft_problem or None,
                "max_model_len": model.context,
            }
        )

    return router
