"""The body of `/v1/completions`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, PlainValidator, WithJsonSchema

from turbo_runtime.protocol.sampling import MAX_LOGPROBS, Sampling

MAX_PROMPTS = 2048
COMPLETION_MAX_TOKENS = 16  # the legacy endpoint's own default
_FORMS = "expected a string, a list of strings, a list of token ids, or a list of such lists"


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _one_prompt_is_a_list(value: Any) -> Any:
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise ValueError(_FORMS)
    if all(_is_id(one) for one in value):
        return [value]
    if len(value) > MAX_PROMPTS:
        raise ValueError(f"expected at most {MAX_PROMPTS} prompts, got {len(value)}")
    if all(isinstance(one, str) for one in value):
        return value
    if all(isinstance(one, list) and all(_is_id(token) for token in one) for one in value):
        return value
    raise ValueError(_FORMS)


def _some(items: dict[str, Any], **bounds: int) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": 1, **bounds}


_TEXT, _ID = {"type": "string", "minLength": 1}, {"type": "integer", "minimum": 0}
Prompt = Annotated[
    list[str] | list[list[int]],
    PlainValidator(_one_prompt_is_a_list),
    WithJsonSchema(
        {
            "anyOf": [
                _TEXT,
                _some(_TEXT, maxItems=MAX_PROMPTS),
                _some(_ID),
                _some(_some(_ID), maxItems=MAX_PROMPTS),
            ]
        }
    ),
]


class CompletionRequest(Sampling):
    """`prompt` holds texts, or lists of token ids."""

    prompt: Prompt
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    echo: bool = False

    @property
    def limit(self) -> int:
        """Most tokens of one answer."""
        return self.max_tokens or COMPLETION_MAX_TOKENS

    @property
    def limit_field(self) -> str:
        """The field that the limit was sent in."""
        return "max_tokens"

    @property
    def told_logprobs(self) -> int | None:
        """How many of the likeliest tokens are told with each token; None: no logprobs."""
        return self.logprobs
