"""Latent attention: the cache that the planner counts, and a start from a folder of weights."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from turbo_operator.planner.performance.memory import kv_bytes
from turbo_runtime.contract.config import RuntimeConfig
from turbo_runtime.engine.startup.builder import start_engine
from turbo_runtime.engine.startup.invariance_check import find_invariant_kernel
from turbo_runtime.kv_cache.block_pool import BLOCK_SIZE
from turbo_runtime.model_files.inspector import inspect_model
from turbo_runtime.model_files.source import find
from turbo_runtime.models.loader import load_model
from turbo_runtime.models.matmul import COUNTS, HeadProduct
from turbo_runtime.models.runner import ModelRunner, kv_bytes_per_block

HEADS, RANK, ROPE, LAYERS = 4, 24, 8, 2
CONFIG = DeepseekV3Config(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=LAYERS,
    num_attention_heads=HEADS,
    num_key_value_heads=HEADS,
    vocab_size=61,
    max_position_embeddings=256,
    q_lora_rank=16,
    kv_lora_rank=RANK,
    qk_rope_head_dim=ROPE,
    qk_nope_head_dim=12,
    v_head_dim=20,
    first_k_dense_replace=1,
    moe_intermediate_size=16,
    n_routed_experts=8,
    num_experts_per_tok=2,
    n_group=4,
    topk_group=2,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("deepseek")
    torch.manual_seed(1)
    DeepseekV3ForCausalLM(CONFIG).save_pretrained(path)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield path
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_pool_holds_what_the_planner_counts(folder: Path, dtype: torch.dtype) -> None:
    shape = inspect_model(str(folder)).shape
    assert shape.kv_latent == RANK + ROPE
    weights = load_model(find(str(folder), None), dtype, torch.device("cpu"))
    pool = ModelRunner(weights, blocks=3, max_length=48).pool
    storages = (each.untyped_storage() for each in (*pool.keys, *pool.values))
    held = {storage.data_ptr(): storage.nbytes() for storage in storages}
    with_scratch = 3 + 1
    assert sum(held.values()) == with_scratch * kv_bytes_per_block(CONFIG, dtype, BLOCK_SIZE)
    planned = kv_bytes(shape, float(dtype.itemsize), 1.0, 48.0)
    assert kv_bytes_per_block(CONFIG, dtype, BLOCK_SIZE) == BLOCK_SIZE * float(planned)


def test_inspect_counts_the_weights_that_the_engine_loads(folder: Path) -> None:
    loaded = load_model(find(str(folder), None), torch.float32, torch.device("cpu"))
    corrections = (LAYERS - 1) * CONFIG.n_routed_experts  # buffers of transformers, stored with the weights
    counted = inspect_model(str(folder)).shape.parameters
    assert counted == sum(each.numel() for each in loaded.parameters()) + corrections


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_starts_with_the_guarantee_and_as_many_blocks_as_memory_allows(folder: Path, dtype: str) -> None:
    blocks = 20
    each = kv_bytes_per_block(CONFIG, getattr(torch, dtype), BLOCK_SIZE)
    config = RuntimeConfig(model=str(folder), dtype="float32", threads=1, max_num_seqs=3, device="cpu")
    config = replace(config, dtype=dtype, kv_cache_gib=blocks * each / 2**30)  # type: ignore[arg-type]
    engine, ready = start_engine(config, time.monotonic())
    assert ready.guarantee == "bitwise"
    assert ready.kv_blocks == blocks == engine.model.pool.blocks
    assert f"{HEADS}x{RANK}x12" in ready.arithmetic


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "out", "width"), [(4, 24, 12), (3, 20, 24), (16, 64, 32)])
def test_each_head_has_its_own_matrix_and_rows_stay_apart(
    heads: int, out: int, width: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    weight = torch.randn(heads, out, width).to(dtype)
    product = HeadProduct(weight)
    product.use(find_invariant_kernel(product, time.monotonic() + 60))
    x = torch.randn(COUNTS[-1] + 9, heads * width).to(dtype)
    expected = torch.einsum("rhi,hoi->rho", x.view(-1, heads, width).float(), weight.float()).flatten(1)
    close = 1e-4 if dtype == torch.float32 else 5e-2
    torch.testing.assert_close(product(x).float(), expected, atol=close, rtol=close)
    alone = torch.cat([product(row[None]) for row in x])
    for count in (2, 5, 32, 129):
        assert torch.equal(product(x[3 : 3 + count]), alone[3 : 3 + count])
