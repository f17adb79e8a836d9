"""Errors of the Kubernetes API, sorted by what helps.

`RefusedError` says what the user must change (or what quota must grow) and is shown, never retried in a loop;
`GoneError` and `ConflictError` mean that our picture is old and a later look is right; every other
`KubeError` is a matter of time.
"""

from __future__ import annotations

import json

from turbo_operator.api import TURBODEPLOYMENT

_RETRIED_4XX = {401, 408, 425, 429}  # credentials being renewed, time-outs, too many requests


class KubeError(Exception):
    """The API server did not do what was asked; `message` is its sentence, `status` the HTTP status or 0."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message


class NoWayInError(KubeError):
    """There is no kubeconfig, or none of its contexts is the one asked for."""

    def __init__(self, message: str) -> None:
        super().__init__(0, "NoWayIn", message)


class GoneError(KubeError):
    """404: there is no such object (any more)."""


class ConflictError(KubeError):
    """409: somebody else owns a field, or the object is another one of the same name."""


class RefusedError(KubeError):
    """The object breaks a rule, a quota or a policy: the same request will be refused again."""

    is_final = True  # nothing but a change by somebody helps

    @property
    def sentence(self) -> str:
        """The refusal in a sentence."""
        return f"The API server refused: {self.message}"


class WebhookError(RefusedError):
    """An admission webhook that has to be asked does not answer: every such request fails until it does."""

    is_final = False


class NotOwnedError(RefusedError):
    """Another owner's object already has a name that the operator needs."""

    why = f"is there already and belongs to somebody else: delete it, or rename this {TURBODEPLOYMENT}."

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(409, "AlreadyExists", f"{kind} {name} {self.why}")

    @property
    def sentence(self) -> str:
        """The operator's own message: the API server rejected nothing."""
        return self.message


class TerminatingError(NotOwnedError):
    """An object of an earlier TurboDeployment of the name is still there, and on its way out."""

    is_final = False
    why = f"of an earlier {TURBODEPLOYMENT} is still being removed: it waits for its pods or for a finalizer."


class NotLeadingError(KubeError):
    """Another operator may write by now: nothing was sent."""

    def __init__(self) -> None:
        super().__init__(0, "NotLeading", "this operator does not hold the Lease, and writes nothing")


class OutdatedError(ConflictError):
    """What was decided rests on what is no longer so, or was seen too long ago: the next look decides."""


def error_of(status: int, text: bytes) -> KubeError:
    """Return the error that a response of the API server stands for; its `Status` body has the message."""
    try:
        document = json.loads(text)
    except ValueError:
        document = {}
    document = document if isinstance(document, dict) else {}
    message = document.get("message") or text.decode("utf-8", "replace").strip() or f"HTTP status {status}"
    is_final = 400 <= status < 500 and status not in _RETRIED_4XX
    kind = {404: GoneError, 409: ConflictError}.get(status, RefusedError if is_final else KubeError)
    if status == 500 and "failed calling webhook" in message:
        kind = WebhookError
    return kind(status, document.get("reason") or "Unknown", message)
