"""One random history of a rollout from its seed to its rest."""

from __future__ import annotations

import random
from collections.abc import Callable

from turbo_dev.rollout_history import TICK, Planner, World
from turbo_dev.rollout_laws import BrokenLawError
from turbo_operator.rollout import next_step
from turbo_operator.rollout.variants import SILENT_SECONDS

EVENTFUL = 60  # ticks in which anything may happen
QUIET = 140  # in which it has to come to rest


def history(seed: int, planner: Planner = next_step) -> World:
    """One history from its seed to its rest; raises BrokenLawError where a law is broken or it never ends."""
    world = World(random.Random(seed), planner)
    world.begin()
    for _ in range(EVENTFUL):
        world.something_happens()
        _tick(world, lag=True, meanwhile=world.change_in_a_bad_moment)
    world.canary = None
    if world.training is not None:
        world.train()
    for each in world.variants.values():
        for pod in each.pods:
            pod.hung = False
    for _ in range(QUIET):
        _tick(world, lag=False)
        if world.rests() and _tick_changes_nothing(world):
            return world
    raise BrokenLawError(f"it never ends: {world.last}, {world.states()}")


def _tick(world: World, lag: bool, meanwhile: Callable[[], None] = lambda: None) -> None:
    world.now += TICK
    world.controllers_act(lag)
    meanwhile()
    if not lag or world.dice.random() < 0.8:
        world.look()


def _tick_changes_nothing(world: World) -> bool:
    before = world.last
    for _ in range(2 * int(SILENT_SECONDS / TICK)):  # what goes and comes back does so as often as this
        _tick(world, lag=False)
    return before is not None and world.last is not None and world.last.replicas == before.replicas
