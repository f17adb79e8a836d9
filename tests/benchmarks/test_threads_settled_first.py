"""Benchmarks whose engine runs in their own process settle its threads before torch reads how they wait."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parents[2] / "benchmarks"
SETTLING = sorted(path.stem for path in HERE.glob("*.py") if "settle_process(" in path.read_text())


def test_some_settle_threads() -> None:
    assert "host_time" in SETTLING


@pytest.mark.parametrize("name", SETTLING)
def test_torch_is_not_imported_with_the_benchmark(name: str) -> None:
    program = f"import sys, {name}; sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
