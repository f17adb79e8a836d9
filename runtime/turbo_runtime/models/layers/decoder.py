"""What the engine asks of a model's layers, and who answers for which architecture."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from torch import Tensor
from transformers import PreTrainedModel

from turbo_runtime.models.attention import AttentionMetadata
from turbo_runtime.models.layers.native import LEAN_ARCHITECTURES, LeanDecoder
from turbo_runtime.models.layers.rowwise import RowWise
from turbo_runtime.models.layers.transformers_backend import ModuleDecoder
from turbo_runtime.models.matmul import BatchInvariantLinear

Tap = Callable[[int, Tensor], None]  # hears a layer's number and the residual stream that enters it


class Decoder(Protocol):
    """A decoder-only model without its attention."""

    @property
    def embedding(self) -> Tensor:
        """(vocabulary, width)."""

    def output_rows(self, ids: Tensor) -> Tensor:
        """ids (n) -> those rows (n, width) of the LM head."""

    def products(self) -> Iterable[BatchInvariantLinear]:
        """Every product with weights, the LM head included."""

    def row_wise(self) -> Iterable[RowWise]:
        """Every other operation that could mix rows, one of a kind."""

    def hidden(self, tokens: Tensor, step: AttentionMetadata, tap: Tap | None = None) -> Tensor:
        """tokens (rows) -> (rows, width), after the final norm; a tap is told the same of every layer."""

    def logits(self, hidden: Tensor) -> Tensor:
        """(rows, width) -> (rows, vocabulary)."""


def build_decoder(model: PreTrainedModel, longest: int) -> Decoder:
    """Layers with the weights of `model`, which is of no use by itself afterwards. `longest`: tokens of a
    sequence.
    """
    if type(model).__name__ in LEAN_ARCHITECTURES:
        return LeanDecoder(model, longest)
    return ModuleDecoder(model)
