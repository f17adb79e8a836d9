"""A model over the paged pool: one flat batch in; logits and hidden rows out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from operator import methodcaller
from typing import Any, NamedTuple, NoReturn, TypeVar

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from turbo_runtime.kv_cache.block_pool import BLOCK_SIZE
from turbo_runtime.models.attention.host import HostKVPool, HostMetadata
from turbo_runtime.models.attention.metadata import AttentionMetadata, Rule, StepMetadata
from turbo_runtime.models.attention.pool import KVCacheSpec, KVPool, cache_shape
from turbo_runtime.models.layers.lora import Adapter, AdapterRows, adapt
from turbo_runtime.models.layers.native import LEAN_ARCHITECTURES, LeanDecoder
from turbo_runtime.models.layers.transformers_backend import ModuleDecoder
from turbo_runtime.models.matmul import padded_rows
from turbo_runtime.models.parallel.decoder import RankGroup, ShardedDecoder
from turbo_runtime.models.step_batch import Chunk, StepBatch, padded
from turbo_runtime.models.transfer import download, upload

Result = TypeVar("Result")
Command = Callable[["ModelRunner"], Any]


@dataclass(frozen=True, slots=True)
class Forward:
    """The requested rows, in the order of the chunks. Where they are `lent`, the runner's next step writes
    others to the same tensors.
    """

    logits: Tensor  # (rows, vocabulary) float32
    hidden: Tensor  # (rows, width), after the final norm
    finite: Tensor  # (chunks,) bool: whether no state of a chunk is NaN or infinite
    streams: Tensor | None = None  # (tokens of all chunks, requested layers x width): those layers' inputs
    lent: bool = False

    def owned(self) -> Forward:
        """Return rows that stay as they are."""
        if not self.lent:
            return self
        return Forward(self.logits.clone(), self.hidden.clone(), self.finite.clone(), self.streams)


class StepInputs(NamedTuple):
    """What the model itself reads of a step."""

    ids: Tensor  # (rows,): tokens, and padding
    sequence: Tensor  # (rows,): whose; padding counts as a sequence more
    picked: Tensor  # (n,): rows that need logits


class Followers:
    """The runners of a model's other ranks, which do what rank 0's does; here there are none."""

    def send(self, command: Command) -> None:
        """Let each run a command that can be pickled, without a result."""

    def call(self, command: Command) -> None:
        """Let each run a command whose result is awaited by `results`."""

    def results(self) -> list[Any]:
        """Return the result of each, or the error that it raised."""
        return []

    def end(self, error: Exception) -> NoReturn:
        """Give up after a step that failed on this rank: some of the others may wait for it for ever."""
        raise error

    def stop(self) -> None:
        """End their processes."""


def attempt(command: Command, model: ModelRunner) -> Any:
    """Return a command's result, or the error that it raised."""
    try:
        return command(model)
    except Exception as error:
        return error


class ModelRunner:
    """Owner of the weights and the KV tensors; the scheduler assigns the slots."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        blocks: int,
        max_length: int,
        group: RankGroup | None = None,
        adapters: Sequence[Adapter] = (),
    ) -> None:
        """`blocks` of KV cache; `max_length` tokens bound one sequence. `model` loses its weights; it has
        those of one rank of `group`. Raises ModelError where an adapter does not fit.
        """
        self.config = config = model.config
        self.vocabulary = int(config.vocab_size)
        self.device = model.device
        self.dtype = model.dtype
        self.max_length = max_length
        self.rule = Rule()  # set by the start-up check
        self.pool = self.allocate(blocks)
        lean = type(model).__name__ in LEAN_ARCHITECTURES
        self.decoder: LeanDecoder | ModuleDecoder
        if group:
            self.decoder = ShardedDecoder(model, max_length, group)
        else:
            self.decoder = LeanDecoder(model, max_length) if lean else ModuleDecoder(model)
        self.group = group
        self.followers = Followers()
        self.adapter_shapes = tuple(adapter.shapes for adapter in adapters)  # in chunks they count from 1
        self._adapter_rows = adapt(self.decoder.sites(), adapters) if adapters else AdapterRows()

    @property
    def asynchronous(self) -> bool:
        """Whether passes are only enqueued, so that whoever asks for their results waits."""
        return bool(self.device.type != "cpu")

    @property
    def num_ranks(self) -> int:
        """Processes that share the model."""
        return self.group.size if self.group else 1

    @property
    def shared_tile(self) -> int:
        """The unit of sharing: tokens of a prompt whose blocks are shared when it is whole."""
        return self.rule.shared_tile(self.pool.block_size)

    def padded_rows(self, rows: int) -> int:
        """How many rows a step of so many is computed with."""
        return padded_rows(rows, self.decoder.row_unit)

    def everywhere(self, command: Callable[[ModelRunner], Result]) -> list[Result]:
        """Run a command that can be pickled on every rank at once, and return the results, this rank's first.
        Raises the first error.
        """
        self.followers.call(command)
        results = [attempt(command, self), *self.followers.results()]
        if error := next((result for result in results if isinstance(result, Exception)), None):
            raise error
        return results

    def collect_tables(self) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Return the embedding (vocabulary, width), and what copies rows of the LM head (n, width) for ids
        (n). Of several ranks both are collected in this one.
        """
        if not isinstance(self.decoder, ShardedDecoder):
            return self.decoder.embedding, self.decoder.output_rows
        self.followers.send(_collect_tables)
        embedding, head = _collect_tables(self)
        return embedding, partial(head.index_select, 0)

    def use_rule(self, rule: Rule) -> None:
        """Set how positions are computed; on one rank."""
        self.rule = rule
        if self.group:
            self.group.ordered = rule.exact

    def resize(self, blocks: int, max_length: int) -> None:
        """Replace the cache; on one rank. The old one makes room first: it may be all that there is."""
        if blocks != self.pool.blocks:
            del self.pool
            self.pool = self.allocate(blocks)
        self.max_length = max_length

    def commit(self, blocks: list[int]) -> None:
        """Write zeros to these blocks, so that the system has the memory for them; on one rank."""
        slots = torch.tensor(blocks)[:, None] * self.pool.block_size + torch.arange(self.pool.block_size)
        self.pool.clear(slots.ravel().to(self.device))

    def allocate(self, blocks: int) -> KVPool:
        """Return a cache of so many blocks."""
        return self.allocate_layers(blocks, *self._layers())

    def allocate_layers(self, blocks: int, shape: KVCacheSpec, layers: int) -> KVPool:
        """Return a cache of so many blocks for layers of any shape."""
        if self.device.type == "cpu":
            return HostKVPool(shape, layers=layers, blocks=blocks, dtype=self.dtype)
        return KVPool(shape, layers=layers, blocks=blocks, dtype=self.dtype, device=self.device)

    def _layers(self) -> tuple[KVCacheSpec, int]:
        return cache_shape(self.config), int(self.config.num_hidden_layers)

    def attention(self, pool: KVPool, batch: StepBatch) -> StepMetadata:
        """Prepare a step over another cache, without padding, in whatever arithmetic is cheapest."""
        return self._metadata(pool, batch, len(batch.tokens), Rule(exact=False))

    def _metadata(self, pool: KVPool, batch: StepBatch, rows: int, rule: Rule) -> StepMetadata:
        if isinstance(pool, HostKVPool):
            return HostMetadata(pool, batch, rows)
        return AttentionMetadata(pool, batch, rows, rule)

    def beside(self, model: PreTrainedModel, max_length: int) -> ModelRunner:
        """Build a runner of another model, with a cache for the same tokens."""
        blocks = self.pool.blocks * self.pool.block_size // BLOCK_SIZE
        return ModelRunner(model, blocks=blocks, max_length=max_length)

    def forward(self, chunks: Sequence[Chunk], layers: Sequence[int] = ()) -> Forward:
        """Compute all chunks in one pass; `streams` get the inputs of `layers`. A chunk with a state that is
        not finite leaves zeros in its slots: later readers of its blocks would get NaN, even if masked. What
        is returned is the caller's own.
        """
        forward = self.execute(chunks, layers).owned()
        (finite,) = download(forward.finite)
        self.clear([chunk for chunk, whole in zip(chunks, finite.tolist(), strict=True) if not whole])
        return forward

    def execute(self, chunks: Sequence[Chunk], layers: Sequence[int] = ()) -> Forward:
        """Begin `forward`, and leave it to the caller to `clear` what is not finite. What is returned may be
        `lent`: use it before the next step, or keep it `owned`.
        """
        self.followers.send(methodcaller("execute_here", chunks, layers))
        try:
            return self.execute_here(chunks, layers)
        except Exception as error:
            self.followers.end(error)

    def clear(self, chunks: Sequence[Chunk]) -> None:
        """Write zeros to the slots of these chunks."""
        if chunks:
            self.followers.send(methodcaller("clear_here", chunks))
            self.clear_here(chunks)

    def copy_blocks(self, copies: Mapping[int, int]) -> None:
        """Copy blocks of the cache, by where to; each source is as it was before."""
        if copies:
            self.followers.send(methodcaller("copy_blocks_here", copies))
            self.copy_blocks_here(copies)

    @torch.inference_mode()
    def copy_blocks_here(self, copies: Mapping[int, int]) -> None:
        """Do this rank's part of `copy_blocks`."""
        targets, sources = (self._upload(np.array(list(each))) for each in (copies, copies.values()))
        self.pool.copy_blocks(sources, targets)

    @torch.inference_mode()
    def execute_here(self, chunks: Sequence[Chunk], layers: Sequence[int] = ()) -> Forward:
        """Do this rank's part of `execute`."""
        batch = StepBatch.join(chunks, self.pool.block_size, self.pool.scratch)
        self._adapter_rows.select(batch.token_lora_mapping, self.device)
        rows = self.padded_rows(len(batch.tokens))
        step = self._metadata(self.pool, batch, rows, self.rule)
        ids, sequence = padded(batch.tokens, rows), padded(batch.sequence, rows, len(chunks))
        inputs = StepInputs(self._upload(ids), self._upload(sequence), self._upload(batch.logits_indices))
        return self._compute(inputs, step, len(chunks), layers)

    def _compute(
        self, inputs: StepInputs, step: StepMetadata, sequences: int, layers: Sequence[int]
    ) -> Forward:
        ids, sequence, picked = inputs
        hidden, streams = self.decoder.hidden(ids, step, layers)
        selected = hidden.index_select(0, picked)
        logits = torch.empty(0, self.vocabulary, device=self.device)
        if len(selected):
            logits = self.decoder.logits(selected).float()
        read = torch.cat([streams[layer][: step.tokens] for layer in layers], 1) if layers else None
        return Forward(logits, selected, _finite_sequences(hidden, sequence, sequences), read)

    def first_layers(self, count: int) -> ModelRunner:
        """Return the model without its later layers, which shares weights and KV cache. Raises ValueError
        where the layers are cut up.
        """
        if self.group:
            raise ValueError("the first layers draft only where --tensor-parallel-size is 1")
        shallow = copy(self)
        shallow.decoder = self.decoder.first_layers(count)
        return shallow

    @torch.inference_mode()
    def clear_here(self, chunks: Sequence[Chunk]) -> None:
        """Do this rank's part of `clear`."""
        self.pool.clear(self._upload(StepBatch.join(chunks, self.pool.block_size, -1).slot_mapping))

    def _upload(self, values: Any) -> Tensor:
        return upload(values, self.device)


@torch.inference_mode()
def _collect_tables(model: ModelRunner) -> tuple[Tensor, Tensor]:
    assert isinstance(model.decoder, ShardedDecoder)
    return model.decoder.tables()


def _finite_sequences(hidden: Tensor, sequence: Tensor, number: int) -> Tensor:
    """Return (number,) bool, whether the rows (rows, width) of each `sequence` (rows,) are finite."""
    broken = hidden.isfinite().all(1).logical_not_().float()
    counts = torch.zeros(number + 1, device=hidden.device)  # padding comes last
    return counts.index_add_(0, sequence, broken)[:number] == 0


def is_out_of_memory(error: Exception) -> bool:
    """Whether a smaller pass may succeed: the CPU's allocator raises a plain RuntimeError."""
    return isinstance(error, torch.cuda.OutOfMemoryError | MemoryError) or "allocate memory" in str(error)


def kv_bytes_per_block(config: Any, dtype: torch.dtype, block_size: int) -> int:
    """Memory of one block over all layers."""
    return int(config.num_hidden_layers) * cache_shape(config).elements * dtype.itemsize * block_size
