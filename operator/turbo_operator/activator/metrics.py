"""What an activator counts. Names carry base units; labels are few and bounded."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

REQUESTS = Counter(
    "turbo_activator_requests", "Requests that were answered, by status; health checks left out.", ["code"]
)
UNDER_WAY = Gauge(
    "turbo_activator_requests_under_way",
    "Requests by state: waiting for a replica, or running.",
    ["state"],
)
HOLD_SECONDS = Histogram(
    "turbo_activator_hold_seconds",
    "Time for which a request waited until a replica could take it.",
    buckets=(0.25, 0.5, 1, 2.5, 5, 10, 15, 30, 60, 120, 300, 600, 1800),
)
