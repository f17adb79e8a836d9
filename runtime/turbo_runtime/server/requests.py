"""What a client may send: the fields of both endpoints, their types and ranges."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from turbo_runtime.server.errors import ApiError, invalid
from turbo_runtime.server.unsupported import CHAT, COMPLETION, Unsupported, keep_supported

MAX_CHOICES = 128
MAX_STOPS = 4
COMPLETION_MAX_TOKENS = 16  # the legacy endpoint's own default

_Count = Annotated[int, Field(ge=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(_Strict):
    """`include_usage` asks for one more event, with the usage of the whole request."""

    include_usage: bool = False


class _Common(_Strict):
    """The fields of both endpoints; `top_k` and `speculation` are Turbo's own."""

    model: str
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=-1)  # 0 and -1 keep all
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 64)
    stop: list[str] = Field(default_factory=list, max_length=MAX_STOPS)
    max_tokens: _Count | None = None
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    user: str | None = None
    stream: bool = False
    stream_options: StreamOptions = Field(default_factory=StreamOptions)
    speculation: bool = True

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop_is_a_list(cls, value: Any) -> Any:
        stops = [value] if isinstance(value, str) else value
        if isinstance(stops, list) and any(stop == "" for stop in stops):
            raise ValueError("a stop string must not be empty")
        return stops

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> _Common:
        if "stream_options" in self.model_fields_set and not self.stream:
            raise invalid("stream_options", "'stream_options' is only allowed together with 'stream': true.")
        return self


class Message(_Strict):
    """One turn of a chat; text only."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str
    name: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _null_means_absent(cls, value: Any) -> Any:
        # an assistant's message that came from a client carries tool_calls, refusal, audio ... as null
        return (
            {name: one for name, one in value.items() if one is not None}
            if isinstance(value, dict)
            else value
        )

    @field_validator("content", mode="before")
    @classmethod
    def _join_text_parts(cls, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        texts: list[str] = []
        for position, part in enumerate(value):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            if kind != "text" or not isinstance(part.get("text"), str):
                raise ValueError(
                    f"part {position} is {kind!r}; only parts of type 'text' with a 'text' are taken"
                )
            texts.append(part["text"])
        return "".join(texts)

    def for_template(self) -> dict[str, str]:
        """As chat templates read it; they know OpenAI's newer `developer` by its older name."""
        role = "system" if self.role == "developer" else self.role
        named = {} if self.name is None else {"name": self.name}
        return {"role": role, "content": self.content, **named}


class ChatRequest(_Common):
    """The body of `/v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: _Count | None = None

    @model_validator(mode="after")
    def _one_limit(self) -> ChatRequest:
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            raise invalid(
                "max_tokens",
                "'max_tokens' and 'max_completion_tokens' differ; send only 'max_completion_tokens'.",
            )
        return self

    @property
    def limit(self) -> int | None:
        """Most tokens of one answer; None for as many as the context holds."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def limit_field(self) -> str:
        """The field that the limit was sent in."""
        return "max_completion_tokens" if self.max_completion_tokens else "max_tokens"


class CompletionRequest(_Common):
    """The body of `/v1/completions`. `prompts` holds texts, or lists of token ids."""

    prompt: list[str] | list[list[int]]

    @field_validator("prompt", mode="before")
    @classmethod
    def _one_prompt_is_a_list(cls, value: Any) -> Any:
        if isinstance(value, str):
            return [value]
        if not isinstance(value, list) or not value:
            raise ValueError(
                "expected a string, a list of strings, a list of token ids, or a list of such lists"
            )
        if all(_is_id(one) for one in value):
            return [value]
        if all(isinstance(one, str) for one in value):
            return value
        if all(isinstance(one, list) and all(_is_id(token) for token in one) for one in value):
            return value
        raise ValueError("expected a string, a list of strings, a list of token ids, or a list of such lists")

    @property
    def limit(self) -> int:
        """Most tokens of one answer."""
        return self.max_tokens or COMPLETION_MAX_TOKENS

    @property
    def limit_field(self) -> str:
        """The field that the limit was sent in."""
        return "max_tokens"


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


Parsed = TypeVar("Parsed", bound=_Common)


def parse_chat(body: Mapping[str, Any]) -> ChatRequest:
    """Raises ApiError (400) that names the field."""
    return _parse(ChatRequest, CHAT, body)


def parse_completion(body: Mapping[str, Any]) -> CompletionRequest:
    """Raises ApiError (400) that names the field."""
    return _parse(CompletionRequest, COMPLETION, body)


def _parse(kind: type[Parsed], unsupported: Mapping[str, Unsupported], body: Mapping[str, Any]) -> Parsed:
    kept = keep_supported(body, unsupported, kind.model_fields)
    try:
        return kind.model_validate(kept)
    except ValidationError as error:
        raise _first(error) from error


def _first(error: ValidationError) -> ApiError:
    """The first problem as one sentence: a client can mend one at a time."""
    problem = error.errors(include_url=False)[0]
    param = _path(problem["loc"])
    if problem["type"] == "missing":
        return invalid(param, f"'{param}' is missing.", "missing_required_parameter")
    if problem["type"] == "extra_forbidden":
        return invalid(
            param, f"'{param}' is not supported by this server: leave it out.", "unsupported_parameter"
        )
    reason = problem["msg"].removeprefix("Value error, ")
    code = "invalid_type" if problem["type"].endswith("_type") else "invalid_value"
    return invalid(param, f"Invalid '{param}': {reason[0].lower()}{reason[1:]}.", code)


def _path(loc: tuple[int | str, ...]) -> str:
    path = ""
    for step in loc:
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else step
    return path
