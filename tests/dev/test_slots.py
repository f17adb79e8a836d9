"""Two sandboxes never share addresses or a store."""

from __future__ import annotations

from pathlib import Path
from typing import IO

import pytest

from turbo_dev import slots


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_a_slot_is_taken_once_and_free_again_when_its_lock_is_closed() -> None:
    first, lock = slots.take()
    second, other = slots.take()
    with other:
        assert first.index < second.index
        assert {first.pods, first.services, first.host_link}.isdisjoint(
            {second.pods, second.services, second.host_link}
        )
        lock.close()
        again, lock = slots.take()
        assert again == first
    lock.close()


def test_when_all_are_taken_the_error_says_so() -> None:
    locks: list[IO[str]] = []

    def take_all() -> None:
        for _ in range(slots.SLOTS + 1):
            locks.append(slots.take()[1])  # noqa: PERF401 - what was taken before the error is to be closed

    with pytest.raises(slots.NoSlotError, match="no free sandbox"):
        take_all()
    assert locks
    for lock in locks:
        lock.close()
