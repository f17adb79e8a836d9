"""What drafters share with the served model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from turbo_runtime.models.runner import ModelRunner

_GIB = 1 << 30


class DraftError(ValueError):
    """A draft cannot be used; one sentence says why and what to do."""


@dataclass(frozen=True, slots=True)
class Target:
    """The served model as drafters see it."""

    digest: str
    embedding: Tensor  # (vocabulary, width)
    output_rows: Callable[[Tensor], Tensor]  # ids (n,) -> those rows (n, width) of the LM head
    runner: ModelRunner | None = None  # None: no drafter can have a KV cache
    tokenizer: Path | None = None  # tokenizer.json, for draft models to be compared with; None: not known
    draft_device: torch.device | None = None  # of a draft model; None: the model's
    free_memory: Callable[[torch.device], int] | None = None  # bytes for a KV cache; None: not known
    asynchronous: bool = False  # whether whoever asks its device for a value waits

    def served(self) -> ModelRunner:
        """Return the served model. Raises DraftError where drafters can have no KV cache."""
        if self.runner is None:
            raise DraftError("drafts that read the model's KV cache cannot be used here; name Turbo heads")
        return self.runner

    def check_memory(self, folder: Path, token_bytes: int, device: torch.device) -> None:
        """Raise DraftError where there is no memory for a KV cache of so much for a token."""
        served = self.served()
        pool = served.pool
        needed = pool.blocks * pool.block_size * token_bytes
        if self.free_memory is not None and needed > (free := self.free_memory(device)):
            sized = "name it as the server starts, which then sizes both caches, or "
            raise DraftError(
                f"{folder}: its KV cache takes {needed / _GIB:.1f} GiB and {free / _GIB:.1f} GiB are free on "
                f"{device}; {sized if device == served.device else ''}lower --kv-cache-gib"
            )
