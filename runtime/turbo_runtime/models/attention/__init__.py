"""Paged attention by one rule: a position's arithmetic depends on (prompt length, position) alone, and on the
position alone where tiles have the bits of rows.

Whole aligned tiles of a prompt are computed each in one call of a fixed shape (`tiles.py`), and so is every
long span where the way makes no difference; all other positions as rows, each as if it were alone, but
batched over the whole step (`rows.py`). `step.py` tells them apart.
"""

from turbo_runtime.models.attention.interface import IMPLEMENTATION, register
from turbo_runtime.models.attention.metadata import AttentionMetadata, Rule
from turbo_runtime.models.attention.pool import KVPool
from turbo_runtime.models.attention.shape import KVCacheSpec, cache_shape
from turbo_runtime.models.attention.spans import Span

__all__ = [
    "IMPLEMENTATION",
    "AttentionMetadata",
    "KVCacheSpec",
    "KVPool",
    "Rule",
    "Span",
    "cache_shape",
    "register",
]
