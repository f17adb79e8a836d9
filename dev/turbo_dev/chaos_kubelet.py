"""A kubelet on whose nodes pods fail, hang, flap and are put out.

Whether the pods of a plan work, and which of them have a mishap, depends on a seed, the TurboDeployment, the
plan and how many of its pods there were before. The mishap is the rarest so far, so that a short run meets
each of them. A plan that works has few, so that in the end it serves.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from turbo_dev import pod_reports
from turbo_dev.api import Api, ApiRefusalError
from turbo_operator import resources
from turbo_operator.api import LABEL_DEPLOYMENT, LABEL_PLAN_HASH, rfc3339

Body = Mapping[str, Any]
Step = tuple[float, str]  # after how many seconds, and what happens then

_LOOK_SECONDS = 0.2
_BEAT_SECONDS = 10.0
_NUM_WORKERS = 8
_MAX_MISHAPS = 2  # of the pods of one plan that works
_PLANS = {"works": 68, "slow": 8, "crashes": 10, "image": 7, "hangs": 7}  # and their weights
MISHAPS = ("unready", "evict", "delete", "crash-once")  # of pods that become ready


class ChaosKubelet(threading.Thread):
    """Reports the pods of some namespaces, and keeps some nodes ready."""

    def __init__(self, api: Api, namespaces: set[str], nodes: set[str], seed: int) -> None:
        super().__init__(daemon=True)
        self._api = api
        self._namespaces = namespaces
        self._nodes = nodes
        self._seed = seed
        self._due: dict[str, list[Step]] = {}  # by uid, times since the epoch
        self._num_pods: Counter[str] = Counter()  # by plan of a TurboDeployment
        self._num_mishaps: Counter[str] = Counter()
        self.done: Counter[str] = Counter()  # how often what happened
        self.last_step = 0.0  # when something happened, by the monotonic clock
        self.problem: BaseException | None = None
        self.stopping = threading.Event()

    def run(self) -> None:
        """Until it is told to stop; what goes wrong is kept in `problem`."""
        heart = threading.Thread(target=self._beat, daemon=True)
        heart.start()
        pool = ThreadPoolExecutor(_NUM_WORKERS)
        try:
            while not self.stopping.is_set():
                pods = self._api.send("GET", resources.POD.path(), labelSelector=LABEL_DEPLOYMENT)["items"]
                mine = [pod for pod in pods if pod["metadata"]["namespace"] in self._namespaces]
                due = [(pod, what) for pod in mine for what in self._due_steps(pod)]
                list(pool.map(self._take, *zip(*due, strict=True)) if due else ())
                there = {pod["metadata"]["uid"] for pod in mine}
                self._due = {uid: steps for uid, steps in self._due.items() if uid in there}
                self.stopping.wait(_LOOK_SECONDS)
        except BaseException as problem:
            self.problem = problem
            raise
        finally:
            self.stopping.set()
            pool.shutdown()
            heart.join(10)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is to happen any more to the pods that are there."""
        return not any(list(self._due.values()))

    def _beat(self) -> None:
        """In a thread of its own: a node that is late with it loses its pods."""
        while not self.stopping.is_set():
            for name in self._nodes:
                ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "It is."}
                beat = {"lastHeartbeatTime": rfc3339(time.time())}
                path = resources.NODE.path(None, name, "status")
                body = {"status": {"conditions": [ready | beat]}}
                self._api.send("PATCH", path, body, "application/strategic-merge-patch+json")
            self.stopping.wait(_BEAT_SECONDS)

    def _due_steps(self, pod: Body) -> list[str]:
        """What is to happen to a pod now."""
        uid, now = pod["metadata"]["uid"], time.time()
        inspects = pod_reports.inspects(pod)
        if not inspects and "nodeName" not in pod["spec"]:
            return []  # nothing happens to it before a node has it
        if uid not in self._due:
            fate = [(0.0, "inspect")] if inspects else self.fate(pod)
            self._due[uid] = [(now + seconds, what) for seconds, what in fate]
        steps = self._due[uid]
        if "deletionTimestamp" in pod["metadata"] and not any(what == "end" for _, what in steps):
            steps[:] = [(now + self._dice(pod, "end").uniform(0.0, 1.5), "end")]
        due = next((step for step in steps if step[0] <= now), None)
        if due is None:
            return []
        steps.remove(due)
        return [due[1]]

    def fate(self, pod: Body) -> list[Step]:
        """What is to happen to a pod that has come to a node."""
        plan = self._plan_of(pod)
        kind = self.kind_of(plan)
        self._num_pods[plan] += 1
        dice = self._dice(pod, str(self._num_pods[plan]))
        start = dice.uniform(0.0, 0.5)
        if kind == "crashes":
            return [(start, "run"), (start + 0.4, "crash")]
        if kind == "image":
            return [(start, "image")]
        if kind == "hangs":
            return [(start, "run")]
        ready = start + (dice.uniform(2.0, 4.0) if kind == "slow" else dice.uniform(0.0, 0.5))
        steps = [(start, "run"), (ready, "ready")]
        if self._num_mishaps[plan] >= _MAX_MISHAPS or dice.random() > 0.3:
            return steps
        self._num_mishaps[plan] += 1
        then = ready + dice.uniform(0.2, 3.0)
        mishap = min(dice.sample(MISHAPS, len(MISHAPS)), key=self.done.__getitem__)
        if mishap == "unready":
            return [*steps, (then, "unready"), (then + dice.uniform(0.3, 2.0), "ready")]
        if mishap == "crash-once":
            return [(start, "run"), (start + 0.3, "crash-once"), (then + 1.0, "ready")]
        return [*steps, (then, mishap)]

    def kind_of(self, plan: str) -> str:
        """What all pods of a plan have in common, by "NAMESPACE/NAME/HASH"."""
        dice = random.Random(f"{self._seed}/{plan}")
        return dice.choices(list(_PLANS), list(_PLANS.values()))[0]

    def _dice(self, pod: Body, what: str) -> random.Random:
        return random.Random(f"{self._seed}/{self._plan_of(pod)}/{what}")

    @staticmethod
    def _plan_of(pod: Body) -> str:
        meta = pod["metadata"]
        name, plan = (meta["labels"].get(label, "") for label in (LABEL_DEPLOYMENT, LABEL_PLAN_HASH))
        return f"{meta['namespace']}/{name}/{plan}"

    def _take(self, pod: Body, what: str) -> None:
        now = time.time()
        crash = pod_reports.waiting(pod, now, "CrashLoopBackOff", "back-off 10s restarting server")
        reports = {
            "inspect": pod_reports.inspected(pod, now),
            "run": pod_reports.running(pod, now, ready=False),
            "ready": pod_reports.running(pod, now),
            "unready": pod_reports.running(pod, now, ready=False),
            "crash": crash,
            "crash-once": crash,
            "image": pod_reports.waiting(pod, now, "ImagePullBackOff", "no such image"),
            "evict": pod_reports.evicted(pod, now),
        }
        self.done[what] += 1
        self.last_step = time.monotonic()
        meta = pod["metadata"]
        try:
            if what in reports:
                status = {"status": reports[what]}
                self._api.patch(resources.POD, meta["namespace"], meta["name"], status, "status")
            else:
                options: dict[str, Any] = {"preconditions": {"uid": meta["uid"]}}
                if what == "end":
                    options["gracePeriodSeconds"] = 0
                self._api.send("DELETE", resources.POD.path(meta["namespace"], meta["name"]), options)
        except ApiRefusalError as error:
            if error.status not in (404, 409):  # gone or changed since the list
                raise
