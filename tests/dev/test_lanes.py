"""The queue of tests that run side by side."""

import os
import subprocess
import sys
from pathlib import Path

from turbo_dev import lanes

TESTS = Path(__file__).parents[1]


def test_clusters_come_first_and_models_before_what_is_quick() -> None:
    files = sorted(TESTS.rglob("test_*.py"), key=lanes.order)
    kinds = [lanes.lane_of(file) for file in files]
    shared = [kind for kind in kinds if kind in lanes.SHARED]
    assert shared == sorted(shared, key=lanes.SHARED.index) == kinds[: len(shared)]
    with_models = ["runtime" in file.parts for file in files[len(shared) :]]
    assert with_models == sorted(with_models, reverse=True)
    assert set(lanes.SHARED) < set(kinds)


def test_what_shares_no_cluster_gives_way_in_a_worker_and_only_once() -> None:
    code = f"""
import os
from pathlib import Path
from turbo_dev import lanes
before = os.nice(0)
lanes.give_way(Path({str(TESTS / "e2e" / "test_reconcile.py")!r}))
assert os.nice(0) == before
for _ in range(2):
    lanes.give_way(Path({__file__!r}))
print(os.nice(0))
"""
    for worker, nice in (({}, os.nice(0)), ({"PYTEST_XDIST_WORKER": "gw0"}, max(os.nice(0), lanes.NICE))):
        environment = {k: v for k, v in os.environ.items() if k != "PYTEST_XDIST_WORKER"}
        ran = subprocess.run(
            [sys.executable, "-c", code], env=environment | worker, capture_output=True, text=True
        )
        assert (ran.stdout, ran.stderr) == (f"{nice}\n", "")
