"""The library's fused attention kernel, and what attention sinks change in what it gives."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def attend_fused(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float, sinks: Tensor | None
) -> Tensor:
    """query (items, KV heads, rows, width), keys and values (items, KV heads, keys, width), the mask added to
    the scores, sinks (KV heads, group) -> (items, KV heads, rows, width).

    A sink is one more score in a head's softmax, with a value of zeros (Agarwal et al., arXiv 2508.10925,
    section 2.2): it scales down what is found without it, by the sum of the exponentials.
    """
    if sinks is None:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    outputs = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    sums = ((query @ key.transpose(-1, -2)).float() * scaling + mask).logsumexp(-1)
    share = 1 + (sinks_of_rows(sinks, query.shape[2]) - sums).exp()
    scaled: Tensor = outputs.float() / share[..., None]
    return scaled.to(query.dtype)


def sinks_of_rows(sinks: Tensor, rows: int) -> Tensor:
    """(KV heads, group) -> (KV heads, rows) of the heads one after the other, token by token."""
    return sinks.repeat(1, -(-rows // sinks.shape[1]))[:, :rows]
