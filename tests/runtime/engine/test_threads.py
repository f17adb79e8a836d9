"""Threads wait for each other as the environment says, or spin where the cores are the pod's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from math import inf
from pathlib import Path
from typing import Any

import pytest

from turbo_runtime.contract.config import RuntimeConfig
from turbo_runtime.engine import threads
from turbo_runtime.engine.threads import (
    SPINS,
    count_cores,
    count_quota,
    describe_share,
    find_sharing,
    settle_threads,
    weights_of,
)
from turbo_runtime.messages import EngineFailed, ThreadSettings
from turbo_runtime.server.engine_client import EngineClient

VARIABLES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


@pytest.fixture(autouse=True)
def untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process whose environment says nothing of threads."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # and as before, afterwards
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ((4, 4, 8, inf, 157), ""),
        ((4, 4, 8, 4.0, 303), ""),
        ((4, 8, 8, inf, 157), "every program of the machine may use the cores"),
        ((2, 4, 8, inf, 79), "there are 2 threads for 4 cores"),
        ((4, 4, 8, 3.5, 157), "a CPU quota of 3.5 cores counts what spins"),
        # what a node's other pods may use as well: all cores that none has for itself
        ((4, 4, 8, inf, 1), "the pod does not request 4 cores, and others may have the same"),
        ((4, 4, 8, 4.0, 79), "the pod does not request 4 cores, and others may have the same"),
        ((4, 4, 8, inf, 100), "the pod does not request 4 cores, and others may have the same"),
    ],
)
def test_cores_are_the_pods_own_if_there_are_as_many_as_threads_and_fewer_than_the_machine_has(
    facts: tuple[int, int, int, float, int], reason: str
) -> None:
    assert find_sharing(*facts) == reason


def test_cores_on_which_others_compute_are_shared_whatever_the_system_says_of_them() -> None:
    assert describe_share(0.97) == ""
    assert describe_share(0.5) == "other programs took 50% of a core at start"


@pytest.mark.parametrize(("ranges", "count"), [("0", 1), ("0-3\n", 4), ("0-3,8,10-11", 7)])
def test_cores_are_counted_from_a_list_of_ranges(ranges: str, count: int) -> None:
    assert count_cores(ranges) == count


@pytest.mark.parametrize(("text", "cores"), [("max 100000\n", inf), ("250000 100000\n", 2.5)])
def test_a_quota_is_read_in_cores(text: str, cores: float) -> None:
    assert count_quota(text) == cores


@pytest.mark.parametrize(("cores", "weights"), [(1, {39, 100}), (8, {313, 532}), (300, {10_000})])
def test_a_request_of_whole_cores_has_the_weight_that_container_runtimes_give_it(
    cores: int, weights: set[int]
) -> None:
    assert weights_of(cores) == weights


def test_where_the_system_does_not_say_which_cores_there_are_threads_sleep(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("_ONLINE", "_QUOTA", "_WEIGHT"):
        monkeypatch.setattr(threads, name, tmp_path / name)
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: {0, 1})
    assert settle_threads(2).wait == "sleep"


def test_threads_that_compute_at_once_get_a_share_of_a_core() -> None:
    assert 0 < threads.measure_share(2, seconds=0.01) <= 1.05


def test_one_thread_waits_for_nobody() -> None:
    assert settle_threads(1) == ThreadSettings(1, "sleep", "there is one thread")
    assert os.environ["OMP_NUM_THREADS"] == "1"


def test_what_the_environment_says_of_waiting_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "77")
    assert settle_threads(2) == ThreadSettings(2, "environment", "GOMP_SPINCOUNT=77 is set")
    assert "OMP_WAIT_POLICY" not in os.environ


@pytest.mark.parametrize(("reason", "spins"), [("", str(SPINS)), ("the cores are shared", "0")])
def test_the_openmp_that_torch_loads_waits_as_settled(
    reason: str, spins: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "_why_sleep", lambda *_: reason)
    settled = settle_threads(2)
    assert settled.wait == ("sleep" if reason else "spin")
    environment = {**os.environ, "OMP_DISPLAY_ENV": "verbose"}
    shown = subprocess.run(
        [sys.executable, "-c", "import torch; print(torch.get_num_threads())"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(shown.stdout) == 2
    assert f"GOMP_SPINCOUNT = '{spins}'" in shown.stderr


@pytest.mark.parametrize(
    ("given", "tunables"),
    [
        ({}, "glibc.malloc.hugetlb=1"),
        ({"GLIBC_TUNABLES": ""}, "glibc.malloc.hugetlb=1"),
        ({"GLIBC_TUNABLES": "glibc.malloc.check=3"}, "glibc.malloc.check=3:glibc.malloc.hugetlb=1"),
        ({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}, "glibc.malloc.hugetlb=0"),
    ],
)
def test_a_process_gets_huge_pages_beside_what_its_environment_asks_of_glibc(
    given: dict[str, str], tunables: str
) -> None:
    environment = dict(given)
    for _ in range(2):  # started anew, it inherits what it asked for
        threads.ask_for_huge_pages(environment)
    assert environment == {"GLIBC_TUNABLES": tunables}


def _tell_tunables(*arguments: Any) -> None:
    arguments[2].put(EngineFailed(os.environ["GLIBC_TUNABLES"]))


async def test_the_engine_s_process_starts_with_huge_pages() -> None:
    engine = EngineClient(RuntimeConfig("models/echo"), _tell_tunables, "")
    engine.start()
    assert "glibc.malloc.hugetlb=1" in await engine.ended
    await engine.stop()
