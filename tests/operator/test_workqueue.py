"""The queue's promises, on a real asyncio loop: once per key, one worker per key, backoff, a later look."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections import Counter, defaultdict
from collections.abc import AsyncIterator

import pytest

from turbo_operator.controller.workqueue import WorkQueue


@contextlib.asynccontextmanager
async def running(queue: WorkQueue[str]) -> AsyncIterator[None]:
    task = asyncio.create_task(queue.run())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(condition: asyncio.Event) -> None:
    async with asyncio.timeout(5):
        await condition.wait()


async def test_a_key_added_many_times_before_it_runs_is_worked_on_once() -> None:
    seen: list[str] = []
    done = asyncio.Event()

    async def work(key: str) -> None:
        seen.append(key)
        if key == "last":
            done.set()

    queue: WorkQueue[str] = WorkQueue(work)
    for key in ("a", "a", "b", "a", "last"):
        queue.add(key)
    assert queue.num_waiting == 3
    async with running(queue):
        await until(done)
    assert seen == ["a", "b", "last"]


async def test_a_key_added_while_it_is_worked_on_runs_exactly_once_more() -> None:
    runs = 0
    started, may_end, second = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def work(key: str) -> None:
        nonlocal runs
        runs += 1
        started.set()
        await may_end.wait()
        if runs == 2:
            second.set()

    queue: WorkQueue[str] = WorkQueue(work, num_workers=4)
    async with running(queue):
        queue.add("a")
        await until(started)
        queue.add("a")
        queue.add("a")
        may_end.set()
        await until(second)
        await asyncio.sleep(0.05)
    assert runs == 2


async def test_no_key_is_ever_worked_on_by_two_workers_and_none_is_lost() -> None:
    """Random interleavings: every add is followed by a run that started after it."""
    dice = random.Random(7)
    running_now: Counter[str] = Counter()
    started: defaultdict[str, int] = defaultdict(int)
    clock = 0

    async def work(key: str) -> None:
        nonlocal clock
        running_now[key] += 1
        assert running_now[key] == 1
        clock += 1
        started[key] = clock
        for _ in range(dice.randrange(4)):
            await asyncio.sleep(0)
        running_now[key] -= 1

    queue: WorkQueue[str] = WorkQueue(work, num_workers=3)
    added: dict[str, int] = {}
    async with running(queue):
        for _ in range(2000):
            key = dice.choice("abcdefg")
            added[key] = clock
            queue.add(key)
            for _ in range(dice.randrange(3)):
                await asyncio.sleep(0)
        await asyncio.sleep(0.2)
    assert started.keys() == added.keys()
    assert all(started[key] > added[key] for key in added)


async def test_failures_back_off_exponentially_up_to_a_bound_and_success_resets_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    loop = asyncio.get_running_loop()
    times: list[float] = []
    done = asyncio.Event()
    wrong = {1, 2, 3, 4, 6}

    async def work(key: str) -> float | None:
        times.append(loop.time())
        if len(times) in wrong:
            raise RuntimeError(f"failure {len(times)}")
        if len(times) == 7:
            done.set()
        return 0.0

    queue: WorkQueue[str] = WorkQueue(work, first_backoff_seconds=0.02, max_backoff_seconds=0.08)
    async with running(queue):
        queue.add("a")
        await until(done)
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    for gap, expected in zip(gaps, [0.02, 0.04, 0.08, 0.08, 0.0, 0.02], strict=True):
        assert gap >= expected  # a busy machine makes it longer
    told = [record.getMessage() for record in caplog.records if "tried again" in record.getMessage()]
    assert [line.split(" s:")[0].split()[-1] for line in told] == ["0.0", "0.0", "0.1", "0.1", "0.0"]


async def test_one_failing_key_does_not_hold_up_another() -> None:
    good = asyncio.Event()

    async def work(key: str) -> None:
        if key == "bad":
            raise RuntimeError("broken for ever")
        good.set()

    queue: WorkQueue[str] = WorkQueue(work, num_workers=1, first_backoff_seconds=0.001)
    async with running(queue):
        queue.add("bad")
        queue.add("good")
        await until(good)


async def test_the_earliest_of_several_later_looks_counts() -> None:
    loop = asyncio.get_running_loop()
    start = loop.time()
    times: list[float] = []
    done = asyncio.Event()

    async def work(key: str) -> None:
        times.append(loop.time() - start)
        done.set()

    queue: WorkQueue[str] = WorkQueue(work)
    async with running(queue):
        queue.add_after("a", 30.0)
        queue.add_after("a", 0.05)
        queue.add_after("a", 20.0)
        await until(done)
        await asyncio.sleep(0.02)
    assert len(times) == 1
    assert 0.05 <= times[0] < 0.5


async def test_an_add_replaces_the_look_that_was_due() -> None:
    runs: list[str] = []
    done = asyncio.Event()

    async def work(key: str) -> None:
        runs.append(key)
        done.set()

    queue: WorkQueue[str] = WorkQueue(work)
    async with running(queue):
        queue.add_after("a", 0.03)
        queue.add("a")
        await until(done)
        await asyncio.sleep(0.08)
    assert runs == ["a"]


async def test_work_that_names_its_next_look_is_run_again_then() -> None:
    runs = 0
    done = asyncio.Event()

    async def work(key: str) -> float:
        nonlocal runs
        runs += 1
        if runs == 3:
            done.set()
        return 0.01

    queue: WorkQueue[str] = WorkQueue(work)
    async with running(queue):
        queue.add("a")
        await until(done)
    assert runs >= 3
