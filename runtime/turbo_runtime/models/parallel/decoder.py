"""The layers of one rank, and where they meet: sums after attention and MLP, tokens in and logits out."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedModel

from turbo_runtime.models.layers.native import LeanDecoder
from turbo_runtime.models.layers.primitives import GatedMLP, Layer, Product

JOIN_TIMEOUT = timedelta(minutes=10)  # for the slowest to read its weights, and of one exchange


@dataclass(slots=True)
class RankGroup:
    """The processes of one model, all of which take part in every exchange."""

    rank: int
    size: int
    ordered: bool = True  # sum in the order of the ranks, and not in one that depends on the number of rows

    @classmethod
    def join(cls, rank: int, size: int, store: str, device: torch.device) -> RankGroup:
        """Wait for all ranks, which meet at the file `store`."""
        for library in ("GLOO", "NCCL"):
            os.environ.setdefault(f"{library}_SOCKET_IFNAME", "lo")  # all ranks are on one machine
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=dist.FileStore(store, size),  # type: ignore[attr-defined]
            rank=rank,
            world_size=size,
            timeout=JOIN_TIMEOUT,
            device_id=device if device.type == "cuda" else None,
        )
        return cls(rank, size)

    def sum(self, x: Tensor) -> Tensor:
        """Add up the tensors of all ranks; each gets the same bits."""
        if not self.ordered:
            dist.all_reduce(x)
            return x
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(self.size)]
        dist.all_gather(parts, x)
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total

    def concatenate(self, x: Tensor, dimension: int) -> Tensor:
        """Put the tensors of all ranks side by side on rank 0; the others get back what they gave."""
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(self.size)] if self.rank == 0 else None
        dist.gather(x, parts)
        return x if parts is None else torch.cat(parts, dimension)


class SummedProduct(Layer):
    """A product of which each rank has some of the input features."""

    def __init__(self, product: Product, group: RankGroup) -> None:
        self.product, self._group = product, group

    def __call__(self, x: Tensor) -> Tensor:
        """x (rows, the rank's inputs) -> (rows, out)."""
        return self._group.sum(self.product(x))


class ShardedDecoder(LeanDecoder):
    """A rank's part of a model, on every row of every step."""

    def __init__(self, model: PreTrainedModel, max_length: int, group: RankGroup) -> None:
        """`model` has the weights of this rank alone, as `load_shard` reads them."""
        super().__init__(model, max_length)
        self.group = group
        self._vocabulary = int(model.config.vocab_size)
        self._first = group.rank * len(self.embedding)
        for block in self._blocks:
            assert isinstance(block.mlp, GatedMLP)
            block.attention.output = SummedProduct(block.attention.output, group)
            block.mlp.down = SummedProduct(block.mlp.down, group)

    def embed(self, tokens: Tensor) -> Tensor:
        """tokens (rows) -> (rows, width)."""
        own = tokens - self._first
        absent = (own < 0) | (own >= len(self.embedding))
        rows = self.embedding.index_select(0, own.clamp(0, len(self.embedding) - 1))
        return self.group.sum(rows.masked_fill(absent[:, None], 0))

    def logits(self, hidden: Tensor) -> Tensor:
        """(rows, width) -> (rows, vocabulary) on rank 0."""
        return self.group.concatenate(super().logits(hidden), 1)[:, : self._vocabulary].contiguous()

    def tables(self) -> tuple[Tensor, Tensor]:
        """Embedding and LM head (vocabulary, width) each, both whole on rank 0."""
        ids = torch.arange(len(self.embedding), device=self.embedding.device)
        parts = self.embedding, self.output_rows(ids)
        embedding, head = (self.group.concatenate(part, 0)[: self._vocabulary] for part in parts)
        return embedding, head
