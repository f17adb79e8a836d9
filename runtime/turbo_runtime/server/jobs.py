"""From a checked request to what the engine computes: prompts as tokens, sampling parameters, limits of the
context.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from turbo_runtime.engine.request import MASK_64, SamplingParams
from turbo_runtime.server.chat_template import TemplateRefusalError
from turbo_runtime.server.errors import ApiError, invalid
from turbo_runtime.server.model import ServedModel
from turbo_runtime.server.requests import ChatRequest, CompletionRequest


@dataclass(frozen=True, slots=True)
class Job:
    """One HTTP request's work: `n` answers to each prompt. Answer i belongs to prompt i // n."""

    prompts: tuple[tuple[int, ...], ...]
    params: tuple[SamplingParams, ...]  # one for each prompt: what max_tokens may be depends on its length
    seed: int  # as the client gave it, or drawn
    n: int
    stops: tuple[str, ...]


def chat_job(request: ChatRequest, model: ServedModel) -> Job:
    """Raises ApiError (400) when the messages fit no template or no context."""
    if not model.tokenizer.has_chat_template:
        raise invalid(
            "messages",
            f"The model '{model.name}' has no chat template: send a 'prompt' to /v1/completions instead.",
            "unsupported_model",
        )
    try:
        prompt = model.tokenizer.encode_chat([message.for_template() for message in request.messages])
    except TemplateRefusalError as error:
        raise invalid("messages", f"The model's chat template refuses these messages: {error}.") from error
    return _job(request, (prompt,), "messages", model)


def completion_job(request: CompletionRequest, model: ServedModel) -> Job:
    """Raises ApiError (400) when a prompt is empty, holds an unknown token id, or fits no context."""
    prompts = tuple(
        model.tokenizer.encode(prompt) if isinstance(prompt, str) else tuple(prompt)
        for prompt in request.prompt
    )
    return _job(request, prompts, "prompt", model)


def _job(
    request: ChatRequest | CompletionRequest,
    prompts: tuple[tuple[int, ...], ...],
    field: str,
    model: ServedModel,
) -> Job:
    for prompt in prompts:  # a tokenizer may know tokens that the model has no embedding for
        wrong = next((token for token in prompt if not 0 <= token < model.facts.vocab_size), None)
        if wrong is not None:
            raise invalid(
                field,
                f"Invalid '{field}': token ids must lie between 0 and {model.facts.vocab_size - 1}, "
                f"not {wrong}.",
            )
    # 53 bits: every client reads the drawn seed back as it is, JavaScript's too
    seed = secrets.randbits(53) if request.seed is None else request.seed
    params = tuple(
        SamplingParams(
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=min(max(request.top_k, 0), model.facts.vocab_size),
            seed=seed & MASK_64,
            max_tokens=_room(len(prompt), request, field, model),
            stop_token_ids=model.stop_token_ids,
            drafting="auto" if request.speculation else "off",
        )
        for prompt in prompts
    )
    return Job(prompts, params, seed, request.n, tuple(request.stop))


def _room(
    prompt_tokens: int, request: ChatRequest | CompletionRequest, field: str, model: ServedModel
) -> int:
    """How many tokens an answer may have; raises ApiError where prompt and answer pass the context."""
    context, limit = model.context, request.limit
    if prompt_tokens == 0:
        raise invalid(field, f"Invalid '{field}': it has no tokens; send at least one.")
    if prompt_tokens >= context:
        raise _too_long(
            field,
            f"The prompt has {prompt_tokens} tokens and the context of this server {context}, "
            "of which the answer needs at least one: shorten the prompt.",
        )
    if limit is None:
        return context - prompt_tokens
    if prompt_tokens + limit > context:
        raise _too_long(
            request.limit_field,
            f"The prompt has {prompt_tokens} tokens and the answer may have {limit}, together more than "
            f"the context of {context}: shorten the prompt, "
            f"or ask for at most {context - prompt_tokens} tokens.",
        )
    return limit


def _too_long(param: str, message: str) -> ApiError:
    return invalid(param, message, "context_length_exceeded")
