"""The turns of a chat; text only."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, FailFast, Field, WithJsonSchema, model_validator

from turbo_runtime.protocol.base import Strict
from turbo_runtime.protocol.errors import cut
from turbo_runtime.protocol.tools import ToolCallSent


def _join_text_parts(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    texts: list[str] = []
    for position, part in enumerate(value):
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        if kind != "text" or not isinstance(part.get("text"), str):
            raise ValueError(
                f"part {position} is {cut(str(kind))!r}; only parts of type 'text' with a 'text' are taken"
            )
        if more := sorted(name for name in part.keys() - {"type", "text"} if part[name] is not None):
            raise ValueError(f"part {position} has {cut(more[0])!r}, which is not supported: leave it out")
        texts.append(part["text"])
    return "".join(texts)


_TEXT_PART = {
    "type": "object",
    "required": ["type", "text"],
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    "additionalProperties": False,
}
Content = Annotated[
    str,
    BeforeValidator(_join_text_parts),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": _TEXT_PART}]}),
]


class Message(Strict):
    """One turn: its text, or the tools that it called."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCallSent], FailFast()] = Field(default_factory=list)  # of an assistant
    reasoning_content: str | None = None  # of an assistant
    tool_call_id: str | None = None  # of a tool: the call that it answers

    @model_validator(mode="after")
    def _fields_belong_to_the_role(self) -> Message:
        if self.role != "assistant" and (self.tool_calls or self.reasoning_content is not None):
            raise ValueError("only an assistant has 'tool_calls' and 'reasoning_content'")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            raise ValueError("'tool_call_id' belongs to role 'tool', which needs it")
        if self.content is None and not self.tool_calls:
            raise ValueError("'content' is missing; only an assistant that calls tools may leave it out")
        return self

    def for_template(self) -> dict[str, Any]:
        """As chat templates read it; they know OpenAI's newer `developer` by its older name."""
        told: dict[str, Any] = {
            "role": "system" if self.role == "developer" else self.role,
            "content": self.content,
        }
        for field in ("name", "reasoning_content", "tool_call_id"):
            if (value := getattr(self, field)) is not None:
                told[field] = value
        if self.tool_calls:
            told["tool_calls"] = [call.for_template() for call in self.tool_calls]
        return told
