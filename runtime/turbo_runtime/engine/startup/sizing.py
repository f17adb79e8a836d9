"""The runner for a device, with a cache as large as it can be."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from turbo_runtime.contract.config import BatchLimits, RuntimeConfig
from turbo_runtime.engine.startup.invariance_check import probe_tokens
from turbo_runtime.kv_cache.block_pool import BLOCK_SIZE, blocks_for
from turbo_runtime.messages import SamplingParams
from turbo_runtime.model_files.source import ModelError
from turbo_runtime.models.attention.pool import cache_shape
from turbo_runtime.models.attention.varlen import (
    DEFAULT_OP,
    PAGE_SIZE,
    VarlenAttention,
    is_available,
    supports,
)
from turbo_runtime.models.cuda_runner import GRAPH_ROWS, CudaModelRunner
from turbo_runtime.models.parallel.decoder import RankGroup
from turbo_runtime.models.runner import ModelRunner, kv_bytes_per_block
from turbo_runtime.models.step_batch import Chunk
from turbo_runtime.sampling.dense import DENSE
from turbo_runtime.sampling.noise import Noise
from turbo_runtime.sampling.rows import DrawnRows, SampledRows

log = logging.getLogger(__name__)

DEFAULT_KV_BYTES = 4 << 30
KV_SHARE_OF_FREE_MEMORY = 0.5


def build_runner(
    config: RuntimeConfig,
    weights: PreTrainedModel,
    op: VarlenAttention | None,
    drafts: int = 0,
    group: RankGroup | None = None,
) -> ModelRunner:
    """Build the runner for the weights' device with a cache of the right size, beside those of drafts, which
    take `drafts` bytes a token. Raises ModelError.
    """
    device, limits, ranks = weights.device, config.limits(weights.device.type), config.tensor_parallel_size
    if op is None and not (is_available(device) and supports(cache_shape(weights.config), weights.dtype)):
        blocks, length = size_cache(
            config, weights.config, weights.dtype, limits, BLOCK_SIZE, host_budget(device, ranks), drafts
        )
        return ModelRunner(weights, blocks=blocks, max_length=length, group=group)
    if device.type == "cpu":
        blocks, length = size_cache(
            config, weights.config, weights.dtype, limits, PAGE_SIZE, host_budget(device, ranks), drafts
        )
        return CudaModelRunner(weights, blocks=blocks, max_length=length, group=group, op=op or DEFAULT_OP)
    shape, dtype = weights.config, weights.dtype
    length = min(int(shape.max_position_embeddings), config.max_model_len or sys.maxsize)
    pages = 1 + blocks_for(limits.max_num_batched_tokens, PAGE_SIZE)
    model = CudaModelRunner(weights, blocks=pages, max_length=length, group=group, op=op or DEFAULT_OP)
    budget = device_budget(model, limits, config.gpu_memory_utilization)
    blocks, model.max_length = size_cache(config, shape, dtype, limits, PAGE_SIZE, budget, drafts)
    model.pool = model.allocate(blocks)
    return model


def size_cache(
    config: RuntimeConfig,
    model_config: Any,
    dtype: torch.dtype,
    limits: BatchLimits,
    block_size: int,
    budget: int,
    drafts: int = 0,
) -> tuple[int, int]:
    """Return (blocks, maximum sequence length) for `budget` bytes, `drafts` of them for each token going to
    the caches of drafts. Raises ModelError if no sequence fits.
    """
    length = int(model_config.max_position_embeddings)
    if config.max_model_len is not None:
        if config.max_model_len > length:
            raise ModelError(f"--max-model-len={config.max_model_len} is above the model's own {length}")
        length = config.max_model_len
    per_block = kv_bytes_per_block(model_config, dtype, block_size) + drafts * block_size
    if config.kv_cache_gib is not None:
        budget = int(config.kv_cache_gib * (1 << 30))
    whole = blocks_for(length, block_size)
    blocks = min(budget // per_block, limits.max_num_seqs * whole)
    if blocks >= whole:
        return blocks, length
    fits = max(0, blocks) * block_size
    if config.max_model_len is not None or fits < block_size:
        raise ModelError(
            f"the KV cache holds {fits} tokens and a sequence may have {length}; "
            "raise --kv-cache-gib or lower --max-model-len"
        )
    log.warning(
        "the KV cache holds %d tokens, so that is the context, and not the model's own %d: raise "
        "--kv-cache-gib if there is the memory, or set --max-model-len",
        fits,
        length,
    )
    return blocks, fits


def host_budget(device: torch.device, ranks: int) -> int:
    """Return the bytes for a cache beside other programs; on a CPU for one of the caches of all ranks."""
    budget = min(DEFAULT_KV_BYTES, int(free_memory(device) * KV_SHARE_OF_FREE_MEMORY))
    return budget // ranks if device.type == "cpu" else budget


@torch.inference_mode()
def device_budget(model: CudaModelRunner, limits: BatchLimits, utilization: float) -> int:
    """Return the bytes of a GPU that are left for a cache: of its share, without what lies there already,
    what the largest step needs, and what the largest graph will keep. Runs both, over an empty cache.
    """
    needs = []
    for tokens in (min(GRAPH_ROWS[-1], limits.max_num_batched_tokens), limits.max_num_batched_tokens):
        torch.cuda.reset_peak_memory_stats(model.device)
        before = torch.cuda.memory_allocated(model.device)
        _run_largest(model, tokens, limits)
        torch.cuda.synchronize(model.device)
        needs.append(torch.cuda.max_memory_allocated(model.device) - before)
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(model.device)
    taken_by_pool = kv_bytes_per_block(model.config, model.dtype, model.pool.block_size) * (
        1 + model.pool.blocks
    )
    return int(utilization * total) - (total - free) + taken_by_pool - sum(needs)


def _run_largest(model: CudaModelRunner, tokens: int, limits: BatchLimits) -> None:
    """One step of so many tokens, with the logits of as many rows as one can have, each drawn by noise."""
    pages = list(range(model.pool.blocks))
    length = min(tokens, model.max_length)
    chunks = [
        Chunk(probe_tokens(model, min(length, tokens - start)), 0, pages, 0, length)
        for start in range(0, tokens, length)
    ]
    rows = min(len(chunks[0].tokens), limits.max_num_seqs)
    forward = model.execute([replace(chunks[0], logit_rows=rows), *chunks[1:]])
    if model.group and model.group.rank:
        return  # rank 0 alone has whole logits, and draws
    params = SamplingParams(temperature=1.0, top_p=0.9)
    drawn = DrawnRows(truncated=SampledRows(list(range(rows)), [params] * rows, list(range(rows))))
    DENSE.draw(forward.logits, drawn, Noise(model.vocabulary, model.device))


def free_memory(device: torch.device) -> int:
    """Return the available bytes of the GPU, or of this machine and this process's control group."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(lines["MemAvailable"].split()[0]) * 1024
    group = Path("/sys/fs/cgroup")  # a container sees its own group here
    limit, used = group / "memory.max", group / "memory.current"
    if limit.is_file() and used.is_file() and (text := limit.read_text().strip()) != "max":
        free = min(free, int(text) - int(used.read_text()))
    return max(0, free)
