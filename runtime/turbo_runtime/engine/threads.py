"""How many threads of a CPU compute, and how one waits for the others: by sleeping, or by spinning first.

Waking up takes as long as a small product, and the system often puts a thread that wakes up on the core of
the one that woke it. A thread that spins burns the time that its sibling needs if they share a core: beside
one busy neighbor on two cores a step took from two to four times as long. So threads spin only on cores that
the pod has for itself, as the kubelet's static CPU manager gives them, and only for about as long as the
operations between two products take. That manager also takes those cores from all other pods, which then may
use fewer than the machine has but share them: what tells them apart is that they request no whole cores, or
fewer than they may use.

OpenMP reads its environment once, as torch is imported: all this comes before.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import MutableMapping
from math import ceil, inf, log2
from pathlib import Path

from turbo_runtime.messages import ThreadSettings

SPINS = 10_000  # from 0.1 to 0.5 ms
FREE_SHARE = 0.9  # of each thread's time, from which on nobody else computes on these cores
MEASURE_SECONDS = 0.05
_VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
_TUNABLES, _HUGE_PAGES = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"
_ONLINE = Path("/sys/devices/system/cpu/online")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # a container sees its own group here
_WEIGHT = Path("/sys/fs/cgroup/cpu.weight")


def settle_threads(threads: int | None, ranks: int = 1) -> ThreadSettings:
    """Fix the number of threads (None: as many as allowed cores) and how they wait, unless the environment
    says it; as many as that in each of `ranks` processes. Before torch is imported.

    And let torch ask for huge pages, where Linux offers them: products over weights in small ones took a
    tenth longer, and to give the logits of 256 requests back took 3 ms a step.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    count = threads or len(os.sched_getaffinity(0))
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    if given := [f"{name}={os.environ[name]}" for name in _VARIABLES if os.environ.get(name)]:
        return ThreadSettings(count, "environment", f"{' and '.join(given)} is set")
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # also says that they never spin where there are too many
    if reason := _why_sleep(count, ranks):
        return ThreadSettings(count, "sleep", reason)
    os.environ["GOMP_SPINCOUNT"] = str(SPINS)
    return ThreadSettings(count, "spin", "the pod has its cores to itself")


def ask_for_huge_pages(environment: MutableMapping[str, str]) -> None:
    """Let a process that starts with it hold all that it allocates in huge pages, where glibc (2.35) and
    Linux offer them: most matrices of a small model are smaller than torch's own threshold, and products over
    them took a tenth (float32) to a quarter (bfloat16) longer.
    """
    given = environment.get(_TUNABLES, "")
    if _HUGE_PAGES not in given:
        environment[_TUNABLES] = ":".join(filter(None, (given, f"{_HUGE_PAGES}=1")))


def _why_sleep(count: int, ranks: int) -> str:
    """Say why threads must not spin; empty where they may."""
    if count == 1:
        return "there is one thread"
    total, allowed = count * ranks, len(os.sched_getaffinity(0))
    online = count_cores(_ONLINE.read_text()) if _ONLINE.is_file() else allowed
    quota = count_quota(_QUOTA.read_text()) if _QUOTA.is_file() else inf
    weight = int(_WEIGHT.read_text()) if _WEIGHT.is_file() else 0
    reason = find_sharing(total, allowed, online, quota, weight)
    return reason or describe_share(measure_share(total))


def find_sharing(threads: int, allowed: int, online: int, quota: float, weight: int) -> str:
    """Say why cores may be shared, by what the system says of them; empty where they are the pod's own."""
    if allowed >= online:
        return "every program of the machine may use the cores"
    if threads != allowed:
        return f"there are {threads} threads for {allowed} cores"
    if quota < threads:
        return f"a CPU quota of {quota:g} cores counts what spins"
    if weight not in weights_of(threads):
        return f"the pod does not request {threads} cores, and others may have the same"
    return ""


def weights_of(cores: int) -> set[int]:
    """Return the `cpu.weight` of a request of whole cores, as container runtimes convert its shares: until
    2025 in proportion, and since then by a curve (opencontainers/cgroups#20).
    """
    shares = min(1024 * cores, 1 << 18)
    bits = log2(shares)
    curve = ceil(10 ** ((bits * bits + 125 * bits) / 612 - 7 / 34))
    return {1 + (shares - 2) * 9999 // 262142, min(curve, 10_000)}


def describe_share(share: float) -> str:
    """Say that others compute on the cores, by the least share that a thread got; empty if it was free."""
    return "" if share >= FREE_SHARE else f"other programs took {1 - share:.0%} of a core at start"


def count_cores(ranges: str) -> int:
    """Count the numbers of a list of ranges, as `0-3,8`."""
    bounds = [part.partition("-") for part in ranges.strip().split(",")]
    return sum(int(last or first) - int(first) + 1 for first, _, last in bounds)


def count_quota(text: str) -> float:
    """Read a control group's `cpu.max`: the cores that it may use, infinity where it has no quota."""
    quota, period = text.split()
    return inf if quota == "max" else int(quota) / int(period)


def measure_share(threads: int, seconds: float = MEASURE_SECONDS) -> float:
    """Compute with so many threads at once, and return the least share of the time that one got a core."""
    shares: list[float] = []

    def compute() -> None:
        began, used = time.perf_counter(), time.thread_time()
        while time.perf_counter() - began < seconds:
            hashlib.pbkdf2_hmac("sha256", b"", b"", 2000)  # without Python's lock
        shares.append((time.thread_time() - used) / (time.perf_counter() - began))

    workers = [threading.Thread(target=compute) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return min(shares)
