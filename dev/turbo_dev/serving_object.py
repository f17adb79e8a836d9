"""A TurboDeployment that serves on the control-plane tier, and what tests ask of it and of its children."""

from __future__ import annotations

import time
from typing import Any

from turbo_operator import resources
from turbo_operator.api import GROUP

DEPLOYMENT, REVISION = resources.CHILDREN["Deployment"], resources.CHILDREN["ControllerRevision"]
POD = resources.POD
LABEL = f"{GROUP}/deployment"
SOON_SECONDS = 45.0  # a busy machine may take them; an object is looked at again after a minute anyway


class ServingObject:
    """A TurboDeployment that serves in a namespace of its own."""

    def __init__(self, cluster: Any, namespace: str, **spec: Any) -> None:
        self.cluster = cluster
        self.namespace = cluster.namespace(namespace)
        self.operator = cluster.start(self.namespace)
        cluster.create_deployment(self.namespace, **spec)
        ready = cluster.until_ready(self.namespace, replicas=spec.get("replicas", 1))
        self.variant = f"chat-{ready['status']['plan']['hash']}"

    def kubectl(self, *arguments: str) -> str:
        """Run kubectl in its namespace."""
        said: str = self.cluster.access.kubectl(*arguments, "-n", self.namespace)
        return said

    def write(self, **spec: Any) -> None:
        """Change its spec."""
        self.cluster.api.patch(resources.TURBODEPLOYMENT, self.namespace, "chat", {"spec": spec})

    def child(self, resource: Any, name: str = "") -> dict[str, Any] | None:
        """Return a child; without a name the variant's."""
        found: dict[str, Any] | None = self.cluster.api.get(resource, self.namespace, name or self.variant)
        return found

    def label(self, resource: Any, name: str = "") -> str | None:
        """Return the label that a child is watched by."""
        child = self.child(resource, name) or {"metadata": {}}
        label: str | None = (child["metadata"].get("labels") or {}).get(LABEL)
        return label

    def pods(self) -> list[dict[str, Any]]:
        """Return its serving pods that stay."""
        return [
            pod
            for pod in self.cluster.api.list(POD, self.namespace)
            if pod["metadata"].get("labels", {}).get(f"{GROUP}/role") == "serving"
            and "deletionTimestamp" not in pod["metadata"]
        ]

    def pod_names(self) -> set[str]:
        """Return the names of these."""
        return {pod["metadata"]["name"] for pod in self.pods()}

    def status(self) -> dict[str, Any]:
        """Return its status."""
        told: dict[str, Any] = self.cluster.deployment(self.namespace)["status"]
        return told

    def written_statuses(self) -> list[dict[str, Any]]:
        """What the operator has written to the status up to now."""
        return [
            event["requestObject"]["status"]
            for event in self.cluster.writes(self.namespace)
            if event["objectRef"].get("subresource") == "status"
        ]

    def soon(self, holds: Any, what: str) -> None:
        """Wait for what heals at once."""
        self.cluster.until(holds, what, SOON_SECONDS)

    def variants(self) -> list[str]:
        """Return the names of all Deployments of the namespace."""
        return [each["metadata"]["name"] for each in self.cluster.api.list(DEPLOYMENT, self.namespace)]

    def replica_sets(self) -> set[str]:
        """Return the uids of all ReplicaSets of the namespace."""
        found = self.cluster.api.list(resources.REPLICASET, self.namespace)
        return {each["metadata"]["uid"] for each in found}

    def rested(self) -> bool:
        """Whether the operator writes nothing for a second."""
        written = len(self.cluster.writes(self.namespace))
        time.sleep(1)
        return len(self.cluster.writes(self.namespace)) == written

    def until_ready(self, replicas: int = 1) -> None:
        """Wait until so many replicas serve the spec."""
        self.soon(
            lambda: self.cluster.is_ready(self.cluster.deployment(self.namespace), replicas),
            f"{replicas} ready: {self.status()}",
        )
