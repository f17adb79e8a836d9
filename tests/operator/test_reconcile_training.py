"""What the reconcile writes of a training, against an API server of a few lines."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from prometheus_client import REGISTRY

from turbo_dev.small_world import KEY, World
from turbo_dev.trainings import td
from turbo_operator.api import TurboDeployment
from turbo_operator.controller.kube import KubeError


def asked(**more: Any) -> TurboDeployment:
    return td(spec={"accelerators": {"allowed": ["cpu"]}, "capture": None, **more.pop("spec", {})}, **more)


async def test_a_job_that_has_not_run_makes_room_for_what_the_spec_asks_for_now() -> None:
    world = World()
    await world.written(asked(acceleratorName="cpu"))
    await world.settled()
    first = world.jobs
    assert list(first) == ["chat-train-1"]
    await world.settled()
    assert (world.jobs, world.server.deleted) == (first, [])

    secrets = {"spec": {"podTemplate": {"spec": {"imagePullSecrets": [{"name": "right"}]}}}}
    await world.written(asked(acceleratorName="cpu", **secrets))
    await world.settled()
    assert "chat-train-1" in world.server.deleted
    second = world.jobs
    assert list(second) == ["chat-train-1"]
    assert second != first

    await world.written(
        asked(acceleratorName="cpu", prompts={"type": "ConfigMap", "configMap": {"name": "right"}}, **secrets)
    )
    await world.settled()
    third = world.jobs
    assert list(third) == ["chat-train-1"]
    assert third != second

    running = [{"name": "train", "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}]
    world.pod_of("chat-train-1", phase="Running", containerStatuses=running)
    await world.written(asked(acceleratorName="cpu", maxOutputTokens=64))
    await world.settled()
    assert world.jobs == third


async def test_an_end_is_counted_once_it_is_written_and_once_only() -> None:
    def counted() -> float:
        labels = {"namespace": "team", "name": "chat", "result": "TrainingFailed"}
        return REGISTRY.get_sample_value("turbo_trainings_total", labels) or 0.0

    world = World()
    await world.written(asked(acceleratorName="cpu"))
    await world.settled()
    before = counted()
    ended = {"exitCode": 3, "message": "no", "startedAt": "2026-01-01T00:00:00Z"}
    over = [{"name": "train", "state": {"terminated": ended}}]
    world.pod_of("chat-train-1", phase="Failed", containerStatuses=over)
    failed = copy.deepcopy(world.server.objects["Job", "chat-train-1"])
    failed["metadata"]["resourceVersion"] = "1000"
    failed["status"] = {"conditions": [{"type": "Failed", "status": "True", "reason": "PodFailurePolicy"}]}
    world.cache.put_child(failed)
    world.server.unable = True
    with pytest.raises(KubeError):
        await world.reconciler.reconcile(KEY)
    assert counted() == before
    world.server.unable = False
    await world.settled()
    assert world.status["training"]["result"] == "TrainingFailed"
    assert counted() == before + 1
    assert list(world.jobs) == ["chat-train-1"]  # with its logs


async def test_what_a_training_that_waits_was_told_is_among_what_a_count_may_outdate() -> None:
    world = World()
    await world.written(asked())
    await world.settled()
    plan, _ = world.reconciler.plans_of(KEY)
    await world.written(asked(suspend=True))
    await world.settled()
    assert [each.choice for each in world.reconciler.plans_of(KEY)] == [plan.choice]


async def test_an_object_that_is_gone_is_not_looked_at_again_until_its_event_comes() -> None:
    """The status of one that was deleted is refused with 404: asking again at once would never end."""
    world = World()
    await world.written(td(absent=True))
    world.server.gone = True
    assert await world.reconciler.reconcile(KEY) is None


async def test_a_training_and_a_replica_that_is_added_never_begin_in_one_look() -> None:
    """Found in review: each was decided by a count without the other, and four held what three may."""
    limits = {"accelerators": {"allowed": ["cpu"], "maxTotal": 3}}
    spec = {**limits, "replicas": 2, "scaling": {"mode": "External"}}
    world = World()
    await world.written(asked(absent=True, spec=spec))
    await world.settled()
    world.run_pods()
    await world.written(
        asked(spec={**spec, "podTemplate": {"spec": {"imagePullSecrets": [{"name": "new"}]}}})
    )
    held = []
    for _ in range(12):
        await world.reconciler.reconcile(KEY)
        held.append(sum(world.replicas.values()) + len(world.jobs))
        world.run_pods()
    assert max(held) == 3
    assert "chat-train-1" not in world.server.deleted
    assert list(world.jobs) == ["chat-train-1"]
    assert sorted(world.replicas.values()) == [2]
