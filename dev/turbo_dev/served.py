"""A TurboDeployment of the demo's model on the embedded node, and what a test asks about it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import yaml

from turbo_operator import resources
from turbo_operator.api import LABEL_DEPLOYMENT, LABEL_ROLE, ROLE_ROUTER, ROLE_SERVING

from . import images, release, volume
from .api import Api
from .calls import Target
from .cluster import Cluster

NAMESPACE = volume.NAMESPACE
DEPLOYMENT = resources.CHILDREN["Deployment"]
PATIENCE_SECONDS = 600.0  # two pods load one after the other, on cores that are asked for much else


def install(cluster: Cluster) -> None:
    """This checkout's images and the chart on the node, the model on its claim, and the example's class."""
    made = images.build()
    images.deliver(made, cluster)
    volume.fill(cluster.access, cluster, made.model.name)
    release.install(cluster.access, made, None)
    # As people apply it: the catalog's own row of that name gives way.
    cluster.access.kubectl("apply", "-f", "-", input=json.dumps(_example()[0]))


def _example() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(release.EXAMPLE.read_text(encoding="utf-8")))


class Served:
    """One TurboDeployment, in the namespace of the model's claim."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        """Nothing is made yet."""
        self.cluster, self.name = cluster, name
        self.access = cluster.access
        self.api = Api(self.access)

    def create(self, **spec: Any) -> None:
        """The example under this name, scaled by hand, with further fields of the spec."""
        body = _example()[1]
        body["metadata"] = {"name": self.name, "namespace": NAMESPACE}
        del body["spec"]["scaling"]
        body["spec"] |= spec
        self.api.create(resources.TURBODEPLOYMENT, body)

    def change(self, **spec: Any) -> None:
        """Merge fields into the spec."""
        self.api.patch(resources.TURBODEPLOYMENT, NAMESPACE, self.name, {"spec": spec})

    def remove(self) -> None:
        """Delete it and wait until its pods are gone."""
        self.access.kubectl(
            "delete", "td", self.name, "-n", NAMESPACE, "--ignore-not-found", "--timeout=100s"
        )
        self.until(lambda: not self.pods(), "its pods are gone")
        self.api.client.close()

    def body(self) -> dict[str, Any]:
        """The object."""
        found = self.api.get(resources.TURBODEPLOYMENT, NAMESPACE, self.name)
        assert found is not None
        return found

    def status(self) -> dict[str, Any]:
        """Its status, empty before the first."""
        found: dict[str, Any] = self.body().get("status", {})
        return found

    def condition(self, kind: str) -> tuple[str, str, str]:
        """Status, reason and message of a condition; it must speak of the spec as it is."""
        body = self.body()
        for each in body.get("status", {}).get("conditions", ()):
            if each["type"] == kind and each["observedGeneration"] == body["metadata"]["generation"]:
                return each["status"], each["reason"], each["message"]
        return "Absent", "", ""

    def says(self, kind: str, status: str, reason: str) -> bool:
        """Whether a condition is so."""
        return self.condition(kind)[:2] == (status, reason)

    def in_force(self) -> bool:
        """Whether what runs is what the spec asks for."""
        return self.says("Reconciling", "False", "UpToDate")

    def pods(self) -> list[dict[str, Any]]:
        """Its serving pods, those that end included."""
        selector = f"{LABEL_DEPLOYMENT}={self.name},{LABEL_ROLE}={ROLE_SERVING}"
        path = resources.POD.path(NAMESPACE)
        found: list[dict[str, Any]] = self.api.send("GET", path, labelSelector=selector)["items"]
        return found

    def variants(self) -> dict[str, dict[str, Any]]:
        """Its Deployments by name, whatever their labels say."""
        return {
            item["metadata"]["name"]: item
            for item in self.api.list(DEPLOYMENT, NAMESPACE)
            if any(owner["name"] == self.name for owner in item["metadata"].get("ownerReferences", ()))
        }

    def endpoints(self) -> set[str]:
        """Names of the pods that its Service sends requests to."""
        path = f"/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices"
        slices = self.api.send("GET", path, labelSelector=f"kubernetes.io/service-name={self.name}")["items"]
        return {
            endpoint["targetRef"]["name"]
            for each in slices
            for endpoint in each["endpoints"] or ()
            if endpoint["conditions"].get("ready")
        }

    def serves_directly(self) -> bool:
        """Whether its Service sends requests to all of its pods, and no router is left."""
        names = {pod["metadata"]["name"] for pod in self.pods()}
        return self.endpoints() == names and not self.routers()

    def routers(self) -> list[dict[str, Any]]:
        """The pods of its router that are there to stay, by name."""
        selector = f"{LABEL_DEPLOYMENT}={self.name},{LABEL_ROLE}={ROLE_ROUTER}"
        pods = self.access.get("pods", "-n", NAMESPACE, "-l", selector)["items"]
        staying = (pod for pod in pods if "deletionTimestamp" not in pod["metadata"])
        return sorted(staying, key=lambda pod: str(pod["metadata"]["name"]))

    def is_routed(self) -> bool:
        """Whether its Service sends requests to routers alone, and to all of them."""
        names = {pod["metadata"]["name"] for pod in self.routers()}
        return bool(names) and self.endpoints() == names

    def target(self, timeout_seconds: float, num_tokens: int = 8) -> Target:
        """Its Service, for clients."""
        spec = self.access.get("service", self.name, "-n", NAMESPACE)["spec"]
        url = f"http://{spec['clusterIP']}:{spec['ports'][0]['port']}/v1"
        return Target(url, self.body()["spec"]["model"]["name"], timeout_seconds, num_tokens)

    def operator_log(self) -> str:
        """What the operator has said since it started."""
        return self.access.kubectl("logs", f"deployment/{release.RELEASE}", "-n", release.NAMESPACE)

    def until(self, holds: Callable[[], Any], what: str, seconds: float = PATIENCE_SECONDS) -> float:
        """Wait until `holds()`; how long that took. AssertionError with the status after `seconds`."""
        start = time.monotonic()
        while not holds():
            if time.monotonic() - start > seconds:
                found = self.api.get(resources.TURBODEPLOYMENT, NAMESPACE, self.name) or {}
                pods = [(pod["metadata"]["name"], pod.get("status")) for pod in self.pods()]
                raise AssertionError(
                    f"not within {seconds:.0f} s: {what}; {json.dumps([found.get('status'), pods])}\n"
                    f"{self.operator_log()[-6000:]}"
                )
            time.sleep(0.1)
        return time.monotonic() - start


def uid(pod: dict[str, Any]) -> str:
    """A pod's uid."""
    found: str = pod["metadata"]["uid"]
    return found


def is_ready(pod: dict[str, Any]) -> bool:
    """Whether a pod is Ready and there to stay."""
    conditions = pod.get("status", {}).get("conditions", ())
    stays = "deletionTimestamp" not in pod["metadata"]
    return stays and any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
