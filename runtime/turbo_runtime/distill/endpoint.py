"""Answers of the target as another server gives them, vLLM's say: any that completes prompts of token ids."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any

from turbo_runtime.client.address import ServerError
from turbo_runtime.client.client import Server
from turbo_runtime.client.thread_pool import work_off
from turbo_runtime.distill.data.responses import TokenizedPrompt
from turbo_runtime.distill.errors import DistillError, MayPassError
from turbo_runtime.messages import SamplingParams

AT_ONCE = 32  # requests
_PATH, _TOKENS = "/v1/completions", "return_token_ids"  # the latter is vLLM's; others may refuse it
_PAUSES = (1.0, 4.0, 16.0, 64.0)  # seconds before another try where a server is busy or away
_BUSY = (429, 500, 502, 503, 504, None)
_WHOLE = ("stop", "length")  # reasons for which a whole answer ends
# What a server would take from the model's own settings where it is not told: the law asked for has none.
_NEUTRAL = {"min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}


class Endpoint:
    """One model of one server."""

    def __init__(self, server: Server, model: str, encode: Callable[[str], tuple[int, ...]]) -> None:
        """`encode` turns text into tokens, where the server tells text alone. Such answers lack the token
        that ended them, and may be cut into tokens otherwise than they were drawn.
        """
        self._server, self._model, self._encode = server, model, encode
        self._tells_tokens = True

    def answer(
        self,
        asked: Sequence[TokenizedPrompt],
        params: SamplingParams,
        again: SamplingParams,
        answered: Callable[[], None] = lambda: None,
    ) -> list[tuple[int, ...]]:
        """As `Served.answer`. Raises DistillError."""
        told: list[tuple[int, ...]] = [()] * len(asked)
        one_by_one = Lock()

        def work(number: int) -> None:
            one = asked[number]
            told[number] = self._one(one, again if one.choice else params)
            with one_by_one:
                answered()

        try:
            work_off(range(len(asked)), work, AT_ONCE)
        except ServerError as error:
            failed = MayPassError if error.status in _BUSY else DistillError
            raise failed(f"a prompt is not answered: {error}") from error
        return told

    def _one(self, asked: TokenizedPrompt, params: SamplingParams) -> tuple[int, ...]:
        pauses = list(_PAUSES)
        while True:
            tells_tokens = self._tells_tokens
            try:
                return self._said(asked, params, tells_tokens)
            except ServerError as error:
                if tells_tokens and error.status == 400 and _TOKENS in str(error):
                    self._tells_tokens = False
                elif pauses and error.status in _BUSY:
                    time.sleep(pauses.pop(0))
                else:
                    raise

    def _said(self, asked: TokenizedPrompt, params: SamplingParams, tells_tokens: bool) -> tuple[int, ...]:
        body: dict[str, Any] = {
            "model": self._model,
            "prompt": list(asked.prompt),
            "max_tokens": params.max_tokens,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "top_k": params.top_k,
            "seed": (params.seed or 0) + asked.choice,
            **_NEUTRAL,
        }
        if tells_tokens:
            body[_TOKENS] = True
        text, reason, tokens = "", None, list[int]()
        for event in self._server.stream(body, path=_PATH):
            for choice in event.get("choices") or ():
                text += choice.get("text") or ""
                tokens += choice.get("token_ids") or ()
                reason = choice.get("finish_reason") or reason
        if reason not in _WHOLE:
            raise ServerError(f"{self._server.url} broke an answer off: its finish_reason is {reason}.")
        return tuple(tokens) or self._encode(text)
