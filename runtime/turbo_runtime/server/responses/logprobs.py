"""Logprobs in the shapes of the three who ask: chats, completions, and vLLM's `prompt_logprobs`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

from turbo_runtime.messages import TokenLogprob

LEAST = -9999.0  # stands for minus infinity, which JSON lacks; as in vLLM

Json = dict[str, Any]
BytesOf = Callable[[int], bytes]


def chat_logprobs(tokens: Sequence[TokenLogprob], bytes_of: BytesOf) -> Json:
    """`choices[].logprobs` of a chat."""

    def entry(token: int, logprob: float) -> Json:
        raw = bytes_of(token)
        return {"token": _text(raw), "logprob": max(logprob, LEAST), "bytes": list(raw)}

    content = [
        {**entry(one.token, one.logprob), "top_logprobs": [entry(*likely) for likely in one.top]}
        for one in tokens
    ]
    return {"content": content, "refusal": None}


def text_length(ids: Sequence[int], bytes_of: BytesOf) -> int:
    """Characters of the tokens' texts, one by one."""
    return sum(len(_text(bytes_of(token))) for token in ids)


def completion_logprobs(
    ids: Sequence[int], told: Sequence[TokenLogprob | None], offset: int, bytes_of: BytesOf
) -> Json:
    """`choices[].logprobs` of a completion. `told` is None for the first token of a prompt; `offset` is
    where the first token's text starts, in characters.
    """
    lengths = [text_length([token], bytes_of) for token in ids]
    return {
        "tokens": [_name(bytes_of(token)) for token in ids],
        "token_logprobs": [None if one is None else max(one.logprob, LEAST) for one in told],
        "top_logprobs": [None if one is None else _likeliest(one, bytes_of) for one in told],
        "text_offset": list(accumulate(lengths, initial=offset))[:-1],
    }


def prompt_logprobs(told: Sequence[TokenLogprob], bytes_of: BytesOf) -> list[Json | None]:
    """vLLM's `prompt_logprobs`: for each prompt token what was likely there; null for the first."""
    return [None, *[_by_id(one, bytes_of) for one in told]]


def _by_id(one: TokenLogprob, bytes_of: BytesOf) -> Json:
    ranked = {token: (logprob, rank) for rank, (token, logprob) in enumerate(one.top, start=1)}
    ranked[one.token] = one.logprob, one.rank
    return {
        str(token): {"logprob": max(logprob, LEAST), "rank": rank, "decoded_token": _text(bytes_of(token))}
        for token, (logprob, rank) in ranked.items()
    }


def _likeliest(one: TokenLogprob, bytes_of: BytesOf) -> dict[str, float]:
    """The likeliest tokens and the token itself, which need not be one of them."""
    told = [*one.top, (one.token, one.logprob)]
    return {_name(bytes_of(token)): max(logprob, LEAST) for token, logprob in told}


def _text(raw: bytes) -> str:
    return raw.decode(errors="replace")


def _name(raw: bytes) -> str:
    """Text, or OpenAI's notation of bytes that are none: two halves of characters must not look alike."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
