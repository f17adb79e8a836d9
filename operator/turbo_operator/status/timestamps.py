"""When conditions turned. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from turbo_operator import api
from turbo_operator.api.condition_state import ConditionState


def stamp(
    states: Mapping[api.ConditionType, ConditionState],
    old: Sequence[api.Condition],
    generation: int,
    now: float,
) -> tuple[api.Condition, ...]:
    """Return the conditions of these states: one whose status is that of `old` keeps its time."""
    last_times = {(condition.type, condition.status): condition.last_transition_time for condition in old}
    return tuple(
        api.Condition(
            type=kind,
            **dataclasses.asdict(state),
            last_transition_time=last_times.get((kind, state.status), api.rfc3339(now)),
            observed_generation=generation,
        )
        for kind, state in states.items()
    )
