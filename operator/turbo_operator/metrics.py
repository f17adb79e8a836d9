"""What the operator counts about itself. Names carry base units; labels are few and bounded."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

RECONCILE_SECONDS = Histogram(
    "turbo_operator_reconcile_seconds",
    "Time of one reconcile of one TurboDeployment, by result: done, or failed and tried again.",
    ["result"],
    buckets=(0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0),
)
API_REQUESTS = Counter(
    "turbo_operator_api_requests",
    "Requests to the Kubernetes API, watches not included.",
    ["verb", "resource", "code"],
)
EVENTS_DROPPED = Counter(
    "turbo_operator_events_dropped",
    "Events that were not written, since there were too many of an object or at once.",
    ["type"],
)
LEADER = Gauge("turbo_operator_leader", "1 while this operator holds the Lease and writes, else 0.")
QUEUE_DEPTH = Gauge("turbo_operator_queue_depth", "TurboDeployments that wait for a free worker.")
DEPLOYMENTS = Gauge("turbo_operator_deployments", "TurboDeployments known to the operator.")
SCRAPES = Counter("turbo_operator_scrapes", "Reads of a pod's load or progress: ok or failed.", ["result"])
DEPLOYMENT_REQUESTS = Gauge(
    "turbo_operator_deployment_requests",
    "Requests in the ready pods of a TurboDeployment, as last scraped, by state: running or waiting.",
    ["namespace", "name", "state"],
)
