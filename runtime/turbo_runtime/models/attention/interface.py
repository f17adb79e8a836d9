"""The paged attention behind `attn_implementation="turbo_paged"` of transformers' models."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from turbo_runtime.models.attention.metadata import AttentionMetadata

IMPLEMENTATION = "turbo_paged"


def paged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001  transformers' interface; the step knows who sees what
    scaling: float,
    dropout: float = 0.0,  # noqa: ARG001  serving has none
    *,
    paged_step: AttentionMetadata,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query (1, heads, rows, width), key and value (1, KV heads, rows,
    width) -> (1, rows, heads, value width).
    """
    layer = module.layer_idx
    assert isinstance(layer, int)
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    return paged_step.attend(layer, query, key, value, scaling)[None], None


def _no_mask(*_: Any, **__: Any) -> None:
    """No dense mask over a flat row of many sequences: it would be large and is not read."""


def register() -> None:
    """Make `attn_implementation="turbo_paged"` known to transformers."""
    AttentionInterface.register(IMPLEMENTATION, paged_attention)
    AttentionMaskInterface.register(IMPLEMENTATION, _no_mask)
