"""The part of `load` that looks at memory fills every cache, and sees what is kept for nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from proofs.growth import Growth


@pytest.fixture
def growth(tmp_path: Path) -> Iterator[Growth]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    made = Growth(tmp_path)
    yield made
    made.close()
    torch.set_num_threads(before)


def test_caches_are_full_first_and_a_leak_is_seen_then(growth: Growth) -> None:
    growth.ask(200)
    assert not growth.full
    before = growth.ask(1000)
    assert growth.full
    assert growth.engine.stats().prefix_cache_hits > 0
    assert growth.engine.stats().drafts > 0
    kept: list[bytes] = []
    drafters, finish = growth.engine.speculation.drafters, growth.engine.speculation.drafters.finish

    def leaking(*asked: object) -> None:
        kept.append(bytes(16 << 10))
        finish(*asked)  # type: ignore[arg-type]

    drafters.finish = leaking  # type: ignore[method-assign]
    after = growth.ask(400)
    assert len(kept) == 400
    assert after - before > 5
