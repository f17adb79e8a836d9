"""How kopf is set up: it watches, re-authenticates and serves the probe, and nothing else.

Only event handlers are registered, which need none of the memory that kopf would keep on objects to tell one
change from the next; but kopf copies every object of every event several times to compare it, which is a
third of an event's work.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import kopf

from turbo_operator.api import LABEL_DEPLOYMENT
from turbo_operator.controller import kube
from turbo_operator.resources import LABELED


class NoDiffs(kopf.MultiDiffBaseStorage):  # type: ignore[misc]  # kopf's types are not followed
    """A storage in no place, for which nothing is copied."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        """Return nothing to compare."""
        return kopf.BodyEssence()


def framework_settings() -> kopf.OperatorSettings:
    """Configure kopf to post no events, scan for no later kinds, and store no progress."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.persistence.diffbase_storage = NoDiffs([])
    settings.persistence.progress_storage = kopf.MultiProgressStorage([])
    settings.queueing.exit_timeout = 0.2  # an event handler does no I/O: there is nothing to wait for
    for resource in LABELED:
        place = (resource.group, resource.version, resource.plural)
        settings.watching.label_selectors[place] = LABEL_DEPLOYMENT
    return settings


async def login(**arguments: Any) -> kopf.ConnectionInfo | None:
    """Log in as kube.connect does: in a pod by address, since kopf's name for the API server needs DNS."""
    account = kopf.login_with_service_account(**arguments)
    server = kube.in_cluster_server(os.environ)
    if account is not None and server is not None:
        return dataclasses.replace(account, server=server)
    return account or kopf.login_with_kubeconfig(**arguments)
