"""The prompts of a run: dealt into parts, rendered as chats, and tokenized, some of them several times."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from turbo_runtime.distill.data.responses import TokenizedPrompt, intern_tokens
from turbo_runtime.distill.recipe import TRAINING, Recipe
from turbo_runtime.prompts import Prompt, PromptsError
from turbo_runtime.protocol import ChatRequest, parse
from turbo_runtime.protocol.errors import ApiError

_MIN_DEALT = 3  # prompts of a domain, from which on every part gets one


def deal(prompts: Sequence[Prompt], seed: int, shares: Mapping[str, float]) -> dict[str, list[Prompt]]:
    """Deal the prompts, each once, into parts: `shares` of every domain, and the rest into the last part.
    Their order and the other domains change nothing.
    """
    parts: dict[str, list[Prompt]] = {name: [] for name in shares}
    *first, last = shares
    key = seed.to_bytes(8, "little")
    in_order = sorted(prompts, key=lambda prompt: (prompt.content, prompt.domain))
    unique = {prompt.content: prompt for prompt in reversed(in_order)}.values()
    lots = {p.content: hashlib.blake2b(p.content.encode(), digest_size=16, key=key).digest() for p in unique}
    drawn = sorted(unique, key=lambda prompt: lots[prompt.content])
    for domain in sorted({prompt.domain for prompt in unique}):
        remaining = [prompt for prompt in drawn if prompt.domain == domain]
        count = len(remaining)
        for name in first:
            size = max(round(shares[name] * count), int(count >= _MIN_DEALT))
            parts[name] += remaining[:size]
            del remaining[:size]
        parts[last] += remaining
    return parts


def render_turns(prompt: Prompt) -> list[dict[str, Any]]:
    """Render a chat's turns as the server does. Raises PromptsError for what no client can send."""
    try:
        request = parse(ChatRequest, {"model": "any", "messages": list(prompt.messages)})
    except ApiError as error:
        raise PromptsError(f"prompt {prompt.name}: {error}") from error
    return [message.for_template() for message in request.messages]


def tokenize(
    parts: Mapping[str, Sequence[Prompt]],
    encode: Callable[[Prompt], Sequence[int]],
    recipe: Recipe,
    max_tokens: int,
) -> tuple[list[TokenizedPrompt], int]:
    """Tokenize the prompts, once for each response that is wanted of one. Captured prompts of more than
    `max_tokens` are left out and counted; raises PromptsError for those of files, and for empty ones.
    """
    tokenized, long, num_left_out = list[TokenizedPrompt](), list[str](), 0
    if max_tokens < 1:
        raise PromptsError(
            f"an answer of {recipe.max_tokens} tokens leaves no room for a prompt, of "
            f"{max_tokens + recipe.max_tokens} together: lower --max-tokens or raise --max-model-len"
        )
    for part, prompts in parts.items():
        temperatures = [recipe.drawn_at(i) for i in range(1 + (recipe.variants if part == TRAINING else 0))]
        for prompt in prompts:
            tokens = intern_tokens(encode(prompt))
            if not tokens:
                raise PromptsError(f"prompt {prompt.name} has no token; leave it out")
            if len(tokens) <= max_tokens:
                tokenized += (
                    TokenizedPrompt(part, prompt.domain, tokens, choice, heat, recipe.seed if heat else 0)
                    for choice, heat in enumerate(temperatures)
                )
            elif prompt.captured_at is None:
                long.append(prompt.name)
            else:
                num_left_out += 1
    if long:
        names = ", ".join(long[:3]) + (f" and {len(long) - 3} more" if len(long) > 3 else "")
        raise PromptsError(
            f"beside an answer of {recipe.max_tokens} there is room for prompts of {max_tokens} tokens, and "
            f"{names} are longer: leave them out, lower --max-tokens or raise --max-model-len"
        )
    return tokenized, num_left_out
