"""The fields of both endpoints: how text is drawn, where it ends and how it is told."""

from __future__ import annotations

from typing import Annotated, Any, get_args

from pydantic import BeforeValidator, FailFast, Field, WithJsonSchema, model_validator

from turbo_runtime.messages import Drafting, Grammar
from turbo_runtime.protocol.base import StreamOptions, Strict, at_most
from turbo_runtime.protocol.errors import invalid
from turbo_runtime.protocol.structure import ResponseFormat, StructuredOutputs

MAX_CHOICES = 128
MAX_STOPS = 4
MAX_LOGPROBS = 20  # of the likeliest tokens at a position
MAX_WORDS = 256  # of `bad_words` and `stop_token_ids`
MAX_WORD_CHARACTERS = 1024  # of one of `bad_words` or `stop`
MAX_BIASES = 1024
MAX_DRAFT_TOKENS = 64

Count = Annotated[int, Field(ge=1)]
TokenId = Annotated[int, Field(ge=0)]
Words = Annotated[str, Field(min_length=1, max_length=MAX_WORD_CHARACTERS)]


def _one_stop_is_a_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _switch_is_a_method(value: Any) -> Any:
    return {True: "auto", False: "off"}[value] if isinstance(value, bool) else value


_WORD = {"type": "string", "minLength": 1, "maxLength": MAX_WORD_CHARACTERS}
Stops = Annotated[
    list[Words],
    FailFast(),
    Field(max_length=MAX_STOPS),
    at_most(MAX_STOPS),
    BeforeValidator(_one_stop_is_a_list),
    WithJsonSchema({"anyOf": [_WORD, {"type": "array", "items": _WORD, "maxItems": MAX_STOPS}]}),
]
Speculation = Annotated[
    Drafting,
    BeforeValidator(_switch_is_a_method),
    WithJsonSchema({"anyOf": [{"type": "boolean"}, {"enum": list(get_args(Drafting))}]}),
]


class Sampling(Strict):
    """OpenAI's names; vLLM's where OpenAI has none; `speculation` and `max_draft_tokens` are Turbo's own."""

    model: str
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=-1)  # 0 and -1 keep all
    min_p: float = Field(0.0, ge=0, le=1)
    repetition_penalty: float = Field(1.0, ge=0.01, le=100)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    logit_bias: Annotated[
        dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]],
        at_most(MAX_BIASES),
    ] = Field(default_factory=dict, max_length=MAX_BIASES)  # of token ids as text
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 64)
    stop: Stops = Field(default_factory=list)
    stop_token_ids: Annotated[list[TokenId], FailFast(), at_most(MAX_WORDS)] = Field(
        default_factory=list, max_length=MAX_WORDS
    )
    ignore_eos: bool = False
    min_tokens: int = Field(0, ge=0)
    max_tokens: Count | None = None
    bad_words: Annotated[list[Words], FailFast(), at_most(MAX_WORDS)] = Field(
        default_factory=list, max_length=MAX_WORDS
    )
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    prompt_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    user: str | None = None
    cache_salt: str | None = Field(None, min_length=1, max_length=256)
    stream: bool = False
    stream_options: StreamOptions = Field(default_factory=StreamOptions)
    speculation: Speculation = "auto"
    max_draft_tokens: int | None = Field(None, ge=0, le=MAX_DRAFT_TOKENS)

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> Sampling:
        if "stream_options" in self.model_fields_set and not self.stream:
            raise invalid("stream_options", "'stream_options' is only allowed together with 'stream': true.")
        return self

    @property
    def grammar(self) -> Grammar | None:
        """What the answer must match. Raises ApiError where two fields ask for a format."""
        asked = None if self.response_format is None else self.response_format.grammar
        if self.structured_outputs is None:
            return asked
        if asked is not None:
            raise invalid(
                "structured_outputs",
                "'response_format' and 'structured_outputs' both ask for a format; send one of them.",
            )
        return self.structured_outputs.grammar
