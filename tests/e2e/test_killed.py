"""An operator that is killed anywhere is continued by the next one, without a needless write.

One life of a TurboDeployment (created, scaled, given another plan) is lived once undisturbed and then twenty
times with the operator killed by SIGKILL at a seeded point and started again. In the end the same objects
stand there.

A write is needless, and none is allowed, when
- the API server's answer bears a resource version that the object had before: nothing changed, or
- it is refused or fails (but for the one request, and the one event, whose client was killed in the middle of
  it: 504), or
- a child is written once more than in the undisturbed life: the same work was done twice.
Status writes are not counted, since how many intermediate states are seen depends on time; that none of them
changes nothing is covered by the first rule.
"""

from __future__ import annotations

import json
import random
import re
import signal
import time
from collections import Counter, defaultdict
from typing import Any

import pytest

from turbo_operator import resources
from turbo_operator.api import ANNOTATION_APPLIED_HASH

pytestmark = pytest.mark.cluster

SEED = 20260101
NUM_POINTS = 20
CLIENT_GONE = 504
# How many calls of each phase one life surely has; the points are drawn below these.
CALLS = {"observe": 7, "apply": 9, "prune": 2, "status": 6}
TIMES = {"time", "startup", "creationTimestamp", "lastTransitionTime", "lastUpdateTime", "lastProbeTime"}
UNIQUE = {"uid", "resourceVersion", "managedFields", "clusterIP", "clusterIPs", ANNOTATION_APPLIED_HASH}


def points() -> list[str]:
    """The kill points, all different, each phase in turn, so that none is left out."""
    dice = random.Random(SEED)
    drawn: list[str] = []
    while len(drawn) < NUM_POINTS:
        phase = list(CALLS)[len(drawn) % len(CALLS)]
        count = dice.randint(1, CALLS[phase])
        moments = (
            ["before", "after"] if phase == "observe" else ["before", "after", str(dice.choice((1, 3, 8)))]
        )
        point = f"{phase}:{count}:{dice.choice(moments)}"
        if point not in drawn:
            drawn.append(point)
    return drawn


class Life:
    """One TurboDeployment's life in its own namespace, the operator restarted whenever it is found dead."""

    def __init__(self, cluster: Any, namespace: str, kill_at: str | None) -> None:
        self.cluster = cluster
        self.namespace = cluster.namespace(namespace)
        self.operator = cluster.start(self.namespace, kill_at)
        self.deaths: list[int] = []
        # The kill cuts off one request at most, and one event: a task of its own sends them.
        self.cut_off: set[str] = {"event"} if kill_at is not None else set()
        if kill_at is not None and kill_at.split(":")[2].isdigit():
            self.cut_off.add("request")

    def until(self, holds: Any, what: str) -> None:
        def holds_or_restart() -> Any:
            code = self.operator.process.poll()
            if code is not None:
                self.deaths.append(code)
                self.operator = self.cluster.start(self.namespace)
            return holds()

        self.cluster.until(holds_or_restart, f"{what}; deaths: {self.deaths}")

    def ready(self, replicas: int, plan: Any = lambda _: True) -> str:
        def holds() -> bool:
            body = self.cluster.deployment(self.namespace)
            return self.cluster.is_ready(body, replicas) and plan(body["status"]["plan"]["hash"])

        self.until(holds, f"{replicas} ready")
        return self.cluster.deployment(self.namespace)["status"]["plan"]["hash"]

    def live(self) -> None:
        self.cluster.create_deployment(self.namespace)
        first = self.ready(1)
        self.patch({"replicas": 2})
        self.ready(2)
        # In how many steps the old variant of two gives way, is up to when the new pods come ready.
        self.patch({"replicas": 1})
        self.ready(1)
        self.patch({"speculation": {"maxDraftTokens": 4}})
        second = self.ready(1, lambda plan: plan != first)
        self.until(
            lambda: (
                self.names()
                == {
                    "ConfigMap/chat-model",
                    f"ControllerRevision/chat-{second}",
                    f"Deployment/chat-{second}",
                    "PodDisruptionBudget/chat",
                    "Service/chat",
                }
            ),
            "the old variant has gone",
        )
        self.until(self.rested, "nothing is written any more")
        self.operator.stop()

    def patch(self, spec: dict[str, Any]) -> None:
        self.cluster.api.patch(resources.TURBODEPLOYMENT, self.namespace, "chat", {"spec": spec})

    def names(self) -> set[str]:
        return set(self.cluster.children(self.namespace))

    def rested(self) -> bool:
        before = len(self.cluster.writes(self.namespace))
        time.sleep(0.5)
        return len(self.cluster.writes(self.namespace)) == before

    def objects(self) -> dict[str, Any]:
        """The TurboDeployment and its children, without what is another every time."""
        body = self.cluster.deployment(self.namespace)
        objects = self.cluster.children(self.namespace) | {"TurboDeployment/chat": body}
        # A ReplicaSet is called after its pods' template, which bears the uid.
        text = re.sub(r'(ReplicaSet \\"[-a-z0-9]+)-[a-z0-9]+', r"\1-TEMPLATE", json.dumps(stripped(objects)))
        return json.loads(text.replace(body["metadata"]["uid"], "UID").replace(self.namespace, "NAMESPACE"))

    def child_writes(self, interrupted: bool = False) -> Counter[str]:
        """How often each child was written; on request with the request that the kill cut off."""
        return Counter(
            f"{event['verb']} {event['objectRef']['resource']}/{event['objectRef']['name']}"
            for event in self.cluster.writes(self.namespace)
            if event["objectRef"]["resource"] not in ("turbodeployments", "events")
            and (event["responseStatus"]["code"] < 400 or interrupted)
        )

    def needless(self) -> list[str]:
        """What the audit log shows of writes that changed nothing or failed."""
        seen: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
        found = []
        cut_off = set(self.cut_off)
        for event in self.cluster.all_writes(self.namespace):
            where, code = event["objectRef"], event["responseStatus"]["code"]
            name = "/".join(where.get(part, "") for part in ("resource", "name", "subresource"))
            said = f"{event['verb']} {name} {code}"
            ours = event["user"]["username"] == self.cluster.user
            kind = "event" if where["resource"] == "events" else "request"
            if ours and code == CLIENT_GONE and kind in cut_off:
                cut_off.remove(kind)
            elif ours and code >= 400:
                found.append(said)
            version = event.get("responseObject", {}).get("metadata", {}).get("resourceVersion")
            if version is None or event["verb"] not in ("create", "update", "patch"):
                continue
            place = (where["resource"], where.get("name", ""))
            if ours and version in seen[place]:
                found.append(f"{said}: still at {version}")
            seen[place].add(version)
        return found


def stripped(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: stripped(part) for key, part in value.items() if key not in TIMES | UNIQUE}
    if isinstance(value, list):
        return [stripped(part) for part in value]
    return value


@pytest.fixture(scope="module")
def undisturbed(plane: Any) -> Life:
    life = Life(plane, "undisturbed", None)
    life.live()
    assert life.deaths == []
    assert life.needless() == []
    return life


@pytest.mark.parametrize("point", points())
def test_a_killed_operator_is_continued_to_the_same_objects_without_a_needless_write(
    cluster: Any, undisturbed: Life, point: str
) -> None:
    life = Life(cluster, "killed-" + point.replace(":", "-"), point)
    life.live()
    assert life.deaths == [-signal.SIGKILL], "the point was never reached"
    assert life.needless() == []
    # Whether the API server had carried out what was cut off, its answer no longer says.
    assert undisturbed.child_writes() in (life.child_writes(), life.child_writes(interrupted=True))
    assert life.objects() == undisturbed.objects()


def test_every_phase_is_killed_in() -> None:
    assert {point.split(":")[0] for point in points()} == {"observe", "apply", "prune", "status"}
    assert len(points()) == NUM_POINTS
