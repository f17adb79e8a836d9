"""Objects that are wrong in one place, by the schema of their kind. Pure: a seed gives the same ones."""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Body = dict[str, Any]
Path = tuple[str | int, ...]

# What no field expects, and what some do: of another type, out of every range, of no sense, or too much.
_STRANGE: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    2**63,
    1e308,
    "",
    " ",
    "-1",
    "1e999",
    "999999999999999999999",
    "\u202e\u0000\ud7ff",
    "a" * 5000,
    "$(reboot)",
    "{{ .Values }}",
    "../../etc/passwd",
    "none-of-that-name",
    "0s",
    "9999h",
    [],
    [None],
    ["a", "a"],
    {},
    {"a": {"b": "c"}},
)


@dataclass(frozen=True)
class Mutation:
    """One object, and what was done to it."""

    body: Body
    what: str


def mutations(
    bases: Mapping[str, Body], schemas: Mapping[str, Body], number: int, seed: int
) -> list[Mutation]:
    """Make so many: of base objects, by name, and the schemas of their kinds (`openAPIV3Schema`)."""
    chance = random.Random(seed)
    names = sorted(bases)
    found: list[Mutation] = []
    for index in range(number):
        name = names[index % len(names)]
        body = copy.deepcopy(bases[name])
        places = list(_places(schemas[body["kind"]]["properties"]["spec"], ("spec",)))
        what = _mutate(body, places, chance)
        body["metadata"]["name"] = f"bad-{index}"
        found.append(Mutation(body, f"{name}: {what}"))
    return found


def _mutate(body: Body, places: list[tuple[Path, Body]], chance: random.Random) -> str:
    """Change one place that the schema knows: what is written there, or what is not."""
    path, schema = chance.choice(places)
    where = ".".join(map(str, path))
    kind = chance.choice(("strange", "strange", "strange", "edge", "edge", "unknown", "remove", "double"))
    if kind == "remove" and _has(body, path):
        _parent(body, path).pop(path[-1])
        return f"{where} is left out"
    if kind == "unknown":
        _put(body, (*path[:-1], f"{path[-1]}X"), "a")
        return f"{where}X is no field"
    if kind == "double" and schema.get("type") == "array":
        value = _example(schema.get("items", {}), chance)
        _put(body, path, [value] * 40)
        return f"{where} has 40 items"
    value = _edge(schema, chance) if kind == "edge" else chance.choice(_STRANGE)
    _put(body, path, copy.deepcopy(value))
    return f"{where} is {value!r:.60}"


def _places(schema: Body, path: Path) -> Iterator[tuple[Path, Body]]:
    """Yield the fields of a schema, those of the first item of a list among them."""
    yield path, schema
    for name, field in schema.get("properties", {}).items():
        yield from _places(field, (*path, name))
    if schema.get("type") == "array" and "properties" in schema.get("items", {}):
        yield from _places(schema["items"], (*path, 0))


def _edge(schema: Body, chance: random.Random) -> Any:
    """A value of the right type at or beyond a bound of the schema, or one that it allows."""
    if "enum" in schema:
        return chance.choice([*schema["enum"], str(schema["enum"][0]).lower(), f"{schema['enum'][0]}s"])
    match schema.get("type"):
        case "integer":
            low, high = schema.get("minimum", 0), schema.get("maximum", 2**31)
            return chance.choice([low - 1, low, high, high + 1])
        case "string":
            return chance.choice(["a" * (schema.get("maxLength", 253) + 1), "0", "1", "x", "10s", "hf://a/b"])
        case "boolean":
            return chance.choice([True, False, "true"])
        case "array":
            return [_example(schema.get("items", {}), chance)]
        case "object":
            return {name: _example(field, chance) for name, field in schema.get("properties", {}).items()}
    return chance.choice(_STRANGE)


def _example(schema: Body, chance: random.Random) -> Any:
    """Something of the type, whatever rules say of it."""
    if "enum" in schema:
        return chance.choice(schema["enum"])
    examples: dict[str, Any] = {"integer": 1, "string": "x", "boolean": True, "array": [], "object": {}}
    return examples.get(str(schema.get("type")), "x")


def _has(body: Any, path: Path) -> bool:
    for part in path:
        inside = isinstance(body, dict) and part in body
        inside = inside or (isinstance(body, list) and isinstance(part, int) and part < len(body))
        if not inside:
            return False
        body = body[part]
    return True


def _parent(body: Any, path: Path) -> Any:
    for part in path[:-1]:
        body = body[part]
    return body


def _put(body: Any, path: Path, value: Any) -> None:
    """Write a value, and what has to be around it."""
    for part, following in itertools.pairwise(path):
        empty: Any = [] if isinstance(following, int) else {}
        if isinstance(body, list) and isinstance(part, int):
            if not body:
                body.append(empty)
        elif not isinstance(body.get(part), (dict, list)) or isinstance(body[part], list) != isinstance(
            following, int
        ):
            body[part] = empty
        body = body[part]
    if isinstance(body, list):
        body[:1] = [value]
    else:
        body[path[-1]] = value
