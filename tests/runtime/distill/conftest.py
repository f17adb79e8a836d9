"""What commands that run in the test's own process would leave behind."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def threads_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a command settles for its process would hold for the tests behind."""
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "TQDM_DISABLE"):
        was_set = name in os.environ
        monkeypatch.setenv(name, os.environ.get(name, ""))
        if not was_set:
            monkeypatch.delenv(name)  # and it will be again, afterwards
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
