"""From a request's fields to the engine's sampling parameters, checked against the served model."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import replace

from turbo_runtime.messages import MASK_64, Grammar, SamplingParams
from turbo_runtime.protocol import ChatRequest, CompletionRequest
from turbo_runtime.protocol.errors import ApiError, invalid
from turbo_runtime.server.served_model import ServedModel

MAX_TOLD = 1 << 20  # logprobs of several answers together: some 100 MB of JSON

Asked = ChatRequest | CompletionRequest


def drawn_seed(request: Asked) -> int:
    """The client's seed, or one of 53 bits: every client reads it back as it is, JavaScript's too."""
    return secrets.randbits(53) if request.seed is None else request.seed


def sampling_params(request: Asked, seed: int, grammar: Grammar | None, model: ServedModel) -> SamplingParams:
    """What is the same for all prompts of a request; `for_prompt` does the rest. Raises ApiError (400)."""
    stops = frozenset(request.stop_token_ids)
    check_ids(stops, "stop_token_ids", model)
    bias = tuple(sorted((int(token), value) for token, value in request.logit_bias.items()))
    check_ids((token for token, _ in bias), "logit_bias", model)
    echoed = request.told_logprobs if isinstance(request, CompletionRequest) and request.echo else None
    return SamplingParams(
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=min(max(request.top_k, 0), model.facts.vocab_size),
        min_p=request.min_p,
        repetition_penalty=request.repetition_penalty,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        logit_bias=bias,
        min_tokens=request.min_tokens,
        bad_words=_bad_words(request.bad_words, model),
        grammar=grammar,
        seed=seed & MASK_64,
        stop_token_ids=stops if request.ignore_eos else stops | model.stop_token_ids,
        logprobs=request.told_logprobs,
        prompt_logprobs=max(
            (count for count in (request.prompt_logprobs, echoed) if count is not None), default=None
        ),
        drafting=request.speculation,
        max_draft_tokens=request.max_draft_tokens,
    )


def for_prompt(
    params: SamplingParams, prompt_tokens: int, request: Asked, field: str, model: ServedModel
) -> SamplingParams:
    """For answers to a prompt of so many tokens, which came in `field`. Raises ApiError (400)."""
    max_tokens = _room(prompt_tokens, request, field, model)
    if request.min_tokens > max_tokens:
        raise invalid(
            "min_tokens",
            f"'min_tokens' is {request.min_tokens} and the answer may have {max_tokens}: ask for fewer.",
        )
    return replace(params, max_tokens=max_tokens)


def check_told(params: Sequence[SamplingParams], prompts: Sequence[Sequence[int]], n: int) -> None:
    """Refuse several answers that could tell more logprobs together than memory should hold. Raises ApiError
    (400).
    """
    told = n * sum(
        one.max_tokens * _entries(one.logprobs) + len(prompt) * _entries(one.prompt_logprobs)
        for one, prompt in zip(params, prompts, strict=True)
    )
    if told > MAX_TOLD and n * len(prompts) > 1:
        raise invalid(
            "logprobs",
            f"The answers could tell {told} logprobs together, and at most {MAX_TOLD} are told at once: ask "
            "for fewer answers, fewer likely tokens or a smaller 'max_tokens'.",
        )


def _entries(logprobs: int | None) -> int:
    """How many are told with each token."""
    return 0 if logprobs is None else logprobs + 1


def check_text(text: str, field: str, model: ServedModel) -> None:
    """Refuse a text that no context holds: before it is tokenised, which takes seconds per MiB.

    Raises ApiError (400).
    """
    least = model.tokenizer.least_tokens(text)
    if least >= model.context:
        raise _prompt_too_long(field, f"at least {least}", model)


def _bad_words(words: list[str], model: ServedModel) -> tuple[tuple[int, ...], ...]:
    """Each word as it is written inside a text (behind a space) and at its start."""
    runs: dict[tuple[int, ...], None] = {}
    for word in words:
        for text in (word, f" {word}"):
            if ids := model.tokenizer.encode_written(text):
                runs[ids] = None
    return tuple(runs)


def check_ids(ids: Iterable[int], field: str, model: ServedModel) -> None:
    """Raises ApiError (400): a tokenizer, too, may know tokens that the model has no embedding for."""
    size = model.facts.vocab_size
    wrong = next((token for token in ids if not 0 <= token < size), None)
    if wrong is not None:
        raise invalid(field, f"Invalid '{field}': token ids must lie between 0 and {size - 1}, not {wrong}.")


def _room(prompt_tokens: int, request: Asked, field: str, model: ServedModel) -> int:
    """How many tokens an answer may have; raises ApiError where prompt and answer pass the context."""
    context, limit = model.context, request.limit
    if prompt_tokens == 0:
        raise invalid(field, f"Invalid '{field}': it has no tokens; send at least one.")
    if prompt_tokens >= context:
        raise _prompt_too_long(field, str(prompt_tokens), model)
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


def _prompt_too_long(field: str, tokens: str, model: ServedModel) -> ApiError:
    return _too_long(
        field,
        f"The prompt has {tokens} tokens and the context of this server {model.context}, "
        "of which the answer needs at least one: shorten the prompt.",
    )


def _too_long(param: str, message: str) -> ApiError:
    return invalid(param, message, "context_length_exceeded")
