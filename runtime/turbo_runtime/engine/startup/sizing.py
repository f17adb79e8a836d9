"""The runner for a device, with a cache as large as it can be."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from turbo_runtime.contract.config import BatchLimits, RuntimeConfig
from turbo_runtime.drafters.loader import DraftBytes
from turbo_runtime.engine.startup.invariance_check import probe_tokens
from turbo_runtime.kv_cache.block_pool import BLOCK_SIZE, blocks_for
from turbo_runtime.model_files.source import ModelError
from turbo_runtime.models.attention.pool import cache_shape
from turbo_runtime.models.attention.varlen import (
    DEFAULT_OP,
    PAGE_SIZE,
    VarlenAttention,
    is_available,
    supports,
)
from turbo_runtime.models.cuda_runner import CudaModelRunner
from turbo_runtime.models.layers.lora import Adapter
from turbo_runtime.models.parallel.decoder import RankGroup
from turbo_runtime.models.runner import ModelRunner, kv_bytes_per_block
from turbo_runtime.models.step_batch import Chunk
from turbo_runtime.sampling.dense import DENSE
from turbo_runtime.sampling.noise import Noise
from turbo_runtime.sampling.rows import DrawnRows, Rule

log = logging.getLogger(__name__)

GIB = 1 << 30
DEFAULT_KV_BYTES = 4 * GIB
NO_DRAFTS = DraftBytes()
KV_SHARE_OF_FREE_MEMORY = 0.5
MEMORY_INFO = Path("/proc/meminfo")
CONTROL_GROUP = Path("/sys/fs/cgroup")  # a container sees its own group here


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """What a GPU has, in bytes, once the weights are there."""

    total: int
    free: int
    needed: int  # beside a cache: by the largest step, by graphs and by drafts

    def budget(self, utilization: float) -> int:
        """Return what is left for a cache of that share of the memory, other programs' use included."""
        return int(utilization * self.total) - (self.total - self.free) - self.needed

    def hold(self, config: RuntimeConfig) -> RuntimeConfig:
        """Bound the cache that was asked for by what is free."""
        wanted, most = config.kv_cache_gib, max(0, self.budget(1.0)) / GIB
        if wanted is None or wanted <= most:
            return config
        log.warning(
            "--kv-cache-gib=%g is more than the %.1f GiB that weights, steps and drafts leave of this GPU, "
            "and the cache has those: lower it, or --max-num-batched-tokens",
            wanted,
            most,
        )
        return replace(config, kv_cache_gib=most)


def build_runner(
    config: RuntimeConfig,
    weights: PreTrainedModel,
    op: VarlenAttention | None,
    drafts: DraftBytes = NO_DRAFTS,
    group: RankGroup | None = None,
    adapters: Sequence[Adapter] = (),
) -> ModelRunner:
    """Build the runner for the weights' device with a cache of the right size, beside `drafts`. Raises
    ModelError.
    """
    build: dict[str, Any] = {"group": group, "adapters": adapters}
    device, limits, ranks = weights.device, config.limits(weights.device.type), config.tensor_parallel_size
    shape, dtype = weights.config, weights.dtype
    if op is None and not (is_available(device) and supports(cache_shape(shape), dtype)):
        if device.type == "cuda":
            free, total = torch.cuda.mem_get_info(device)
            config = DeviceMemory(total, free, drafts.weights).hold(config)
        budget = host_budget(device, ranks)
        blocks, length = size_cache(config, shape, dtype, limits, BLOCK_SIZE, budget, drafts.per_token)
        if device.type == "cpu" and config.kv_cache_gib is not None:
            _require_host_memory(config, blocks * kv_bytes_per_block(shape, dtype, BLOCK_SIZE))
        return ModelRunner(weights, blocks=blocks, max_length=length, **build)
    if device.type == "cpu":
        budget = host_budget(device, ranks)
        blocks, length = size_cache(config, shape, dtype, limits, PAGE_SIZE, budget, drafts.per_token)
        return CudaModelRunner(weights, blocks=blocks, max_length=length, op=op or DEFAULT_OP, **build)
    length = min(int(shape.max_position_embeddings), config.max_model_len or sys.maxsize)
    pages = 1 + blocks_for(limits.max_num_batched_tokens, PAGE_SIZE)
    model = CudaModelRunner(weights, blocks=pages, max_length=length, op=op or DEFAULT_OP, **build)
    drafted = config.max_draft_tokens if config.speculation != "off" else 0
    memory = measure_memory(model, limits, drafted, drafts.weights)
    budget = memory.budget(config.gpu_memory_utilization)
    config = memory.hold(config)
    model.resize(*size_cache(config, shape, dtype, limits, PAGE_SIZE, budget, drafts.per_token))
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
        budget = int(config.kv_cache_gib * GIB)
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
    """Return the bytes for a cache beside other programs; on a CPU for one of the caches of all ranks. On a
    GPU it is bounded as well where attention is not paged: what it takes beside a long context is not known.
    """
    budget = min(DEFAULT_KV_BYTES, int(free_memory(device) * KV_SHARE_OF_FREE_MEMORY))
    return budget // ranks if device.type == "cpu" else budget


@torch.inference_mode()
def measure_memory(
    model: CudaModelRunner, limits: BatchLimits, max_draft_tokens: int, drafts: int
) -> DeviceMemory:
    """Measure what is left of a GPU: without what lies there already, what the largest step needs, what all
    graphs keep, and the weights of `drafts`. Runs the former and captures the latter, over a small cache that
    counts as free.
    """
    torch.cuda.reset_peak_memory_stats(model.device)
    before = torch.cuda.memory_allocated(model.device)
    _run(model, largest_step(model, limits, max_draft_tokens))
    torch.cuda.synchronize(model.device)
    step = torch.cuda.max_memory_allocated(model.device) - before
    torch.cuda.empty_cache()
    without_graphs, _ = torch.cuda.mem_get_info(model.device)
    model.capture(limits.max_num_batched_tokens)
    torch.cuda.synchronize(model.device)
    torch.cuda.empty_cache()
    graphs = without_graphs - torch.cuda.mem_get_info(model.device)[0]
    model.release_graphs()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(model.device)
    page = kv_bytes_per_block(model.config, model.dtype, model.pool.block_size)
    log.info("a step takes up to %.2f GiB, graphs %.2f, drafts %.2f", step / GIB, graphs / GIB, drafts / GIB)
    # the page that nobody reads comes on top of a cache
    return DeviceMemory(total, free + page * model.pool.blocks, step + graphs + drafts)


def largest_step(model: ModelRunner, limits: BatchLimits, max_draft_tokens: int) -> list[Chunk]:
    """Build the step that takes most: of all tokens, of an adapter where there is one, with logits of as many
    rows as drafts can have.
    """
    pages, tokens = list(range(model.pool.blocks)), limits.max_num_batched_tokens
    length, rows = min(tokens, model.max_length), limits.max_num_seqs * (1 + max_draft_tokens)
    chunks, lora_id = list[Chunk](), min(1, len(model.adapter_shapes))
    for start in range(0, tokens, length):
        count = min(length, tokens - start)
        logit_rows = min(count, max(0, rows - start))
        chunks.append(Chunk(probe_tokens(model, count), 0, pages, logit_rows, length, lora_id))
    return chunks


def _run(model: CudaModelRunner, chunks: Sequence[Chunk]) -> None:
    """Compute a step, and draw all its rows by noise."""
    forward = model.execute(chunks)
    if model.group and model.group.rank:
        return  # rank 0 alone has whole logits, and draws
    drawn = DrawnRows()
    drawn.add(0, len(forward.logits), Rule(1.0, top_p=0.9))
    DENSE.draw(forward.logits, drawn, Noise(model.vocabulary, model.device))


def free_memory(device: torch.device) -> int:
    """Return the available bytes of the GPU, or of this machine and this process's control group."""
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else _host_memory()[1]


def _host_memory() -> tuple[int, int]:
    """All bytes of this machine or this process's control group, and those available."""
    lines = dict(line.split(":", 1) for line in MEMORY_INFO.read_text().splitlines())
    total, free = (int(lines[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    limit, used = CONTROL_GROUP / "memory.max", CONTROL_GROUP / "memory.current"
    if limit.is_file() and used.is_file() and (text := limit.read_text().strip()) != "max":
        total, free = min(total, int(text)), min(free, int(text) - int(used.read_text()))
    return total, max(0, free)


def _require_host_memory(config: RuntimeConfig, cache: int) -> None:
    """Raise ModelError if the caches of all ranks, `cache` bytes each, are more than all memory."""
    wanted, total = cache * config.tensor_parallel_size, _host_memory()[0]
    if wanted > total:
        raise ModelError(
            f"the KV cache of --kv-cache-gib={config.kv_cache_gib:g} takes {wanted / GIB:.1f} GiB, and "
            f"there are {total / GIB:.1f} GiB of memory; lower it"
        )
