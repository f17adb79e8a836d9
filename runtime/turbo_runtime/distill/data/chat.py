"""The turns of a prompt as a chat template reads them."""

from __future__ import annotations

from typing import Any

from turbo_runtime.prompts import Prompt, PromptsError
from turbo_runtime.protocol import parse_chat
from turbo_runtime.protocol.errors import ApiError


def turns(prompt: Prompt) -> list[dict[str, Any]]:
    """Checked and put as the server puts those of a request, or else the draft would learn from prompts that
    nobody can ask. Raises PromptsError.
    """
    try:
        request = parse_chat({"model": "any", "messages": list(prompt.messages)})
    except ApiError as error:
        raise PromptsError(f"prompt {prompt.name}: {error}") from error
    return [message.for_template() for message in request.messages]
