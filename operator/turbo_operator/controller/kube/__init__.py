"""The Kubernetes API: one client, its errors by what helps, and the way in."""

from turbo_operator.controller.kube.client import Kube
from turbo_operator.controller.kube.connection import connect
from turbo_operator.controller.kube.errors import (
    ConflictError,
    GoneError,
    KubeError,
    NotLeadingError,
    NotOwnedError,
    NoWayInError,
    OutdatedError,
    RefusedError,
    TerminatingError,
    WebhookError,
    error_of,
)

__all__ = [
    "ConflictError",
    "GoneError",
    "Kube",
    "KubeError",
    "NoWayInError",
    "NotLeadingError",
    "NotOwnedError",
    "OutdatedError",
    "RefusedError",
    "TerminatingError",
    "WebhookError",
    "connect",
    "error_of",
]
