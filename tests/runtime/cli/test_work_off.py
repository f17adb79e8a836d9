"""Ctrl-C in the middle of work ends it, wherever it falls."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from turbo_dev.server_process import PATIENCE
from turbo_runtime.client.client import work_off

INTERRUPT_OFTEN = """
import random, signal
from turbo_runtime.client.client import work_off
signal.signal(signal.SIGALRM, signal.default_int_handler)
draw, interrupts = random.Random(1), 0
for _ in range(300):
    try:
        signal.setitimer(signal.ITIMER_REAL, draw.uniform(1e-4, 2e-3))
        work_off(range(5_000), lambda _: None, 2)
        signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        interrupts += 1
print(interrupts)
"""


def test_an_interrupt_at_any_moment_is_an_interrupt_and_leaves_nothing_that_waits_for_ever() -> None:
    """A pool of threads had locks of its own: held by the interrupted thread, they hung the command."""
    ended = subprocess.run(
        [sys.executable, "-c", INTERRUPT_OFTEN],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) > 30


def test_work_is_done_once_each_by_so_many_at_a_time() -> None:
    done, together = list[int](), threading.Barrier(3)

    def work(item: int) -> None:
        together.wait(PATIENCE)
        done.append(item)

    work_off(range(9), work, 3)
    assert sorted(done) == list(range(9))


def test_the_first_error_ends_it_and_nothing_more_begins() -> None:
    begun = list[int]()

    def work(item: int) -> None:
        begun.append(item)
        raise ValueError(f"item {item}")

    with pytest.raises(ValueError, match="item 0"):
        work_off(range(1000), work, 1)
    assert len(begun) < 1000


def test_no_items_are_no_work() -> None:
    work_off([], lambda _: pytest.fail("there is nothing to do"), 4)
