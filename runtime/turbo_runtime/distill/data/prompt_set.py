"""What is asked: prompts in tokens, some of them several times."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from turbo_runtime.distill.data.responses import TokenizedPrompt, shared
from turbo_runtime.distill.recipe import TRAINING, Recipe
from turbo_runtime.prompts import Prompt, PromptsError


def ask(
    parts: Mapping[str, Sequence[Prompt]],
    encode: Callable[[Prompt], Sequence[int]],
    recipe: Recipe,
    room: int,
) -> tuple[list[TokenizedPrompt], int]:
    """`room`: tokens that a prompt may have. Returns what is asked, and how many captured prompts are longer:
    traffic may have some, and nobody could take them out. Raises PromptsError for others that cannot
    be asked.
    """
    asked, long, left_out = list[TokenizedPrompt](), list[str](), 0
    if room < 1:
        raise PromptsError(
            f"an answer of {recipe.max_tokens} tokens leaves no room for a prompt, of "
            f"{room + recipe.max_tokens} together: lower --max-tokens or raise --max-model-len"
        )
    for part, prompts in parts.items():
        for prompt in prompts:
            tokens = shared(encode(prompt))
            if not tokens:
                raise PromptsError(f"prompt {prompt.name} has no token; leave it out")
            if len(tokens) <= room:
                asked += _asked(part, prompt.domain, tokens, recipe)
            elif prompt.captured_at is None:
                long.append(prompt.name)
            else:
                left_out += 1
    if long:
        names = f"{', '.join(long[:3])}{f' and {len(long) - 3} more' if len(long) > 3 else ''}"
        raise PromptsError(
            f"beside an answer of {recipe.max_tokens} there is room for prompts of {room} tokens, and "
            f"{names} are longer: leave them out, lower --max-tokens or raise --max-model-len"
        )
    return asked, left_out


def _asked(part: str, domain: str, tokens: tuple[int, ...], recipe: Recipe) -> list[TokenizedPrompt]:
    found = []
    for choice in range(1 + (recipe.variants if part == TRAINING else 0)):
        temperature = recipe.drawn_at(choice)
        found.append(
            TokenizedPrompt(part, domain, tokens, choice, temperature, recipe.seed if temperature else 0)
        )
    return found
