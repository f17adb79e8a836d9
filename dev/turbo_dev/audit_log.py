"""Audit logs of rollouts, written by hand: what the invariants are tried on."""

from __future__ import annotations

import datetime
from typing import Any

from turbo_dev.rollout_invariants import Judge

OPERATOR, KUBELET, USER = "system:serviceaccount:turbo-system:turbo", "kubelet", "user"
START = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
OLD, NEW = "aaaa", "bbbb"
ROLLOUT = {"minReadySeconds": 1}


class Log:
    """Writes audit events as the API server does; `chat` of the namespace `team` is what they are about."""

    def __init__(self, **spec: Any) -> None:
        self.events: list[dict[str, Any]] = []
        self.seconds = 0.0
        self.revision = 0
        self.accelerator("gpu", "2.00")
        first: dict[str, Any] = {"replicas": 1, "rollout": ROLLOUT}
        self.spec(**first | spec)

    def write(
        self,
        user: str,
        verb: str,
        resource: str,
        name: str,
        body: dict[str, Any] | None,
        subresource: str = "",
        namespace: str = "team",
        received: str | None = None,
    ) -> None:
        """One write; `body` None is a deletion whose answer says only that it worked.

        It was asked for when it is answered, unless `received` says when.
        """
        self.revision += 1
        self.seconds += 0.001
        answer: dict[str, Any] = {"kind": "Status", "status": "Success"}
        if body is not None:
            meta = {"name": name, "namespace": namespace, "resourceVersion": str(self.revision)}
            answer = body | {"metadata": body.get("metadata", {}) | meta}
        target = {"resource": resource, "name": name, "namespace": namespace, "subresource": subresource}
        self.events.append(
            {
                "requestReceivedTimestamp": self.stamp() if received is None else received,
                "stageTimestamp": self.stamp(),
                "user": {"username": user},
                "verb": verb,
                "requestURI": "/apis",
                "objectRef": target,
                "responseStatus": {"code": 200},
                "responseObject": answer,
            }
        )

    def stamp(self) -> str:
        """The time that it is now."""
        return (
            (START + datetime.timedelta(seconds=self.seconds))
            .isoformat(timespec="microseconds")
            .replace("+00:00", "Z")
        )

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.seconds += seconds

    def spec(self, status: dict[str, Any] | None = None, **spec: Any) -> None:
        """The user writes the spec."""
        told = {"status": status} if status else {}
        body = {"metadata": {"generation": 1, "uid": "u"}, "spec": spec} | told
        self.write(USER, "update", "turbodeployments", "chat", body)

    def told(self, status: dict[str, Any]) -> None:
        """The operator writes the status."""
        spec = {"replicas": 1, "rollout": ROLLOUT}
        body = {"metadata": {"generation": 1, "uid": "u"}, "spec": spec, "status": status}
        self.write(OPERATOR, "patch", "turbodeployments", "chat", body, "status")

    def accelerator(self, name: str, price: str, provisioning: str = "Elastic") -> None:
        """A TurboAccelerator is created."""
        pricing = {"perAcceleratorHour": {"onDemand": price}}
        spec = {"resourceName": "nvidia.com/gpu", "provisioning": provisioning, "pricing": pricing}
        spec["nodeSelector"] = {"class": name}
        self.write(USER, "create", "turboaccelerators", name, {"spec": spec}, namespace="")

    def node(self, name: str, gpus: int) -> None:
        """A node is created."""
        status = {"allocatable": {"nvidia.com/gpu": str(gpus)}}
        body = {"metadata": {"labels": {"class": "gpu"}}, "status": status}
        self.write(USER, "create", "nodes", name, body, namespace="")

    def quota(self, gpus: int) -> None:
        """A ResourceQuota is created."""
        spec = {"hard": {"requests.nvidia.com/gpu": str(gpus)}}
        self.write(USER, "create", "resourcequotas", "gpus", {"spec": spec})

    def labels(self, plan_hash: str, **more: str) -> dict[str, str]:
        """The labels of a variant."""
        mine = {"deployment": "chat", "role": "serving", "plan-hash": plan_hash, "accelerator": "gpu"}
        return {f"serving.turbo.dev/{name}": value for name, value in (mine | more).items()}

    def scale(self, plan_hash: str, replicas: int, **labels: str) -> None:
        """The operator applies the Deployment of a variant, and the first time its ControllerRevision."""
        own = self.labels(plan_hash, **labels)
        if not any(event["objectRef"]["name"] == f"chat-{plan_hash}" for event in self.events):
            self.write(
                OPERATOR, "patch", "controllerrevisions", f"chat-{plan_hash}", {"metadata": {"labels": own}}
            )
        template = {"metadata": {"labels": own}}
        body = {"metadata": {"labels": own}, "spec": {"replicas": replicas, "template": template}}
        self.write(OPERATOR, "patch", "deployments", f"chat-{plan_hash}", body)

    def remove(self, plan_hash: str, *resources: str) -> None:
        """The operator deletes a variant, or these parts of it."""
        for resource in resources or ("deployments", "controllerrevisions"):
            self.write(OPERATOR, "delete", resource, f"chat-{plan_hash}", None)

    def pod(self, name: str, plan_hash: str, ready: bool = True, **meta: Any) -> None:
        """The kubelet reports a pod."""
        conditions = [{"type": "Ready", "status": str(ready)}]
        body = {
            "metadata": {"labels": self.labels(plan_hash)} | meta,
            "status": {"phase": "Running", "conditions": conditions},
        }
        self.write(KUBELET, "patch", "pods", name, body, "status")

    def end(self, name: str, plan_hash: str) -> None:
        """A pod is told to end."""
        self.pod(name, plan_hash, False, deletionTimestamp="now", deletionGracePeriodSeconds=30)

    def gone(self, name: str, plan_hash: str, received: str | None = None) -> None:
        """A pod has ended, as was asked for now or at `received`."""
        meta = {"labels": self.labels(plan_hash), "deletionTimestamp": "now", "deletionGracePeriodSeconds": 0}
        self.write(KUBELET, "delete", "pods", name, {"metadata": meta}, received=received)

    def broken(self, lag: float = 0.0) -> list[str]:
        """Names of the invariants that were broken."""
        return [each.invariant for each in Judge(OPERATOR, lag).follow(self.events)]


def serving(plan_hash: str = OLD, replicas: int = 1, **spec: Any) -> Log:
    """A log in which a variant has all its replicas available."""
    log = Log(replicas=replicas, **spec)
    log.scale(plan_hash, replicas)
    for number in range(replicas):
        log.pod(f"{plan_hash}-{number}", plan_hash)
    log.wait(5)
    return log
