"""A budget shared evenly. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

Key = TypeVar("Key")


def share_evenly(wants: Mapping[Key, int], budget: int) -> dict[Key, int]:
    """Share as evenly as possible, at most what each wants (max-min fairness)."""
    shares: dict[Key, int] = {}
    by_want = sorted(wants, key=wants.__getitem__)
    for place, key in enumerate(by_want):
        shares[key] = min(wants[key], budget // (len(by_want) - place))
        budget -= shares[key]
    return shares
