"""What the operator divides among the accelerators of a replica of engine Turbo, the runtime cuts up, and
nothing else.
"""

from __future__ import annotations

import pytest
from transformers import AutoConfig

from turbo_operator.catalog import shapes
from turbo_operator.planner.capabilities import describe_division_lack
from turbo_runtime.model_files.source import ModelError
from turbo_runtime.models.parallel.shards import Shard
from turbo_runtime.shapes.parallel import PARALLEL_ARCHITECTURES

LAYOUTS = {  # as they are released: one of each architecture and number of KV heads
    (shape.architecture, shape.heads, shape.kv_heads): name
    for name, config in shapes.table().items()
    if config.get("architectures", [""])[0] in PARALLEL_ARCHITECTURES
    if (shape := shapes.shipped(name)) is not None and shape.quantization is None
}


def test_the_table_has_models_to_compare() -> None:
    assert {architecture for architecture, _, _ in LAYOUTS} == {*PARALLEL_ARCHITECTURES}
    assert len(LAYOUTS) > 15


@pytest.mark.parametrize("name", sorted(LAYOUTS.values()))
def test_both_divide_the_same_models_alike(name: str) -> None:
    shape, config = shapes.shipped(name), dict(shapes.table()[name])
    assert shape is not None
    kind = shape.architecture.removesuffix("ForCausalLM").lower()
    config = AutoConfig.for_model(
        kind, **{key: value for key, value in config.items() if key != "model_type"}
    )
    for size in (2, 3, 4, 8, 16, 64):
        lack = describe_division_lack(shape, size, 1, is_gguf=False)
        if lack is not None:
            with pytest.raises(ModelError) as refused:
                Shard.of(config, 0, size)
            assert str(refused.value).partition(": ")[2] in lack
            continue
        shards = [Shard.of(config, rank, size) for rank in range(size)]
        heads = max(len(shard.heads) for shard in shards)
        assert heads / shape.heads <= max(1 / size, -(-shape.kv_heads // size) / shape.kv_heads)
