"""What is remembered between two looks belongs to an object, not to its name."""

from __future__ import annotations

from turbo_operator.autoscaler import Event, History
from turbo_operator.controller.cache.store import Key
from turbo_operator.controller.memo import Memo, Memos

KEY = Key("team", "chat")
PAST = History(events=(Event(0.0, 1, 8, "Scaling"),), present=8)


def test_the_same_object_has_its_past_and_one_made_again_under_its_name_has_none() -> None:
    memories = Memos()
    first = memories.of(KEY, "first")
    first.history, first.announced = PAST, "plan"
    assert memories.of(KEY, "first").history == PAST
    assert memories.of(KEY, "second") == Memo("second")
    assert memories.of(KEY, "first") == Memo("first")


def test_of_what_is_gone_nothing_is_kept() -> None:
    memories = Memos()
    memories.of(KEY, "first").announced = "plan"
    del memories[KEY]
    assert memories.of(KEY, "first").announced is None
