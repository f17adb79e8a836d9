"""A tiny model with prompts, and what commands that run in the test's own process would leave behind."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from turbo_dev.tiny_engine import write


@pytest.fixture
def threads_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a command settles for its process would hold for the tests behind."""
    names = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "THP_MEM_ALLOC_ENABLE", "TQDM_DISABLE")
    for name in names:
        was_set = name in os.environ
        monkeypatch.setenv(name, os.environ.get(name, ""))
        if not was_set:
            monkeypatch.delenv(name)  # and it will be again, afterwards
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model and prompts of two domains, more than are answered together."""
    made = tmp_path_factory.mktemp("distill")
    write(made / "model")
    lots = random.Random(5)
    for domain in ("left", "right"):
        words = ["".join(lots.choice("abcdef{}:\n") for _ in range(lots.randint(3, 30))) for _ in range(80)]
        (made / f"{domain}.jsonl").write_text("".join(json.dumps({"prompt": word}) + "\n" for word in words))
    return made
