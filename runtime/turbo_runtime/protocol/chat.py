"""The body of `/v1/chat/completions`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import FailFast, Field, model_validator

from turbo_runtime.messages import Grammar
from turbo_runtime.protocol.base import at_most
from turbo_runtime.protocol.calls import required_call
from turbo_runtime.protocol.errors import invalid
from turbo_runtime.protocol.messages import Message
from turbo_runtime.protocol.sampling import MAX_LOGPROBS, Count, Sampling
from turbo_runtime.protocol.tools import NamedTool, Tool

MAX_MESSAGES = 4096
MAX_TOOLS = 128
MAX_METADATA = 16  # OpenAI's own bound


class ChatRequest(Sampling):
    """`metadata`, `safety_identifier`, `prompt_cache_key` and `user` are taken and change nothing."""

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
    def _fields_agree(self) -> ChatRequest:
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
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise invalid(
                "tool_choice",
                f"'tool_choice' names '{self.tool_choice.function.name}', which is none of the 'tools'.",
            )
        if self.tool_choice == "required" and not self.tools:
            raise invalid("tool_choice", "'tool_choice': 'required' needs 'tools'; send some.")
        return self

    @property
    def limit(self) -> int | None:
        """Most tokens of one answer; None for as many as the context holds."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def limit_field(self) -> str:
        """The field that the limit was sent in."""
        return "max_completion_tokens" if self.max_completion_tokens else "max_tokens"

    @property
    def told_logprobs(self) -> int | None:
        """How many of the likeliest tokens are told with each token; None: no logprobs."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def offered(self) -> list[Tool]:
        """The tools that the model is told of."""
        return [] if self.tool_choice == "none" else self.tools

    @property
    def must_call(self) -> list[Tool]:
        """The tools of which one must be called; empty where the model may do without."""
        if isinstance(self.tool_choice, NamedTool):
            return [tool for tool in self.tools if tool.function.name == self.tool_choice.function.name]
        return self.tools if self.tool_choice == "required" else []

    @property
    def grammar(self) -> Grammar | None:
        """What the answer must match: a call where one is required. Raises ApiError where two fields ask
        for a format.
        """
        asked = super().grammar
        if not self.must_call:
            return asked
        if asked is not None:
            raise invalid(
                "tool_choice", "A required tool call and a format of the answer exclude each other; send one."
            )
        return required_call(self.must_call)
