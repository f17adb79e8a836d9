"""The audit's margin follows from the model: what rounding does to a deep one passes, a wrong token not."""

from __future__ import annotations

import pytest
import torch

from turbo_dev.audited import BLOCKS, asked, engine, finish_audits, run
from turbo_dev.tiny_engine import POSITIONS, VOCABULARY, DeviceRunner, network
from turbo_runtime.engine.scheduler import Sequence
from turbo_runtime.engine.startup.invariance_check import set_free
from turbo_runtime.engine.startup.rounding import measure_rounding
from turbo_runtime.kv_cache.block_pool import blocks_for
from turbo_runtime.models.matmul import FREE_FORMS
from turbo_runtime.models.runner import ModelRunner
from turbo_runtime.models.step_batch import Chunk

pytestmark = pytest.mark.usefixtures("one_thread")
PROMPT, ROWS = 116, 24  # beyond a whole chunk of keys


def loose(layers: int, dtype: torch.dtype) -> ModelRunner:
    """Rounding grows from layer to layer."""
    made = DeviceRunner(network(layers=layers).to(dtype), blocks=BLOCKS, max_length=POSITIONS)
    set_free(made)
    for product in made.decoder.products():
        product.use(FREE_FORMS[-1])  # rows of panels are all equal
    return made


def worst(model: ModelRunner, seed: int) -> float:
    """By how much rows of a random text differ, at once and one at a time, as a share of the greatest."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, VOCABULARY, (PROMPT + ROWS,), generator=generator).tolist()
    table = list(range(blocks_for(len(tokens))))
    at_once = model.forward([Chunk(tokens, 0, table, ROWS, PROMPT)]).logits
    model.forward([Chunk(tokens[:PROMPT], 0, table, 0, PROMPT)])
    shares = []
    for row, place in enumerate(range(PROMPT, PROMPT + ROWS)):
        alone = model.forward([Chunk([tokens[place]], place, table, 1, PROMPT)]).logits[0]
        off = alone - at_once[row]
        shares.append(float((off.max() - off.min()) / (2 * alone.abs().max())))
    return max(shares)


@pytest.mark.parametrize(("layers", "dtype"), [(24, torch.float32), (8, torch.bfloat16)], ids=str)
def test_what_rounding_does_to_other_texts_is_within_the_margin(layers: int, dtype: torch.dtype) -> None:
    model = loose(layers, dtype)
    audit = engine(model, None, (1.0, "distribution")).audit
    usual = audit._off
    audit.expect(measure_rounding(model, limit_seconds=60))
    found = max(worst(model, seed) for seed in range(3))
    assert found <= audit._off
    assert usual < audit._off
    assert dtype is torch.float32 or usual < found  # what one margin for all models takes for a fault


def test_a_wrong_token_of_a_deep_model_is_found() -> None:
    deep = loose(24, torch.float32)
    server, request = engine(deep, None, (1.0, "distribution")), asked(temperature=0.0)
    server.audit.expect(measure_rounding(deep, limit_seconds=60))
    answer = run(server, request)["r"]
    assert finish_audits(server) == (1, 0)
    wrong = (*answer[:6], (answer[6] + 1) % VOCABULARY, *answer[7:])
    server.audit.offer(Sequence(request, [*request.prompt, *wrong], ()), "length")
    assert finish_audits(server) == (2, 1)
