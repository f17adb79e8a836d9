"""One reading of a model for all TurboDeployments that would make the same pod to read it at the same time.

Of a thousand objects with one model, the first makes its inspect Job; the others take what that finds out, or
read for themselves where it fails, is late or goes away. Pods are the same but for the operator's labels:
whatever one may read, the other may too. All of it is lost with the process, which is safe: an answer that
was taken is kept in the ConfigMap of each object.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from turbo_operator import render
from turbo_operator.api import GROUP, TurboDeployment
from turbo_operator.controller.cache.store import Key
from turbo_operator.render.metadata import digest
from turbo_operator.settings import Settings
from turbo_operator.snapshot import Snapshot
from turbo_runtime.contract.documents import ModelInfo

ANSWER_SECONDS = 60.0  # how long an answer counts as current: the branch of a hub moves
PATIENCE_SECONDS = 120.0  # how long an object waits for the Job of another one

Question = str


@dataclass(slots=True)
class _Reading:
    reader: Key
    start: float
    has_failed: bool = False  # nobody waits for it any more
    waiting: set[Key] = field(default_factory=set)


class Inspections:
    """Who reads which model. `wake` has a key looked at that waits no longer."""

    def __init__(self, wake: Callable[[Key], None]) -> None:
        self._wake = wake
        self._questions: dict[Key, tuple[Question, str]] = {}  # the last of each, and the hash of its source
        self._known: set[Key] = set()  # whose model was known at the last look
        self._readings: dict[Question, _Reading] = {}
        self._answers: dict[Question, tuple[ModelInfo, float]] = {}
        # What was taken from others, until the own ConfigMap has it.
        self._taken: dict[Key, ModelInfo] = {}

    def share(
        self, key: Key, td: TurboDeployment, observed: Snapshot, settings: Settings, now: float
    ) -> Snapshot:
        """Return what is observed with the answer of another object, or with whose answer is awaited.

        `now` is in seconds since the epoch.
        """
        source = render.source_hash(td)
        if observed.model is not None:
            if self._questions.get(key, ("", source))[1] != source:  # it went back to the model before
                self.forget(key)
            self._keep(key, observed.model, now)
            return observed
        if td.spec.suspend and td.spec.plan_policy.recommends:  # it makes neither a Job nor a ConfigMap
            self.forget(key)
            return observed
        job = render.inspection(td, observed, settings)[0]
        question = question_of(job)
        children = {(child.kind, child.name): child for child in observed.children}
        own = children.get(("Job", job["metadata"]["name"]))
        # Its ConfigMap was deleted, so that the model is inspected again.
        is_again = key in self._known and ("ConfigMap", render.model_configmap_name(td)) not in children
        self._known.discard(key)
        if self._questions.get(key) != (question, source):
            self.forget(key)
            self._questions[key] = question, source
        if is_again:
            self._answers.pop(question, None)
        reading = self._readings.get(question)
        if own is not None or is_again:
            reading = reading or self._readings.setdefault(question, _Reading(key, now))
            # A pod that waits for a node may get one that is yet to come.
            held_up = any(pod.reason and pod.pending_since is None for pod in observed.inspecting)
            is_failing = own is not None and (own.failed or held_up)
            if reading.reader == key and is_failing:
                self._release(reading)
            return observed
        facts, time = self._answers.get(question, (None, 0.0))
        if facts is not None and now - time < ANSWER_SECONDS:
            self._taken[key] = facts
        if key in self._taken:
            return dataclasses.replace(observed, model=self._taken[key], model_error=None)
        if reading is None:
            self._readings[question] = _Reading(key, now)
        is_awaited = reading is not None and reading.reader != key and not reading.has_failed
        if reading is not None and is_awaited and now - reading.start < PATIENCE_SECONDS:
            reading.waiting.add(key)
            return dataclasses.replace(observed, inspected_by=reading.reader.name)
        return observed

    def fail(self, key: Key) -> None:
        """Have nobody wait for an object whose Job the API server refuses."""
        question, _ = self._questions.get(key, ("", ""))
        reading = self._readings.get(question)
        if reading is not None and reading.reader == key:
            self._release(reading)

    def forget(self, key: Key) -> None:
        """Forget an object that is gone or has another model; release those that wait for it."""
        self._known.discard(key)
        self._taken.pop(key, None)
        question, _ = self._questions.pop(key, ("", ""))
        reading = self._readings.get(question)
        if reading is not None and reading.reader == key:
            del self._readings[question]
            self._release(reading)

    def _keep(self, key: Key, facts: ModelInfo, now: float) -> None:
        """Keep what an object has found out by itself, for those that wait and those to come."""
        is_new, (question, _) = key not in self._known, self._questions.get(key, ("", ""))
        self._known.add(key)
        if self._taken.pop(key, None) is not None or not question or not is_new:
            return
        self._answers = {
            each: (known, time)
            for each, (known, time) in self._answers.items()
            if now - time < ANSWER_SECONDS
        }
        self._answers[question] = facts, now
        if reading := self._readings.pop(question, None):
            self._release(reading)

    def _release(self, reading: _Reading) -> None:
        reading.has_failed = True
        for key in sorted(reading.waiting):
            self._wake(key)
        reading.waiting.clear()


def question_of(job: Mapping[str, Any]) -> Question:
    """Return what an inspect Job reads and as who: namespace and pod, but for the operator's labels."""
    template = job["spec"]["template"]
    labels = {name: value for name, value in template["metadata"]["labels"].items() if not _is_own(name)}
    identity = labels, template["metadata"].get("annotations"), template["spec"]
    return digest([job["metadata"]["namespace"], *identity])


def _is_own(label: str) -> bool:
    """Whether the operator sets a label of its pods, which a spec may not."""
    return label.startswith((f"{GROUP}/", "app.kubernetes.io/"))
