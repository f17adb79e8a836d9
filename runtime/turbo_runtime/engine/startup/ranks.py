"""The processes of a model that is cut up: rank 0 is the engine's own, and starts and leads the others.

A command reaches them through a pipe, as plain data; tensors go by `torch.distributed` alone.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from multiprocessing.reduction import ForkingPickler
from operator import methodcaller
from pathlib import Path
from typing import Any, NoReturn

import torch
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from turbo_runtime.contract.config import RuntimeConfig
from turbo_runtime.drafters.loader import DraftBytes, draft_bytes, read_selection_or_none
from turbo_runtime.engine.child_process import describe_exit, die_with_parent
from turbo_runtime.engine.startup.sizing import build_runner
from turbo_runtime.model_files.source import ModelError, find
from turbo_runtime.models.attention.varlen import VarlenAttention
from turbo_runtime.models.parallel.decoder import RankGroup
from turbo_runtime.models.parallel.loading import load_shard, read_shard
from turbo_runtime.models.runner import Command, Followers, ModelRunner, attempt

log = logging.getLogger(__name__)

STOP_SECONDS = 3.0  # for a rank to end by itself
LOSS_SECONDS = 2.0  # in which a rank's end shows that made an exchange fail

OnLoss = Callable[[str], NoReturn]  # takes a sentence, and ends the process


def raise_loss(sentence: str) -> NoReturn:
    """What a program does that has no server to report to."""
    raise RuntimeError(sentence)


@dataclass(frozen=True, slots=True)
class RankSettings:
    """What every rank is started with."""

    config: RuntimeConfig
    device: torch.device
    dtype: torch.dtype
    store: str  # the file at which all meet
    op: VarlenAttention | None

    def load(self, rank: int) -> PreTrainedModel:
        """Read a rank's weights. Raises ModelError."""
        config = self.config
        source = find(config.model, config.revision)
        return load_shard(source, self.dtype, self._device(rank), rank, config.tensor_parallel_size)

    def build(self, rank: int, weights: PreTrainedModel) -> ModelRunner:
        """Join the others and build a runner, with as large a cache as this rank can have."""
        group = RankGroup.join(rank, self.config.tensor_parallel_size, self.store, self._device(rank))
        drafts = DraftBytes()
        if self.config.draft_config:  # heads, on rank 0, with the whole embedding and LM head
            tables = 2 * weights.config.vocab_size * weights.config.hidden_size * self.dtype.itemsize
            named = read_selection_or_none(Path(self.config.draft_config))
            found = draft_bytes(named, self.dtype, models_elsewhere=True)
            drafts = DraftBytes(weights=found.weights + tables)
        return build_runner(self.config, weights, self.op, drafts, group)

    def _device(self, rank: int) -> torch.device:
        return torch.device("cuda", rank) if self.device.type == "cuda" else self.device


class Ranks(Followers):
    """The other ranks' processes, and rank 0's end of their pipes."""

    def __init__(
        self,
        config: RuntimeConfig,
        device: torch.device,
        dtype: torch.dtype,
        op: VarlenAttention | None,
        on_loss: OnLoss,
    ) -> None:
        """Start them. Raises ModelError where the model or the machine does not allow so many."""
        self._size, self._on_loss = config.tensor_parallel_size, on_loss
        read_shard(find(config.model, config.revision), 0, self._size)
        if device.type == "cuda" and torch.cuda.device_count() < self._size:
            raise ModelError(
                f"--tensor-parallel-size={self._size} needs as many GPUs, and {torch.cuda.device_count()} "
                "are visible here"
            )
        self._store = os.fdopen(os.memfd_create("turbo-ranks"))  # ends with the process, however that ends
        store = f"/proc/{os.getpid()}/fd/{self._store.fileno()}"
        self._settings = RankSettings(config, device, dtype, store, op)
        context = multiprocessing.get_context("spawn")  # a fork would copy locks in whatever state they are
        self._connections: list[Connection] = []
        self._processes: list[SpawnProcess] = []
        self._ending = threading.Lock()  # two threads may want to end the process
        self._stopping = False
        for rank in range(1, self._size):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=run_rank, args=(rank, self._settings, theirs), name=f"turbo rank {rank}", daemon=True
            )
            process.start()
            theirs.close()
            self._connections.append(ours)
            self._processes.append(process)
        threading.Thread(target=self._watch, name="rank watch", daemon=True).start()

    def lead(self) -> tuple[ModelRunner, PreTrainedModel]:
        """Read rank 0's weights and build its runner, with a cache that all ranks have room for. Raises
        ModelError.
        """
        weights = self._settings.load(0)
        self._await_all()
        self._put(None)
        model = self._settings.build(0, weights)
        self._await_all()
        model.followers = self
        blocks, lengths = zip(*model.everywhere(_cache_size), strict=True)
        model.everywhere(methodcaller("resize", min(blocks), min(lengths)))
        return model, weights

    def send(self, command: Command) -> None:
        """Let each rank run a command; one that fails there ends its process."""
        self._put((command, False))

    def call(self, command: Command) -> None:
        """Let each rank run a command whose result or error is awaited by `results`."""
        self._put((command, True))

    def results(self) -> list[Any]:
        """Return the result of each rank, or the error that it raised."""
        try:
            return [connection.recv() for connection in self._connections]
        except (EOFError, OSError) as error:
            self.end(error)

    def end(self, error: Exception) -> NoReturn:
        """End the process, with a sentence about the rank that ended or else about the error."""
        self._report(LOSS_SECONDS, f"Rank 0 of {self._size} failed: {type(error).__name__}: {error}")
        raise error

    def stop(self) -> None:
        """End the processes, by force those that do not end by themselves."""
        self._stopping = True
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            process.join(STOP_SECONDS)
            if process.is_alive():
                process.kill()
                process.join()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        self._store.close()

    def _put(self, message: Any) -> None:
        data = ForkingPickler.dumps(message)
        try:
            for connection in self._connections:
                connection.send_bytes(data)
        except OSError as error:
            self.end(error)

    def _await_all(self) -> None:
        """Wait until all ranks have done their part; raises the first error of one."""
        if error := next((result for result in self.results() if result is not None), None):
            raise error

    def _watch(self) -> None:
        """End the process as soon as a rank has ended, since rank 0 may wait for it in an exchange."""
        self._report(None)

    def _report(self, timeout: float | None, otherwise: str = "") -> None:
        """End the process if a rank ends within `timeout`, or with the sentence `otherwise`."""
        ended = wait([process.sentinel for process in self._processes], timeout)
        with self._ending:
            if self._stopping:
                return
            codes: list[tuple[int, int]] = []
            for rank, process in enumerate(self._processes, 1):
                if process.sentinel in ended:
                    process.join()  # its files are closed before it has an exit code
                    assert process.exitcode is not None
                    codes.append((process.exitcode, rank))
            if codes:
                code, rank = min(codes)  # one that was killed: others may have failed for want of it
                otherwise = f"Rank {rank} of {self._size} {describe_exit(code)}."
            self._on_loss(otherwise)


def run_rank(rank: int, settings: RankSettings, connection: Connection) -> None:
    """Be a rank other than 0: load, and run commands until the pipe is closed."""
    # Ctrl-C and a service manager's SIGTERM reach all processes; the server alone decides when to stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=die_with_parent, name="engine watch", daemon=True).start()
    transformers_logging.set_verbosity_error()
    torch.set_num_threads(settings.config.threads or len(os.sched_getaffinity(0)))
    with suppress(EOFError, ConnectionError), torch.inference_mode():
        try:
            weights = settings.load(rank)
            connection.send(None)
            connection.recv()  # until all have theirs
            model = settings.build(rank, weights)
            connection.send(None)
        except ModelError as error:
            connection.send(error)
            connection.recv()  # until rank 0 has read it
        while True:
            command, awaited = connection.recv()
            if awaited:
                connection.send(attempt(command, model))
            else:
                command(model)


def _cache_size(model: ModelRunner) -> tuple[int, int]:
    return model.pool.blocks, model.max_length
