"""The interface of a model's layers, and the implementation for each architecture."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from torch import Tensor
from transformers import PreTrainedModel

from turbo_runtime.models.attention import AttentionMetadata
from turbo_runtime.models.layers.native import LEAN_ARCHITECTURES, LeanDecoder
from turbo_runtime.models.layers.primitives import RowWise
from turbo_runtime.models.layers.transformers_backend import ModuleDecoder
from turbo_runtime.models.matmul import BatchInvariantLinear

Tap = Callable[[int, Tensor], None]  # gets a layer's number and the residual stream that enters it


class Decoder(Protocol):
    """A decoder-only model without its attention."""

    @property
    def embedding(self) -> Tensor:
        """(vocabulary, width)."""

    def output_rows(self, ids: Tensor) -> Tensor:
        """Rows (n, width) of the LM head for ids (n)."""

    def products(self) -> Iterable[BatchInvariantLinear]:
        """Return every product with weights, the LM head included."""

    def row_wise(self) -> Iterable[RowWise]:
        """Return every other operation that could mix rows, one of a kind."""

    def hidden(self, tokens: Tensor, step: AttentionMetadata, tap: Tap | None = None) -> Tensor:
        """tokens (rows) -> (rows, width), after the final norm."""

    def logits(self, hidden: Tensor) -> Tensor:
        """(rows, width) -> (rows, vocabulary)."""


def build_decoder(model: PreTrainedModel, max_length: int) -> Decoder:
    """Build layers from the weights of `model`, which is unusable afterwards."""
    if type(model).__name__ in LEAN_ARCHITECTURES:
        return LeanDecoder(model, max_length)
    return ModuleDecoder(model)
