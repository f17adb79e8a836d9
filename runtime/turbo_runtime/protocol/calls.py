"""A required tool call as a grammar: one JSON object, in an order that lets the name be read first."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from turbo_runtime.messages import Grammar
from turbo_runtime.protocol.tools import Function, Tool


def required_call(tools: Sequence[Tool]) -> Grammar:
    """The grammar of a call of one of these."""
    calls = [_call(tool.function, number) for number, tool in enumerate(tools)]
    return Grammar("json_schema", json.dumps({"anyOf": calls}))


def _call(function: Function, number: int) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {
            "name": {"const": function.name},
            "arguments": _embedded(function.schema_of_arguments, f"turbo://tools/{number}/"),
        },
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _embedded(schema: dict[str, Any], base: str) -> dict[str, Any]:
    """A schema that may stand in another one: its references, such as `#/$defs/Item`, are read from its own
    root because it has an address of its own. Tools may have definitions of the same names.
    """
    # Draft 4 calls the address `id`; llguidance, which reads any draft, looks for the newer name beside it.
    words = ("id", "$id") if "draft-04" in str(schema.get("$schema")) else ("$id",)
    own = schema.get(words[0])
    base = own if isinstance(own, str) and own.partition("#")[0] else base
    embedded = {**schema, **dict.fromkeys(words, base)}
    if "$ref" in embedded:  # before draft 2019-09 nothing beside a reference counts, its address included
        others = [{"allOf": embedded["allOf"]}] if "allOf" in embedded else []
        embedded["allOf"] = [{"$ref": embedded.pop("$ref")}, *others]
    return embedded
