"""Fields of both endpoints: how text is sampled, where it ends, its format, and what is reported."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from annotated_types import GroupedMetadata, MaxLen
from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field, WithJsonSchema, model_validator

from turbo_runtime.contract.config import DraftMethod
from turbo_runtime.messages import Grammar
from turbo_runtime.protocol.errors import invalid

# With a backslash before them they stand for themselves in every dialect of regular expressions.
_ESCAPES = str.maketrans({letter: f"\\{letter}" for letter in "\\.^$|?*+()[]{}"})


class Strict(BaseModel):
    """Model without unknown fields or numbers in strings; null means absent, as clients send it.

    Validation stops at the first problem, the only one reported: a body of 4 MiB can hold millions.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _drop_null(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        known = {field.alias or name for name, field in cls.model_fields.items()}
        sent = {name: item for name, item in value.items() if item is not None}
        unknown = next((name for name in sent if name not in known), None)  # the first one is rejected
        return {name: item for name, item in sent.items() if name in known or name == unknown}


@dataclass(frozen=True)
class AtMost(GroupedMetadata):
    """Limit on a field's number of entries, checked before any of them is validated."""

    count: int

    def __iter__(self) -> Iterator[object]:
        return iter((MaxLen(self.count), BeforeValidator(self._check)))

    def _check(self, value: Any) -> Any:
        if isinstance(value, (list, dict)) and len(value) > self.count:
            raise ValueError(f"expected at most {self.count} entries, got {len(value)}")
        return value


class StreamOptions(Strict):
    """Options of a stream: `include_usage` asks for one more event, with the usage of the whole request;
    vLLM's `continuous_usage_stats` for the usage so far in every event.

    OpenAI's `include_obfuscation` is no field: false asks for nothing, and true is rejected as unknown.
    """

    include_usage: bool = False
    continuous_usage_stats: bool = False

    @model_validator(mode="before")
    @classmethod
    def _drop_obfuscation(cls, value: Any) -> Any:
        if not isinstance(value, dict) or value.get("include_obfuscation") is not False:
            return value
        return {name: item for name, item in value.items() if name != "include_obfuscation"}


class NamedSchema(Strict):
    """JSON schema as OpenAI wraps it. `strict` changes nothing: an answer always follows the schema."""

    name: str
    description: str | None = None
    body: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Strict):
    """OpenAI's request for JSON."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None

    @model_validator(mode="after")
    def _check_schema(self) -> ResponseFormat:
        if self.json_schema is None and self.type == "json_schema":
            raise ValueError("'json_schema' is missing, which type 'json_schema' needs")
        if self.json_schema is not None and self.type != "json_schema":
            raise ValueError("'json_schema' belongs to type 'json_schema' alone: leave it out")
        return self

    @property
    def grammar(self) -> Grammar | None:
        """Grammar of the answer; None for plain text."""
        if self.json_schema is not None:
            return Grammar("json_schema", json.dumps(self.json_schema.body))
        return Grammar("json_object") if self.type == "json_object" else None


class StructuredOutputs(Strict):
    """vLLM's request for a format: exactly one of these."""

    schema_: dict[str, Any] | str | None = Field(None, alias="json")  # a schema, or its text
    json_object: Literal[True] | None = None
    regex: str | None = None
    grammar_: str | None = Field(None, alias="grammar")  # in Lark's notation
    choice: Annotated[list[str], FailFast()] = Field(default_factory=list, min_length=1)

    @model_validator(mode="after")
    def _check_single(self) -> StructuredOutputs:
        if len(self.model_fields_set) != 1:
            raise ValueError("give exactly one of 'json', 'json_object', 'regex', 'grammar' and 'choice'")
        return self

    @property
    def grammar(self) -> Grammar:
        """Grammar of the answer."""
        if self.schema_ is not None:
            text = self.schema_ if isinstance(self.schema_, str) else json.dumps(self.schema_)
            return Grammar("json_schema", text)
        if self.regex is not None:
            return Grammar("regex", self.regex)
        if self.grammar_ is not None:
            return Grammar("lark", self.grammar_)
        if self.choice:
            return Grammar("regex", "|".join(text.translate(_ESCAPES) for text in self.choice))
        return Grammar("json_object")


MAX_CHOICES = 128
MAX_STOPS = 4
MAX_LOGPROBS = 20  # of the likeliest tokens at a position
MAX_WORDS = 256  # of `bad_words` and `stop_token_ids`
MAX_WORD_CHARACTERS = 1024  # of one of `bad_words` or `stop`
MAX_BIASES = 1024
MAX_DRAFT_TOKENS = 64

Count = Annotated[int, Field(ge=1)]
TokenId = Annotated[int, Field(ge=0)]
Word = Annotated[str, Field(min_length=1, max_length=MAX_WORD_CHARACTERS)]

_WORD = {"type": "string", "minLength": 1, "maxLength": MAX_WORD_CHARACTERS}
Stops = Annotated[
    list[Word],
    FailFast(),
    AtMost(MAX_STOPS),
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
    WithJsonSchema({"anyOf": [_WORD, {"type": "array", "items": _WORD, "maxItems": MAX_STOPS}]}),
]
Speculation = Annotated[
    DraftMethod,
    BeforeValidator(lambda value: ("auto" if value else "off") if isinstance(value, bool) else value),
    WithJsonSchema({"anyOf": [{"type": "boolean"}, {"enum": list(get_args(DraftMethod))}]}),
]


class Sampling(Strict):
    """OpenAI's fields, and vLLM's where OpenAI has none; `speculation` and `max_draft_tokens` are Turbo's."""

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
        AtMost(MAX_BIASES),
    ] = Field(default_factory=dict)  # of token ids as text
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 64)
    stop: Stops = Field(default_factory=list)
    stop_token_ids: Annotated[list[TokenId], FailFast(), AtMost(MAX_WORDS)] = Field(default_factory=list)
    ignore_eos: bool = False
    min_tokens: int = Field(0, ge=0)
    max_tokens: Count | None = None
    bad_words: Annotated[list[Word], FailFast(), AtMost(MAX_WORDS)] = Field(default_factory=list)
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
    def _check_stream_options(self) -> Sampling:
        if "stream_options" in self.model_fields_set and not self.stream:
            raise invalid("stream_options", "'stream_options' is only allowed together with 'stream': true.")
        return self

    @property
    def grammar(self) -> Grammar | None:
        """Grammar of the answer. Raises ApiError where two fields ask for a format."""
        grammar = None if self.response_format is None else self.response_format.grammar
        if self.structured_outputs is None:
            return grammar
        if grammar is not None:
            message = "'response_format' and 'structured_outputs' both ask for a format; send one of them."
            raise invalid("structured_outputs", message)
        return self.structured_outputs.grammar

    @property
    def grammar_field(self) -> str:
        """Field that the grammar comes from, where there is one."""
        return "structured_outputs" if self.structured_outputs else "response_format"
