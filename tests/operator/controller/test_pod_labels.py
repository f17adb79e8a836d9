"""Labels of pods are put back while patches are slow, refused or unanswered."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest

from turbo_dev.small_world import KEY, World, served
from turbo_operator.api import LABEL_OWNER_UID
from turbo_operator.controller import child_writer, pod_labels, reconciler
from turbo_operator.controller.kube import KubeError, RefusedError

DENIED = RefusedError(403, "Forbidden", 'admission webhook "pods.x" denied the request')
SILENT = KubeError(0, "Unreachable", "the API server did not answer: nothing came in time")
THEIRS = {LABEL_OWNER_UID: "somebody's"}


class Clock:
    """The clock of these modules; what waits moves it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.late = 0.0
        clock = SimpleNamespace(monotonic=lambda: time.monotonic() + self.late)
        for module in (child_writer, reconciler, pod_labels):
            monkeypatch.setattr(module, "time", clock)

    async def look(self, world: World) -> None:
        """One look, and the wait for the next as the queue has it."""
        before, wait = self.late, 120.0
        with suppress(KubeError):
            wait = await world.reconciler.reconcile(KEY) or 0.0
        self.late += wait
        world.now += self.late - before


def answer_patches(
    world: World, monkeypatch: pytest.MonkeyPatch, answer: Callable[[str], Awaitable[None]]
) -> list[str]:
    """Have pods patched by `answer`; the names of those that were, in order."""
    patched: list[str] = []

    async def merge(resource: Any, namespace: str, name: str, patch: Any) -> dict[str, Any]:
        patched.append(name)
        await answer(name)
        return {}

    monkeypatch.setattr(world.server, "merge", merge)
    return patched


@pytest.mark.parametrize("error", [DENIED, SILENT], ids=["refused", "unanswered"])
async def test_pods_whose_patches_take_long_and_fail_keep_no_other_from_its_turn(
    monkeypatch: pytest.MonkeyPatch, error: KubeError
) -> None:
    """Found in review: they were tried by name, so one behind five slow ones had no traffic for an hour."""
    world, name = await served(replicas=8)
    clock, last = Clock(monkeypatch), f"{name}-x-5"

    async def answer(pod: str) -> None:
        if pod != last:
            clock.late += 20.0
            raise error

    patched = answer_patches(world, monkeypatch, answer)
    for number in range(6):
        world.relabel(f"{name}-x-{number}", THEIRS)
    for _ in range(6):
        await clock.look(world)
    assert set(patched) == {f"{name}-x-{number}" for number in range(6)}, patched


async def test_a_refusal_is_told_at_each_look_though_another_patch_takes_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Found in review: it was forgotten in looks that ended early, and an alert on Stalled flapped."""
    world, name = await served(replicas=3)
    clock = Clock(monkeypatch)

    async def answer(pod: str) -> None:
        if pod == f"{name}-x-1":
            raise DENIED
        clock.late += 4.0

    answer_patches(world, monkeypatch, answer)
    world.relabel(f"{name}-x-1", THEIRS)
    told = set()
    for number in range(10):
        uid = world.server.objects["TurboDeployment", "chat"]["metadata"]["uid"]
        world.relabel(f"{name}-x-0", THEIRS if number % 2 else {LABEL_OWNER_UID: uid})
        clock.late += 70
        await world.reconciler.reconcile(KEY)
        told.add((world.condition("Ready")[1], world.condition("Stalled")[0]))
    assert told == {("ApplyRejected", "True")}
