"""What of a model's configuration engine Turbo does not support, whatever its architecture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# The frequencies of the others depend on how long the sequences of a step are.
_ROPE_TYPES = frozenset({"default", "linear", "yarn", "llama3", "proportional"})
_LONGEST = 80  # characters of a word in a file that anybody may have written
# Of Gemma's configurations; no release of Gemma 3 sets one of them.
_REFUSED = ("use_bidirectional_attention", "attn_logit_softcapping", "final_logit_softcapping")


def find_unsupported(config: Mapping[str, Any]) -> str:
    """Return the first setting of a `config.json` that is not supported, as it is written; or nothing."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        rope = {}
    by_kind = [part for part in rope.values() if isinstance(part, Mapping)]  # Gemma's, by type of layer
    for part in by_kind or [rope]:
        kind = str(part.get("rope_type") or part.get("type") or "default")[:_LONGEST]
        if kind not in _ROPE_TYPES:
            return f"rope_type {kind}"
    return next((name for name in _REFUSED if config.get(name)), "")
