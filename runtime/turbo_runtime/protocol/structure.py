"""Formats that an answer must have: OpenAI's `response_format` and vLLM's `structured_outputs`."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import FailFast, Field, model_validator

from turbo_runtime.messages import Grammar
from turbo_runtime.protocol.base import Strict

# With a backslash before them they stand for themselves in every dialect of regular expressions.
_SPECIAL = frozenset("\\.^$|?*+()[]{}")


class NamedSchema(Strict):
    """A JSON schema as OpenAI wraps it. `strict` changes nothing: an answer always follows the schema."""

    name: str
    description: str | None = None
    body: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Strict):
    """OpenAI's way to ask for JSON."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None

    @model_validator(mode="after")
    def _schema_where_one_belongs(self) -> ResponseFormat:
        if (self.json_schema is not None) != (self.type == "json_schema"):
            raise ValueError("'json_schema' belongs to type 'json_schema', which needs it")
        return self

    @property
    def grammar(self) -> Grammar | None:
        """None for plain text."""
        if self.json_schema is not None:
            return Grammar("json_schema", json.dumps(self.json_schema.body))
        return Grammar("json_object") if self.type == "json_object" else None


class StructuredOutputs(Strict):
    """vLLM's way: exactly one of these."""

    schema_: dict[str, Any] | str | None = Field(None, alias="json")  # a schema, or its text
    json_object: Literal[True] | None = None
    regex: str | None = None
    grammar_: str | None = Field(None, alias="grammar")  # in Lark's notation
    choice: Annotated[list[str], FailFast()] = Field(default_factory=list, min_length=1)

    @model_validator(mode="after")
    def _exactly_one(self) -> StructuredOutputs:
        if len(self.model_fields_set) != 1:
            raise ValueError("give exactly one of 'json', 'json_object', 'regex', 'grammar' and 'choice'")
        return self

    @property
    def grammar(self) -> Grammar:
        """The one that was given."""
        if self.schema_ is not None:
            text = self.schema_ if isinstance(self.schema_, str) else json.dumps(self.schema_)
            return Grammar("json_schema", text)
        if self.regex is not None:
            return Grammar("regex", self.regex)
        if self.grammar_ is not None:
            return Grammar("lark", self.grammar_)
        if self.choice:
            return Grammar("regex", "|".join(_literal(one) for one in self.choice))
        return Grammar("json_object")


def _literal(text: str) -> str:
    return "".join(f"\\{letter}" if letter in _SPECIAL else letter for letter in text)
