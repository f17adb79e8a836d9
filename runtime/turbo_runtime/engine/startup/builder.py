"""Builds a checked and measured engine from a RuntimeConfig: device, dtype, memory, model."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch

from turbo_runtime.contract.config import DType, RuntimeConfig
from turbo_runtime.drafters.loader import (
    ActiveDrafts,
    DraftConfig,
    DraftLoader,
    WatchedFile,
    draft_bytes,
    read_selection_or_none,
    select_model,
)
from turbo_runtime.drafters.proposer import Proposer
from turbo_runtime.drafters.target import Target
from turbo_runtime.engine.loop import Engine
from turbo_runtime.engine.scheduler import Scheduler
from turbo_runtime.engine.startup.invariance_check import check_batch_invariance
from turbo_runtime.engine.startup.microbenchmark import measure_steps
from turbo_runtime.engine.startup.ranks import OnLoss, Ranks, raise_loss
from turbo_runtime.engine.startup.rounding import measure_rounding
from turbo_runtime.engine.startup.sizing import build_runner, free_memory
from turbo_runtime.kv_cache.block_pool import BlockPool
from turbo_runtime.messages import EngineReady
from turbo_runtime.model_files.inspector import inspect_model
from turbo_runtime.model_files.source import ModelError, find
from turbo_runtime.models.adapters import read_adapter
from turbo_runtime.models.attention.varlen import VarlenAttention
from turbo_runtime.models.loader import ExportedTokenizer, load_model, local_folder, model_errors
from turbo_runtime.sampling.grammar.matcher import Grammars
from turbo_runtime.sampling.noise import Noise
from turbo_runtime.speculation.controller import GoodputController

log = logging.getLogger(__name__)

READ_SECONDS, READ_TOKENS = 2.0, 4096  # of the answers that drafts bring; the rest is read while serving
CPU_INFO = Path("/proc/cpuinfo")


def start_engine(
    config: RuntimeConfig,
    start_time: float,
    tokenizer: ExportedTokenizer | None = None,
    op: VarlenAttention | None = None,
    on_loss: OnLoss = raise_loss,
) -> tuple[Engine, EngineReady]:
    """Load, check, measure; loading began at `start_time` (monotonic). Raises ModelError with a sentence.
    Without `tokenizer` answers under a grammar are rejected. `op`: run as on a GPU, with this attention.
    `on_loss` is called from any thread when one of several ranks has ended. Whoever ends the engine stops
    `model.followers`.
    """
    if config.tensor_parallel_size == 1:
        return _start(config, start_time, tokenizer, op, None)
    device = choose_device(config.device)
    ranks = Ranks(config, device, choose_dtype(config.dtype, device), op, on_loss)
    try:
        return _start(config, start_time, tokenizer, op, ranks)
    except BaseException:
        ranks.stop()
        raise


def _start(
    config: RuntimeConfig,
    start_time: float,
    tokenizer: ExportedTokenizer | None,
    op: VarlenAttention | None,
    ranks: Ranks | None,
) -> tuple[Engine, EngineReady]:
    torch.set_num_threads(config.threads or len(os.sched_getaffinity(0)))
    device = choose_device(config.device)
    limits = config.limits(device.type)
    dtype = choose_dtype(config.dtype, device)
    digest = inspect_model(config.model, config.revision).digest
    draft_device = choose_device(config.draft_device, "--draft-device") if config.draft_device else device
    drafts = find_drafts(config)
    if ranks:
        model, weights = ranks.lead()
    else:
        weights = load_model(find(config.model, config.revision), dtype, device)
        elsewhere = _place(draft_device) != _place(device)
        adapters = [
            read_adapter(name, place, config.model, dtype, device) for name, place in config.adapters.items()
        ]
        model = build_runner(config, weights, op, draft_bytes(drafts, dtype, elsewhere), adapters=adapters)
    end_ids = getattr(weights.generation_config, "eos_token_id", None)  # none, one or several
    end_ids = end_ids if isinstance(end_ids, Iterable) else () if end_ids is None else (end_ids,)
    loaded = time.monotonic()
    report = check_batch_invariance(model, limits.max_num_batched_tokens, wanted=config.guarantee)
    if config.guarantee == "bitwise" and report.guarantee != "bitwise":
        raise ModelError(f"--guarantee=bitwise cannot be promised here: {report.reason}; leave the flag out")
    is_loose = report.guarantee == "distribution" and config.audit_fraction > 0
    rounding = measure_rounding(model) if is_loose else None
    checked = time.monotonic()
    block_pool = BlockPool(model.pool.blocks, block_size=model.pool.block_size)
    max_draft_tokens = config.max_draft_tokens if config.speculation != "off" else 0
    steps = measure_steps(model, block_pool, limits, max_draft_tokens)
    measured = time.monotonic()
    scheduler = Scheduler(
        block_pool,
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        max_draft_tokens=max_draft_tokens,
        max_length=model.max_length,
        shared_tile=model.shared_tile,
    )
    ready = EngineReady(
        guarantee=report.guarantee,
        guarantee_reason=report.reason,
        arithmetic=report.forms,
        device=device.type,
        dtype=str(dtype).removeprefix("torch."),
        tensor_parallel_size=model.num_ranks,
        max_model_len=model.max_length,
        max_num_seqs=limits.max_num_seqs,
        kv_blocks=block_pool.num_blocks,
        block_size=block_pool.block_size,
        vocab_size=model.vocabulary,
        eos_token_ids=tuple(end_ids),
        digest=digest,
        load_seconds=loaded - start_time,
        check_seconds=checked - loaded,
        step_times=steps,
        measure_seconds=measured - checked,
    )
    grammars = None
    if tokenizer:
        grammars = Grammars(tokenizer.file, model.vocabulary, tokenizer.end_ids | {*ready.eos_token_ids})
    active, file = ActiveDrafts(config.speculation), None
    if drafts.own or drafts.named or config.draft_config:
        target = Target(
            digest,
            *model.collect_tables(),
            model if model.num_ranks == 1 else None,
            tokenizer.file if tokenizer else None,
            draft_device,
            free_memory,
            model.asynchronous,
        )
        loader = DraftLoader(target, Noise(model.vocabulary, model.device), config.speculation)
        if config.draft_config:
            file = WatchedFile(Path(config.draft_config), loader.load)
            active = file.wait(time.monotonic()) or active
        else:
            active = loader.load_all(drafts)
            if active.problem:
                raise ModelError(f"--draft-model={config.draft_model}: {active.problem}")
    drafters, control = Proposer(active, file=file), GoodputController(steps, model.padded_rows)
    deadline = time.monotonic() + READ_SECONDS
    while drafters.waiting and time.monotonic() < deadline:  # later, requests would take turns with it
        drafters.read(READ_TOKENS)
    engine = Engine(model, scheduler, drafters, grammars, control, config.audit_fraction, report.guarantee)
    if rounding is not None:
        engine.audit.expect(rounding)
    return engine, replace(ready, stats=engine.stats())


def find_drafts(config: RuntimeConfig) -> DraftConfig:
    """Find the drafts that there are at the start, for their caches to be counted; one of a hub is
    downloaded. Raises ModelError for a draft model that cannot be used; what is wrong with a file is found as
    it is followed.
    """
    if config.draft_model:
        with model_errors(f"--draft-model={config.draft_model}"):
            source = find(config.draft_model, None)
            if source.gguf_file:
                raise ModelError("--draft-model: a GGUF file does not draft; name a folder of safetensors")
            return select_model(local_folder(source), config.speculation)
    return read_selection_or_none(Path(config.draft_config)) if config.draft_config else DraftConfig()


def choose_device(requested: str, flag: str = "--device") -> torch.device:
    """Choose the device; `auto` is CUDA if available."""
    if requested == "auto":
        requested = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = requested.partition(":")
    if kind not in ("cpu", "cuda"):
        raise ModelError(f"{flag} must be auto, cpu or cuda, not {requested}")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"{flag}={requested}: no CUDA device is usable here; use {flag}=cpu")
    if index and int(index) >= (count := torch.cuda.device_count()):
        raise ModelError(f"{flag}={requested}: {count} GPUs are visible here; use a number below that")
    return torch.device(requested)


def _place(device: torch.device) -> tuple[str, int]:
    """Return where a device's memory is: without a number it is the first of its kind."""
    return device.type, device.index or 0


def choose_dtype(requested: DType, device: torch.device) -> torch.dtype:
    """Choose the type of weights; `auto` is bfloat16 where the hardware multiplies it faster than float32."""
    if requested == "auto":
        fast = device.type == "cuda" or is_bfloat16_fast(CPU_INFO.read_text())
        return torch.bfloat16 if fast else torch.float32
    return torch.bfloat16 if requested == "bfloat16" else torch.float32


def is_bfloat16_fast(info: str) -> bool:
    """Whether the CPU multiplies bfloat16 fast, by /proc/cpuinfo. Intel's tiles (AMX) and AMD's AVX-512 take
    half the time; Intel's AVX-512, for a virtual machine that hides the tiles, 1.5 times that of float32 for
    a step of 512 tokens (family 6, model 207). Elsewhere it is emulated.
    """
    lines = [line.partition(":") for line in reversed(info.splitlines())]  # the first processor's facts hold
    facts = {name.strip(): value.strip() for name, _, value in lines}
    flags = facts.get("flags", "").split()
    return "amx_bf16" in flags or ("avx512_bf16" in flags and facts.get("vendor_id") == "AuthenticAMD")
