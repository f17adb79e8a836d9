"""Turns of a chat, text only, and the tools that a model may call."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, FailFast, Field, WithJsonSchema, field_validator, model_validator

from turbo_runtime.messages import Grammar
from turbo_runtime.protocol.errors import cut
from turbo_runtime.protocol.sampling import Strict

ToolName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class Function(Strict):
    """Function of a tool; `parameters` is a JSON schema, without which it takes none. `strict` changes
    nothing: a required call always follows the schema, and a voluntary one need not.
    """

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Strict):
    """Tool as chat templates read it."""

    type: Literal["function"]
    function: Function

    def for_template(self) -> dict[str, Any]:
        """Return what was sent, and no field that was not."""
        return self.model_dump(exclude_unset=True)


class FunctionName(Strict):
    """Function to call."""

    name: ToolName


class NamedTool(Strict):
    """`tool_choice` that names one function."""

    type: Literal["function"]
    function: FunctionName


class CalledFunction(Strict):
    """Call as clients send it back; some servers report a call without arguments as an empty string."""

    name: str
    arguments: str

    @field_validator("arguments")
    @classmethod
    def _check_arguments(cls, value: str) -> str:
        value = value.strip() or "{}"
        try:
            document = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"expected a JSON object in a string: {error}") from error
        if not isinstance(document, dict):
            raise ValueError("expected a JSON object in a string")
        return value


class ToolCallSent(Strict):
    """Call that an earlier turn made."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None  # clients that join the events of a stream keep it

    def for_template(self) -> dict[str, Any]:
        """Return the call with its arguments as an object, which templates write themselves."""
        function = {"name": self.function.name, "arguments": json.loads(self.function.arguments)}
        return {"id": self.id, "type": self.type, "function": function}


def required_call_grammar(tools: Sequence[Tool]) -> Grammar:
    """Return the grammar of one call as a JSON object, in an order that lets the name be read first."""
    closed = {"type": "object", "additionalProperties": False}
    calls = []
    for number, tool in enumerate(tools):
        parameters = _embed(
            tool.function.parameters or {**closed, "properties": {}}, f"turbo://tools/{number}/"
        )
        properties = {"name": {"const": tool.function.name}, "arguments": parameters}
        calls.append({**closed, "properties": properties, "required": ["name", "arguments"]})
    return Grammar("json_schema", json.dumps({"anyOf": calls}))


def _embed(schema: dict[str, Any], address: str) -> dict[str, Any]:
    """Give a schema an address of its own, so that its references, such as `#/$defs/Item`, are read from its
    own root inside another schema. Tools may have definitions of the same names.
    """
    # Draft 4 calls the address `id`; llguidance, which reads any draft, also looks for the newer name.
    keys = ("id", "$id") if "draft-04" in str(schema.get("$schema")) else ("$id",)
    own = schema.get(keys[0])
    address = own if isinstance(own, str) and own.partition("#")[0] else address
    embedded = {**schema, **dict.fromkeys(keys, address)}
    if "$ref" in embedded:  # before draft 2019-09 a reference hides everything next to it, its address too
        others = [{"allOf": embedded["allOf"]}] if "allOf" in embedded else []
        embedded["allOf"] = [{"$ref": embedded.pop("$ref")}, *others]
    return embedded


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
        if extra := sorted(name for name in part.keys() - {"type", "text"} if part[name] is not None):
            raise ValueError(f"part {position} has {cut(extra[0])!r}, which is not supported: leave it out")
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
    """Turn of a chat: its text, or the tools that it called."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCallSent], FailFast()] = Field(default_factory=list)  # of an assistant
    reasoning_content: str | None = None  # of an assistant
    tool_call_id: str | None = None  # of a tool: the call that it answers

    @model_validator(mode="after")
    def _check_role(self) -> Message:
        if self.role != "assistant" and (self.tool_calls or self.reasoning_content is not None):
            raise ValueError("only an assistant has 'tool_calls' and 'reasoning_content'")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            raise ValueError("'tool_call_id' belongs to role 'tool', which needs it")
        if self.content is None and not self.tool_calls:
            raise ValueError("'content' is missing; only an assistant that calls tools may leave it out")
        return self

    def for_template(self) -> dict[str, Any]:
        """Return the turn as chat templates read it; they know OpenAI's newer `developer` as `system`."""
        role = "system" if self.role == "developer" else self.role
        turn: dict[str, Any] = {"role": role, "content": self.content}
        turn |= self.model_dump(include={"name", "reasoning_content", "tool_call_id"}, exclude_none=True)
        if self.tool_calls:
            turn["tool_calls"] = [call.for_template() for call in self.tool_calls]
        return turn
