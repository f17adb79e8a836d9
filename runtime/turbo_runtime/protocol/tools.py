"""The tools that a model may call, and the calls of earlier turns."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from turbo_runtime.protocol.base import Strict

ToolName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class Function(Strict):
    """`parameters` is a JSON schema; without one the function takes none. `strict` changes nothing:
    a required call always follows the schema, and one that the model makes of itself is not held to it.
    """

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @property
    def schema_of_arguments(self) -> dict[str, Any]:
        """What the arguments must match."""
        return self.parameters or {"type": "object", "properties": {}, "additionalProperties": False}


class Tool(Strict):
    """A tool as chat templates read it."""

    type: Literal["function"]
    function: Function

    def for_template(self) -> dict[str, Any]:
        """What was sent, and no field that was not."""
        return self.model_dump(exclude_unset=True)


class FunctionName(Strict):
    """The function that is to be called."""

    name: ToolName


class NamedTool(Strict):
    """`tool_choice` of one function."""

    type: Literal["function"]
    function: FunctionName


class CalledFunction(Strict):
    """A call as OpenAI's clients send it back: the arguments are JSON in a string, or an empty one, which is
    what many a server tells of a call without arguments.
    """

    name: str
    arguments: str

    @field_validator("arguments")
    @classmethod
    def _arguments_are_an_object(cls, value: str) -> str:
        value = value.strip() or "{}"
        try:
            document = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"expected a JSON object in a string: {error}") from error
        if not isinstance(document, dict):
            raise ValueError("expected a JSON object in a string")
        return value


class ToolCallSent(Strict):
    """A call that an earlier turn made."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None  # clients that join the events of a stream keep it

    def for_template(self) -> dict[str, Any]:
        """Templates write the arguments themselves, so they get an object."""
        function = {"name": self.function.name, "arguments": json.loads(self.function.arguments)}
        return {"id": self.id, "type": self.type, "function": function}
