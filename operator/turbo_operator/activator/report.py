"""What an activator reports of the requests that pass through it."""

from __future__ import annotations

from dataclasses import dataclass

from turbo_runtime.contract.documents import JsonDocument

LOAD_PATH = "/load"  # `Traffic` as JSON; with ?wait=SECONDS once a request is held, or after that time
READY_PATH = "/ready"  # 503 while its pod leaves
ROUTER_PATH = "/router"  # whether the router beside it is alive
MAX_WAIT_SECONDS = 60.0  # of whoever asks for the load
METRICS_PATH = "/metrics"
ADMIN_PORT, ADMIN_PORT_NAME = 29001, "activator"


@dataclass(frozen=True, slots=True)
class Traffic(JsonDocument):
    """Requests for inference, health checks left out."""

    waiting: int  # held, since no replica answers
    running: int  # sent to the router, and not answered in full yet
    idle_seconds: (
        float  # since the last one that was not refused ended, 0 while one is under way; else the start
    )
    held_seconds: float | None = None  # since the last time that one was held; none has been
