"""Machines of one test on a control plane with KWOK's nodes: its accelerators, nodes and TurboDeployment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from turbo_dev.fakenodes import gpu_accelerator, gpu_node
from turbo_operator import resources

MODEL = {"uri": "hf://maker/model"}  # a claim would have to be there for the scheduler


class Hall:
    """Machines of one test: its accelerators and nodes bear its name, so that tests do not see each other."""

    def __init__(self, cluster: Any, name: str) -> None:
        self.cluster = cluster
        self.namespace = cluster.namespace(name)

    def accelerator(self, kind: str, price: str, **spec: Any) -> str:
        """A TurboAccelerator of one GPU whose pods may go to KWOK's nodes; its name."""
        name = f"{kind}-{self.namespace}"
        self.cluster.access.apply(gpu_accelerator(name, price, **spec))
        return name

    def nodes(self, accelerator: str, count: int, gpus: int = 1) -> None:
        """Add nodes with so many GPUs each."""
        for number in range(count):
            self.cluster.access.apply(gpu_node(f"{accelerator}-{number}", accelerator, gpus))

    def node_with(self, accelerator: str, name: str, labels: dict[str, str], *taints: dict[str, str]) -> str:
        """A node of one GPU with further labels and taints; its name."""
        node = gpu_node(f"{accelerator}-{name}", accelerator, 1)
        node["metadata"]["labels"] |= labels
        node["spec"]["taints"] += taints
        self.cluster.access.apply(node)
        found: str = node["metadata"]["name"]
        return found

    def deploy(self, *allowed: str, **spec: Any) -> None:
        """Create the TurboDeployment `chat` on these accelerators."""
        accelerators = {"allowed": list(allowed)} | spec.pop("accelerators", {})
        spec = {"model": MODEL, **spec}
        self.cluster.create_deployment(self.namespace, accelerators=accelerators, **spec)

    def change(self, **spec: Any) -> None:
        """Change its spec."""
        self.cluster.api.patch(resources.TURBODEPLOYMENT, self.namespace, "chat", {"spec": spec})

    def body(self) -> dict[str, Any]:
        """It as the API server holds it."""
        body: dict[str, Any] = self.cluster.deployment(self.namespace)
        return body

    def condition(self, kind: str) -> dict[str, Any]:
        """One of its conditions."""
        found: dict[str, Any] = self.cluster.condition(self.body(), kind)
        return found

    def until(self, holds: Callable[[], Any], what: str) -> None:
        """Wait until it holds; fails with the status."""
        try:
            self.cluster.until(holds, what)
        except AssertionError as late:
            there = self.cluster.api.list(resources.TURBODEPLOYMENT, self.namespace)
            raise AssertionError(f"{late}: {[body.get('status') for body in there]}") from late

    def until_ready(self, replicas: int = 1) -> dict[str, Any]:
        """It, once so many replicas serve its spec."""
        self.until(lambda: self.cluster.is_ready(self.body(), replicas), f"{replicas} replicas serve")
        return self.body()

    def until_said(self, kind: str, status: str, reason: str) -> dict[str, Any]:
        """A condition, once it says so."""

        def said() -> bool:
            found = self.condition(kind)
            return (found["status"], found["reason"]) == (status, reason)

        self.until(said, f"{kind} is {status} for {reason}")
        return self.condition(kind)

    def child_uid(self, name: str) -> str | None:
        """The uid of a Deployment; None where there is none of that name."""
        deployment = self.cluster.api.get(resources.CHILDREN["Deployment"], self.namespace, name)
        uid: str | None = deployment["metadata"]["uid"] if deployment is not None else None
        return uid

    def serving(self) -> list[dict[str, Any]]:
        """The pods that answer, or are about to."""
        pods = self.cluster.api.list(resources.POD, self.namespace)
        return [pod for pod in pods if pod["metadata"]["labels"]["serving.turbo.dev/role"] == "serving"]

    def counts(self, accelerator: str) -> dict[str, Any]:
        """What the status of a TurboAccelerator counts."""
        found: dict[str, Any] = self.cluster.api.get(resources.TURBOACCELERATOR, "", accelerator)
        status: dict[str, Any] = found.get("status", {})
        return status
