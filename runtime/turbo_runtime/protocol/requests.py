"""Bodies of `/v1/chat/completions` and `/v1/completions`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import FailFast, Field, PlainValidator, WithJsonSchema, model_validator

from turbo_runtime.messages import Grammar
from turbo_runtime.protocol.errors import invalid
from turbo_runtime.protocol.messages import Message, NamedTool, Tool, required_call_grammar
from turbo_runtime.protocol.sampling import MAX_LOGPROBS, Count, Sampling, at_most

MAX_MESSAGES = 4096
MAX_TOOLS = 128
MAX_METADATA = 16  # OpenAI's own bound


class ChatRequest(Sampling):
    """Body of a chat; `metadata`, `safety_identifier`, `prompt_cache_key` and `user` change nothing."""

    messages: Annotated[list[Message], FailFast(), at_most(MAX_MESSAGES)] = Field(
        min_length=1, max_length=MAX_MESSAGES
    )
    max_completion_tokens: Count | None = None
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    tools: Annotated[list[Tool], FailFast(), at_most(MAX_TOOLS)] = Field(
        default_factory=list, max_length=MAX_TOOLS
    )
    tool_choice: Literal["none", "auto", "required"] | NamedTool = "auto"
    parallel_tool_calls: bool = True
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    metadata: Annotated[dict[str, str], at_most(MAX_METADATA)] = Field(
        default_factory=dict, max_length=MAX_METADATA
    )
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None

    @model_validator(mode="after")
    def _check_fields(self) -> ChatRequest:
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            raise invalid(
                "max_tokens",
                "'max_tokens' and 'max_completion_tokens' differ; send only 'max_completion_tokens'.",
            )
        if self.top_logprobs and not self.logprobs:
            raise invalid("top_logprobs", "'top_logprobs' is only allowed together with 'logprobs': true.")
        names = [tool.function.name for tool in self.tools]
        if len(set(names)) < len(names):
            raise invalid("tools", "Two of the 'tools' have the same name; give each its own.")
        if isinstance(self.tool_choice, NamedTool) and (name := self.tool_choice.function.name) not in names:
            raise invalid("tool_choice", f"'tool_choice' names '{name}', which is none of the 'tools'.")
        if self.tool_choice == "required" and not self.tools:
            raise invalid("tool_choice", "'tool_choice': 'required' needs 'tools'; send some.")
        self.max_tokens = self.max_completion_tokens or self.max_tokens
        return self

    @property
    def num_logprobs(self) -> int | None:
        """Number of the likeliest tokens to report with each token; None: no logprobs."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def offered_tools(self) -> list[Tool]:
        """Tools that the prompt describes."""
        return [] if self.tool_choice == "none" else self.tools

    @property
    def required_tools(self) -> list[Tool]:
        """Tools of which one must be called; empty where no call is required."""
        if isinstance(self.tool_choice, NamedTool):
            return [tool for tool in self.tools if tool.function.name == self.tool_choice.function.name]
        return self.tools if self.tool_choice == "required" else []

    @property
    def grammar(self) -> Grammar | None:
        """Grammar of the answer or of a required call. Raises ApiError where two fields ask for a format."""
        grammar = super().grammar
        if not self.required_tools:
            return grammar
        if grammar is not None:
            raise invalid(
                "tool_choice", "A required tool call and a format of the answer exclude each other; send one."
            )
        return required_call_grammar(self.required_tools)


MAX_PROMPTS = 2048
COMPLETION_MAX_TOKENS = 16  # the legacy endpoint's own default
_FORMS = "expected a string, a list of strings, a list of token ids, or a list of such lists"


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)  # a bool is no id


def _list_prompts(value: Any) -> Any:
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise ValueError(_FORMS)
    if _are_ids(value):
        return [value]
    if len(value) > MAX_PROMPTS:
        raise ValueError(f"expected at most {MAX_PROMPTS} prompts, got {len(value)}")
    if all(isinstance(item, str) for item in value) or all(map(_are_ids, value)):
        return value
    raise ValueError(_FORMS)


def _array(items: dict[str, Any], **bounds: int) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": 1, **bounds}


_TEXT, _ID = {"type": "string", "minLength": 1}, {"type": "integer", "minimum": 0}
_LISTS = (_array(_TEXT, maxItems=MAX_PROMPTS), _array(_ID), _array(_array(_ID), maxItems=MAX_PROMPTS))
Prompt = Annotated[
    list[str] | list[list[int]],
    PlainValidator(_list_prompts),
    WithJsonSchema({"anyOf": [_TEXT, *_LISTS]}),
]


class CompletionRequest(Sampling):
    """Body of a completion; `prompt` holds texts, or lists of token ids."""

    prompt: Prompt
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    echo: bool = False

    @model_validator(mode="after")
    def _set_max_tokens(self) -> CompletionRequest:
        self.max_tokens = self.max_tokens or COMPLETION_MAX_TOKENS
        return self

    @property
    def num_logprobs(self) -> int | None:
        """Number of the likeliest tokens to report with each token; None: no logprobs."""
        return self.logprobs
