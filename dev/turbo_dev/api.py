"""The API server as its administrator, in plain requests: no client's cache or defaults in between."""

from __future__ import annotations

import json
import ssl
from collections.abc import Mapping
from typing import Any

import httpx

from turbo_operator.resources import Resource

from .access import Access
from .server_process import PATIENCE


class Api:
    """The API server behind `access`."""

    def __init__(self, access: Access) -> None:
        context = ssl.create_default_context(cafile=str(access.ca))
        self.client = httpx.Client(
            base_url=access.url,
            verify=context,
            headers={"Authorization": f"Bearer {access.token}"},
            timeout=PATIENCE,
            trust_env=False,
        )

    def send(
        self, method: str, path: str, body: Any = None, kind: str = "application/json", **query: str
    ) -> Any:
        """One request; the answer as JSON. ApiRefusalError from status 400 on."""
        answer = self.client.request(
            method, path, params=query, content=json.dumps(body), headers={"Content-Type": kind}
        )
        if answer.status_code >= 400:
            is_json = answer.headers.get("content-type", "").startswith("application/json")
            message = answer.json().get("message", answer.text) if is_json else answer.text
            raise ApiRefusalError(answer.status_code, message)
        return answer.json()

    def get(self, resource: Resource, namespace: str, name: str) -> dict[str, Any] | None:
        """An object, or None where there is none."""
        try:
            found: dict[str, Any] = self.send("GET", resource.path(namespace, name))
        except ApiRefusalError as error:
            if error.status == 404:
                return None
            raise
        return found

    def list(self, resource: Resource, namespace: str) -> list[dict[str, Any]]:
        """All of a namespace."""
        items: list[dict[str, Any]] = self.send("GET", resource.path(namespace))["items"]
        return items

    def create(self, resource: Resource, body: Mapping[str, Any]) -> Any:
        """The object as it was stored."""
        return self.send("POST", resource.path(body["metadata"].get("namespace")), body)

    def patch(
        self, resource: Resource, namespace: str, name: str, body: Any, subresource: str | None = None
    ) -> Any:
        """A merge patch; the object as it was stored."""
        path = resource.path(namespace, name, subresource)
        return self.send("PATCH", path, body, "application/merge-patch+json")


class ApiRefusalError(Exception):
    """The API server said no."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
