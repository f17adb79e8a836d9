"""API keys as a serving pod sees them: a Secret mounted as a folder, so that a change reaches it as it
runs. Pure.
"""

from __future__ import annotations

from typing import Any

from turbo_operator.api import ApiKeysSecretRef, TurboDeployment

FOLDER = "/etc/turbo"
FILE = "api-keys"  # whatever the Secret calls it: a path of one's own needs no care about names


def reference(td: TurboDeployment) -> ApiKeysSecretRef | None:
    """Where the keys are; None where none are asked for."""
    return td.spec.server.api_keys_secret_ref if td.spec.server else None


def argument(td: TurboDeployment) -> str | None:
    """What the runtime is told as --api-keys."""
    return f"{FOLDER}/{FILE}" if reference(td) else None


def volumes(td: TurboDeployment) -> list[dict[str, Any]]:
    """The volume of a serving pod."""
    found = reference(td)
    if found is None:
        return []
    secret = {"secretName": found.name, "items": [{"key": found.key, "path": FILE}]}
    return [{"name": "api-keys", "secret": secret}]


def mounts(td: TurboDeployment) -> list[dict[str, Any]]:
    """Where its container has it: a whole folder, since the kubelet never renews a file mounted alone."""
    if reference(td) is None:
        return []
    return [{"name": "api-keys", "mountPath": FOLDER, "readOnly": True}]
