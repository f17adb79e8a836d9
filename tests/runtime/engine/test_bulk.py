"""Full pieces of hundreds of rows are taken up where rows hold in them, and change no bits; else none are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from turbo_dev.tiny_engine import network
from turbo_runtime.engine.startup.invariance_check import adopt_bulk, check_batch_invariance
from turbo_runtime.kv_cache.block_pool import blocks_for
from turbo_runtime.models.matmul import BULK, COUNTS, FORMS, PANELS, BatchInvariantLinear
from turbo_runtime.models.runner import ModelRunner
from turbo_runtime.models.step_batch import Chunk

LONGEST, STEP = 640, 600


@pytest.fixture(autouse=True)
def no_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Panels take any number of rows, and have no full pieces."""
    forms = tuple(form for form in FORMS if form != PANELS)
    monkeypatch.setattr(BatchInvariantLinear, "host_forms", forms)


def checked() -> ModelRunner:
    """A model without full pieces: its steps have fewer rows."""
    model = ModelRunner(network(), blocks=2 * blocks_for(LONGEST), max_length=LONGEST)
    report = check_batch_invariance(model, COUNTS[-1], limit_seconds=60)
    assert report.guarantee == "bitwise", report.reason
    assert in_bulk(model) == 0
    return model


def in_bulk(model: ModelRunner) -> int:
    return sum(bool(product.form.bulk) for product in model.decoder.products())


def logits(model: ModelRunner, cuts: tuple[int, ...]) -> Tensor:
    tokens = [(7 * i) % model.vocabulary for i in range(STEP)]
    table, start, found = list(range(blocks_for(STEP))), 0, []
    for cut in cuts:
        chunk = Chunk(tokens[start : start + cut], start, table, cut, STEP)
        found.append(model.forward([chunk]).logits)
        start += cut
    return torch.cat(found)


def test_a_prompt_has_the_same_bits_in_full_pieces_and_in_small_ones(one_thread: None) -> None:
    model = checked()
    before = logits(model, (100,) * 6)
    taken = adopt_bulk(model, STEP, limit_seconds=60)
    assert in_bulk(model) > 0
    assert taken
    assert all(name.endswith(", in bulk") for name in taken.values())
    for cuts in ((STEP,), (512, 88), (256, 256, 88), (300, 300), (100,) * 6):
        assert torch.equal(logits(model, cuts), before)


def test_where_full_pieces_add_up_otherwise_all_stays_as_it_was(
    one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = checked()
    real = BatchInvariantLinear._multiply
    monkeypatch.setattr(
        BatchInvariantLinear,
        "_multiply",
        lambda self, x: real(self, x) * (1 + 2**-20) if x.shape[0] in BULK else real(self, x),
    )
    assert adopt_bulk(model, STEP, limit_seconds=60) == {}
    assert in_bulk(model) == 0


def test_without_the_time_for_them_all_stays_as_it_was(one_thread: None) -> None:
    model = checked()
    assert adopt_bulk(model, STEP, limit_seconds=0.0) == {}
    assert in_bulk(model) == 0


def test_where_no_step_has_so_many_rows_nothing_is_tried(one_thread: None) -> None:
    model = checked()
    assert adopt_bulk(model, COUNTS[-1], limit_seconds=60) == {}
    assert in_bulk(model) == 0
