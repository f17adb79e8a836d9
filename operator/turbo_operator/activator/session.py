"""Which conversation a request belongs to, by how it begins. Pure.

vllm-router 0.1.17 keeps the requests of one session on one pod, whose caches hold what was said before, and
puts a new session where the load is least. (Its policy `cache_aware` asks every pod to render every prompt.)
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

HEADER = "X-Session-ID"
OPENING = 256  # characters, or tokens, of a prompt that tell it from others


def session_of(body: bytes, authorization: str | None) -> str | None:
    """Return a name for the conversation of a request body; None where it shows none.

    Who holds another key holds another conversation: pods share nothing between the two.
    """
    try:
        request = json.loads(body)
    except (ValueError, RecursionError):
        return None
    opening = _opening(request) if isinstance(request, dict) else None
    if opening is None:
        return None
    text = json.dumps([authorization, request.get("model"), opening], default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _opening(request: dict[str, Any]) -> Any:
    """Return what all turns of a conversation have in common, and other conversations have not."""
    if isinstance(request.get("prompt_cache_key"), str):
        return request["prompt_cache_key"]
    messages = request.get("messages")
    if isinstance(messages, list) and messages:
        roles = [message.get("role") if isinstance(message, dict) else None for message in messages]
        return messages[: roles.index("user") + 1] if "user" in roles else messages[:1]
    prompt = request.get("prompt")
    return prompt[:OPENING] if isinstance(prompt, (str, list)) and prompt else None
