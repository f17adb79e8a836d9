"""A tiny model with prompts."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from turbo_dev.tiny_engine import write


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
