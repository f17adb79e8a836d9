"""The kinds that the operator reads or writes, and where the API server keeps them."""

from __future__ import annotations

from dataclasses import dataclass

from turbo_operator import api


@dataclass(frozen=True, slots=True)
class Resource:
    """One kind of object and its place in the API."""

    kind: str
    group: str  # "" is the core group
    version: str
    plural: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """The value of an object's apiVersion."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(
        self, namespace: str | None = None, name: str | None = None, subresource: str | None = None
    ) -> str:
        """Return the URL path of one object, of all of a namespace, or of all; a subresource needs a name."""
        place = ("namespaces", namespace) if self.namespaced and namespace is not None else ()
        root = f"/apis/{self.group}" if self.group else "/api"
        return "/".join(filter(None, (root, self.version, *place, self.plural, name, subresource)))


def _own(kind: str, *, namespaced: bool = True) -> Resource:
    return Resource(kind, api.GROUP, api.VERSION, api.PLURALS[kind], namespaced)


TURBODEPLOYMENT = _own(api.TURBODEPLOYMENT)
TURBOACCELERATOR = _own(api.TURBOACCELERATOR, namespaced=False)
TURBODRAFT = _own(api.TURBODRAFT)
TURBOBUDGET = _own(api.TURBOBUDGET)
OWN = (TURBODEPLOYMENT, TURBOACCELERATOR, TURBODRAFT, TURBOBUDGET)
POD = Resource("Pod", "", "v1", "pods")
NODE = Resource("Node", "", "v1", "nodes", namespaced=False)
REPLICASET = Resource("ReplicaSet", "apps", "v1", "replicasets")
STATEFULSET = Resource("StatefulSet", "apps", "v1", "statefulsets")
QUOTA = Resource("ResourceQuota", "", "v1", "resourcequotas")
LEASE = Resource("Lease", "coordination.k8s.io", "v1", "leases")
EVENT = Resource("Event", "events.k8s.io", "v1", "events")

# The children of a TurboDeployment, by kind.
CHILDREN = {
    resource.kind: resource
    for resource in (
        Resource("ConfigMap", "", "v1", "configmaps"),
        Resource("Service", "", "v1", "services"),
        Resource("ServiceAccount", "", "v1", "serviceaccounts"),
        Resource("RoleBinding", "rbac.authorization.k8s.io", "v1", "rolebindings"),
        Resource("ControllerRevision", "apps", "v1", "controllerrevisions"),
        Resource("Deployment", "apps", "v1", "deployments"),
        Resource("LeaderWorkerSet", "leaderworkerset.x-k8s.io", "v1", "leaderworkersets"),
        Resource("Job", "batch", "v1", "jobs"),
        Resource("InferencePool", "inference.networking.k8s.io", "v1", "inferencepools"),
        Resource("PodDisruptionBudget", "policy", "v1", "poddisruptionbudgets"),
    )
}

# Never deleted by the operator, which has no right to: the garbage collector takes them with their owner.
UNDELETED = frozenset({"Service", "ConfigMap"})

# Of other projects: watched where, and while, the cluster has them.
LEADERWORKERSET, INFERENCEPOOL = CHILDREN["LeaderWorkerSet"], CHILDREN["InferencePool"]

# What the pods of a variant come from: one pod a replica, or several on as many nodes.
WORKLOADS = frozenset({"Deployment", "LeaderWorkerSet"})
# What pods come from: all are watched, since one may lose its label, and kept where they are ours.
EDITABLE = (CHILDREN["Deployment"], CHILDREN["Job"])
# Watched where the cluster has the first of them: it makes the others, with this label.
GROUPED = (LEADERWORKERSET, STATEFULSET)
LABEL_GROUPED = "leaderworkerset.sigs.k8s.io/name"
# Watched where there are routers: only then does the chart give the operator rights to them.
ROUTING = (CHILDREN["ServiceAccount"], CHILDREN["RoleBinding"])
# Of these the API server sends only what bears our label: one that lost it is found by its name.
_OTHERS = (*EDITABLE, *ROUTING, LEADERWORKERSET, INFERENCEPOOL)
LABELED = tuple(each for each in CHILDREN.values() if each not in _OTHERS)
