"""A transformers model over the paged pool: one flat batch in, logits of the rows that need them out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from turbo_runtime.engine.arithmetic import RowLinear, replace_linears
from turbo_runtime.engine.attention import KVPool, PagedStep, Span


@dataclass(frozen=True, slots=True)
class Chunk:
    """One sequence's tokens of a step: committed ones that are not computed yet, then drafts."""

    tokens: Sequence[int]
    start: int  # position of the first
    table: list[int]  # blocks for start + len(tokens) tokens
    logit_rows: int  # of the last tokens, how many need logits


class PagedModel:
    """Owns the weights and the KV tensors; what a slot means is the scheduler's."""

    def __init__(self, model: PreTrainedModel, *, blocks: int, max_length: int) -> None:
        """`blocks` of KV cache; `max_length` tokens bound one sequence."""
        self.config = config = model.config
        self.linears: list[RowLinear] = replace_linears(model)
        self.body = model.get_decoder()
        self.head = model.get_output_embeddings()
        self.vocabulary = int(config.vocab_size)
        self.device = model.device
        self.pool = KVPool(
            layers=config.num_hidden_layers,
            kv_heads=config.num_key_value_heads,
            heads=config.num_attention_heads,
            head_dim=head_dim(config),
            blocks=blocks,
            max_length=max_length,
            dtype=model.dtype,
            device=model.device,
        )

    @torch.inference_mode()
    def forward(self, chunks: Sequence[Chunk]) -> Tensor:
        """Compute all chunks in one pass; logits (sum of logit_rows, vocabulary) float32, in the order of the
        chunks.
        """
        tokens = [token for chunk in chunks for token in chunk.tokens]
        positions = [chunk.start + i for chunk in chunks for i in range(len(chunk.tokens))]
        step = PagedStep(self.pool, [Span(c.start, len(c.tokens), c.table) for c in chunks])
        rows: list[int] = []
        end = 0
        for chunk in chunks:
            end += len(chunk.tokens)
            rows.extend(range(end - chunk.logit_rows, end))
        hidden: Tensor = self.body(
            input_ids=torch.tensor([tokens], device=self.device),
            position_ids=torch.tensor([positions], device=self.device),
            use_cache=False,
            paged_step=step,
        ).last_hidden_state[0]
        if not rows:
            return torch.empty(0, self.vocabulary, device=self.device)
        logits: Tensor = self.head(hidden[torch.tensor(rows, device=self.device)])
        return logits.float()


def head_dim(config: object) -> int:
    """Size of one attention head."""
    explicit = getattr(config, "head_dim", None)
    if explicit:
        return int(explicit)
    hidden, heads = getattr(config, "hidden_size", 0), getattr(config, "num_attention_heads", 1)
    return int(hidden) // int(heads)


def kv_bytes_per_block(config: object, dtype: torch.dtype, block_size: int) -> int:
    """Memory of one block over all layers, keys and values."""
    layers, kv_heads = getattr(config, "num_hidden_layers", 0), getattr(config, "num_key_value_heads", 0)
    return 2 * int(layers) * int(kv_heads) * head_dim(config) * dtype.itemsize * block_size
