"""The PodDisruptionBudget counts from the replicas that are wanted."""

from __future__ import annotations

import pytest

from turbo_dev.small_world import World
from turbo_dev.trainings import seen, td
from turbo_operator import render
from turbo_operator.settings import Settings


@pytest.mark.parametrize(("replicas", "available"), [(0, 0), (1, 0), (2, 1), (5, 4)])
def test_a_drained_node_moves_one_of_the_replicas_and_never_waits_for_one_that_does_not_serve(
    replicas: int, available: int
) -> None:
    """Found on the real node: in a rollout, whose Deployments ask for fewer, the last one was evicted."""
    made = render.children(td(), seen(), None, (), Settings(runtime_image="r:1"), replicas=replicas)
    (spec,) = (each["spec"] for each in made if each["kind"] == "PodDisruptionBudget")
    assert (spec["minAvailable"], spec["unhealthyPodEvictionPolicy"]) == (available, "AlwaysAllow")
    assert "maxUnavailable" not in spec


async def test_where_fewer_replicas_fit_than_are_wanted_a_node_can_still_be_drained() -> None:
    """Found in review: two of three fit, both were needed, and a drain waited for ever."""
    world = World()
    room = {"allowed": ["cpu"], "maxTotal": 2}
    await world.written(
        td(absent=True, spec={"accelerators": room, "replicas": 3, "scaling": {"mode": "External"}})
    )
    await world.settled()
    assert list(world.replicas.values()) == [2]
    assert world.server.objects["PodDisruptionBudget", "chat"]["spec"]["minAvailable"] == 1
