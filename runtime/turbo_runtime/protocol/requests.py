"""Bodies of `/v1/chat/completions`, with its turns and tools, and of `/v1/completions`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, FailFast, Field, PlainValidator, WithJsonSchema, model_validator

from turbo_runtime.messages import Grammar
from turbo_runtime.protocol.errors import cut, invalid
from turbo_runtime.protocol.sampling import MAX_LOGPROBS, AtMost, Count, Sampling, Strict

MAX_MESSAGES = 4096
MAX_TOOLS = 128
MAX_METADATA = 16  # OpenAI's own bound

ToolName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class Function(Strict):
    """Function of a tool; `parameters` is a JSON schema. `strict` changes nothing: required calls obey it."""

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Strict):
    """Tool as chat templates read it."""

    type: Literal["function"]
    function: Function


class FunctionName(Strict):
    """Function to call."""

    name: ToolName


class NamedTool(Strict):
    """`tool_choice` that names one function."""

    type: Literal["function"]
    function: FunctionName


def _check_arguments(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    value = value.strip() or "{}"
    try:
        document = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"expected a JSON object in a string: {error}") from error
    if not isinstance(document, dict):
        raise ValueError("expected a JSON object in a string")
    return value


class CalledFunction(Strict):
    """Call as clients send it back; some servers report a call without arguments as an empty string."""

    name: str
    arguments: Annotated[str, BeforeValidator(_check_arguments)]


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
    """Give a schema an address, so that references such as `#/$defs/Item` are read from its own root."""
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


class ChatRequest(Sampling):
    """Body of a chat; `metadata`, `safety_identifier`, `prompt_cache_key` and `user` change nothing."""

    messages: Annotated[list[Message], FailFast(), AtMost(MAX_MESSAGES)] = Field(min_length=1)
    max_completion_tokens: Count | None = None
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    tools: Annotated[list[Tool], FailFast(), AtMost(MAX_TOOLS)] = Field(default_factory=list)
    tool_choice: Literal["none", "auto", "required"] | NamedTool = "auto"
    parallel_tool_calls: bool = True
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    metadata: Annotated[dict[str, str], AtMost(MAX_METADATA)] = Field(default_factory=dict)
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None

    @model_validator(mode="after")
    def _check_fields(self) -> ChatRequest:
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            message = "'max_tokens' and 'max_completion_tokens' differ; send only 'max_completion_tokens'."
            raise invalid("max_tokens", message)
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
            message = "A required tool call and a format of the answer exclude each other; send one."
            raise invalid("tool_choice", message)
        return required_call_grammar(self.required_tools)

    @property
    def grammar_field(self) -> str:
        """Field that the grammar comes from, where there is one."""
        return "tools" if self.required_tools else super().grammar_field


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
    list[str] | list[list[int]], PlainValidator(_list_prompts), WithJsonSchema({"anyOf": [_TEXT, *_LISTS]})
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
