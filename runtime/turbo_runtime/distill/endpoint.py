"""Responses of the target from another server, such as vLLM: any that completes prompts of token ids."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from turbo_runtime.client.client import Server, ServerError, work_off
from turbo_runtime.distill.data.responses import TokenizedPrompt
from turbo_runtime.distill.errors import DistillError, MayPassError
from turbo_runtime.messages import SamplingParams

MAX_REQUESTS = 32  # at a time
_PATH, _TOKENS = "/v1/completions", "return_token_ids"  # the latter is vLLM's; others may refuse it
_PAUSES = (1.0, 4.0, 16.0, 64.0)  # seconds before another try where a server is busy or away
_BUSY = (429, 500, 502, 503, 504, None)
_WHOLE = ("stop", "length")  # reasons for which a whole response ends
# Without these a server would apply the model's own settings, which the distribution asked for has none of.
_NEUTRAL = {"min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}


class Endpoint:
    """A model of a server."""

    def __init__(self, server: Server, model: str, encode: Callable[[str], tuple[int, ...]]) -> None:
        """`encode` tokenizes the text of a server that returns no tokens. Such responses lack the token that
        ended them, and their tokens may differ from those that were drawn.
        """
        self._server, self._model, self._encode = server, model, encode
        self._returns_tokens = True

    def answer(
        self,
        prompts: Sequence[TokenizedPrompt],
        params: SamplingParams,
        answered: Callable[[], None] = lambda: None,
    ) -> list[tuple[int, ...]]:
        """As `TargetModel.answer`. Raises DistillError."""
        responses: list[tuple[int, ...]] = [()] * len(prompts)

        def work(number: int) -> None:
            responses[number] = self._try(prompts[number], params)
            answered()

        try:
            work_off(range(len(prompts)), work, MAX_REQUESTS)
        except ServerError as error:
            failed = MayPassError if error.status in _BUSY else DistillError
            raise failed(f"a prompt is not answered: {error}") from error
        return responses

    def _try(self, prompt: TokenizedPrompt, params: SamplingParams) -> tuple[int, ...]:
        body: dict[str, Any] = {
            "model": self._model,
            "prompt": list(prompt.prompt),
            "max_tokens": params.max_tokens,
            "temperature": prompt.temperature,
            "top_p": params.top_p,
            "top_k": params.top_k,
            "seed": params.seed + prompt.choice,
            **_NEUTRAL,
        }
        pauses = list(_PAUSES)
        while True:
            extra = {_TOKENS: True} if self._returns_tokens else {}
            try:
                return self._complete({**body, **extra})
            except ServerError as error:
                if extra and error.status == 400 and _TOKENS in str(error):
                    self._returns_tokens = False
                elif pauses and error.status in _BUSY:
                    time.sleep(pauses.pop(0))
                else:
                    raise

    def _complete(self, body: dict[str, Any]) -> tuple[int, ...]:
        text, reason, tokens = "", None, list[int]()
        for event in self._server.stream(body, path=_PATH):
            for choice in event.get("choices") or ():
                text += choice.get("text") or ""
                tokens += choice.get("token_ids") or ()
                reason = choice.get("finish_reason") or reason
        if reason not in _WHOLE:
            raise ServerError(f"{self._server.url} broke an answer off: its finish_reason is {reason}.")
        return tuple(tokens) or self._encode(text)
