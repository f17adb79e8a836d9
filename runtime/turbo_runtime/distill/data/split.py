"""Which prompts are learnt from and which are not."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from turbo_runtime.prompts import Prompt

_LEAST = 3  # prompts of a domain, from which on every part gets one


def deal(prompts: Sequence[Prompt], seed: int, shares: Mapping[str, float]) -> dict[str, list[Prompt]]:
    """Prompts by part, each one once however often it was given; `shares` says how much of every domain each
    part but the last gets, and the last gets the rest. Whatever their order and the other domains, the same
    prompts come to the same part.
    """
    parts: dict[str, list[Prompt]] = {name: [] for name in shares}
    *first, last = shares
    in_order = sorted(prompts, key=lambda prompt: (prompt.content, prompt.domain))
    once = {prompt.content: prompt for prompt in reversed(in_order)}.values()
    for domain in sorted({prompt.domain for prompt in once}):
        left = sorted((p for p in once if p.domain == domain), key=lambda p: _lot(p, seed))
        count = len(left)
        for name in first:
            most = max(round(shares[name] * count), int(count >= _LEAST))
            parts[name] += left[:most]
            left = left[most:]
        parts[last] += left
    return parts


def _lot(prompt: Prompt, seed: int) -> bytes:
    return hashlib.blake2b(prompt.content.encode(), digest_size=16, key=seed.to_bytes(8, "little")).digest()
