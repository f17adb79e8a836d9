"""Logprobs in three formats: of chats, of completions, and vLLM's `prompt_logprobs`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

from turbo_runtime.messages import TokenLogprob

MIN_LOGPROB = -9999.0  # stands for minus infinity, which JSON lacks; as in vLLM

Json = dict[str, Any]
TokenBytes = Callable[[int], bytes]


def chat_logprobs(logprobs: Sequence[TokenLogprob], token_bytes: TokenBytes) -> Json:
    """Return `choices[].logprobs` of a chat."""

    def entry(token: int, logprob: float) -> Json:
        raw = token_bytes(token)
        return {"token": _text(raw), "logprob": max(logprob, MIN_LOGPROB), "bytes": list(raw)}

    content = [
        {**entry(item.token, item.logprob), "top_logprobs": [entry(*likely) for likely in item.top]}
        for item in logprobs
    ]
    return {"content": content, "refusal": None}


def text_length(ids: Sequence[int], token_bytes: TokenBytes) -> int:
    """Return the number of characters of the tokens' texts, one by one."""
    return sum(len(_text(token_bytes(token))) for token in ids)


def completion_logprobs(
    ids: Sequence[int], logprobs: Sequence[TokenLogprob | None], offset: int, token_bytes: TokenBytes
) -> Json:
    """Return `choices[].logprobs` of a completion. `offset` is where the first token's text starts, in
    characters; the logprob of a prompt's first token is None.
    """
    lengths = [text_length([token], token_bytes) for token in ids]
    return {
        "tokens": [_name(token_bytes(token)) for token in ids],
        "token_logprobs": [None if item is None else max(item.logprob, MIN_LOGPROB) for item in logprobs],
        "top_logprobs": [None if item is None else _top_logprobs(item, token_bytes) for item in logprobs],
        "text_offset": list(accumulate(lengths, initial=offset))[:-1],
    }


def prompt_logprobs(logprobs: Sequence[TokenLogprob], token_bytes: TokenBytes) -> list[Json | None]:
    """Return vLLM's `prompt_logprobs`: the likely tokens at each position; null for the first."""

    def by_id(item: TokenLogprob) -> Json:
        ranked = {token: (logprob, rank) for rank, (token, logprob) in enumerate(item.top, start=1)}
        ranked[item.token] = item.logprob, item.rank
        return {
            str(token): {
                "logprob": max(logprob, MIN_LOGPROB),
                "rank": rank,
                "decoded_token": _text(token_bytes(token)),
            }
            for token, (logprob, rank) in ranked.items()
        }

    return [None, *map(by_id, logprobs)]


def _top_logprobs(item: TokenLogprob, token_bytes: TokenBytes) -> dict[str, float]:
    """The likeliest tokens and the token itself, which need not be one of them."""
    entries = [*item.top, (item.token, item.logprob)]
    return {_name(token_bytes(token)): max(logprob, MIN_LOGPROB) for token, logprob in entries}


def _text(raw: bytes) -> str:
    return raw.decode(errors="replace")


def _name(raw: bytes) -> str:
    """Text, or OpenAI's notation of bytes that are none: two halves of characters must not look alike."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
