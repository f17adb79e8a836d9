"""`torch.nn.attention.varlen.varlen_attn_out` for CPUs, which torch has none for, so that the runner for GPUs
can run here. Every query is computed alone, against exactly its keys: no row depends on another.

What the built-in backend refuses or would compute otherwise is an error here too, but for float32.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def varlen_attn_out(
    out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
    seqused_k: Tensor,
    block_table: Tensor,
    num_splits: int,
) -> None:
    """Write to `out` (tokens, heads, width) what each query sees of the pages of its sequence."""
    page_size, kv_heads, width = key.shape[1:]
    assert all(each.dtype.itemsize == 4 for each in (cu_seq_q, cu_seq_k, seqused_k, block_table))
    assert all(each.is_contiguous() for each in (cu_seq_q, cu_seq_k, seqused_k))
    assert all(each.stride(-1) == 1 for each in (out, query, key, value, block_table))
    assert page_size % 16 == 0  # 256 is what the built-in backend takes, which `PAGE_SIZE` is
    assert width % 8 == 0
    assert width <= 256
    assert len(block_table) == len(seqused_k) == len(cu_seq_q) - 1
    assert window_size[1] == 0
    assert enable_gqa
    assert num_splits == 1
    group = query.shape[1] // kv_heads
    ends, lengths = cu_seq_q.numpy(), seqused_k.numpy()
    for sequence, pages in enumerate(block_table):
        first, end, length = int(ends[sequence]), int(ends[sequence + 1]), int(lengths[sequence])
        assert end - first <= max_q
        assert length <= max_k
        used = pages[: -(-length // page_size)]
        keys, values = (
            pool.index_select(0, used).flatten(0, 1).transpose(0, 1)[None] for pool in (key, value)
        )
        for row in range(first, end):
            after = length - (end - row) + 1
            begin = 0 if window_size[0] < 0 else max(0, after - 1 - window_size[0])
            own = query[row].view(1, kv_heads, group, width)
            seen = F.scaled_dot_product_attention(
                own, keys[:, :, begin:after], values[:, :, begin:after], scale=scale
            )
            out[row] = seen.view(-1, width)
