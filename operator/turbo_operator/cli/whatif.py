"""`--what-if KEY=VALUE`: the same TurboDeployment with one thing changed. Pure."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from turbo_operator import api
from turbo_operator.cli.errors import BadInputError

_Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Knob:
    """The field of a key below spec, its reader, and the field that it replaces."""

    path: _Path  # of what an empty value leaves out
    read: Callable[[str], Any] = str
    instead_of: _Path | None = None
    part: str | None = None  # the one field of it that a value sets


def changed(document: Mapping[str, Any], asked: str) -> dict[str, Any]:
    """Return the object under the change KEY=VALUE, where an empty VALUE removes the field.

    Raises BadInputError for an unknown key or a value of the wrong kind; `api.parse` checks the whole.
    """
    key, equals, value = asked.partition("=")
    if not equals:
        raise BadInputError(f"--what-if {asked}: write KEY=VALUE, like speculation=off.")
    knob = KNOBS.get(key)
    if knob is None:
        near = difflib.get_close_matches(key, KNOBS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the keys are {', '.join(KNOBS)}."
        raise BadInputError(f"--what-if {asked}: there is no key {key!r}; {hint}")
    try:
        new_value = knob.read(value) if value else None
    except ValueError as error:
        raise BadInputError(f"--what-if {asked}: {error}.") from error
    new = copy.deepcopy(dict(document))
    if new_value is None:
        _remove(new, ("spec", *knob.path))
        return new
    if knob.instead_of:
        _remove(new, ("spec", *knob.instead_of))
    _put(new, ("spec", *knob.path, *filter(None, [knob.part])), new_value)
    return new


def _names(value: str) -> list[str]:
    return [name.strip() for name in value.split(",")]


def _whole(value: str) -> int:
    try:
        return int(value)
    except ValueError as error:
        raise ValueError("write a whole number") from error


def _speculation(value: str) -> dict[str, str]:
    """Off, auto, required, or the name of a method that is then required."""
    words = {
        "off": {"mode": api.Mode.DISABLED},
        "auto": {"mode": api.Mode.AUTO},
        "required": {"mode": api.Mode.REQUIRED},
    } | {
        method.lower(): {"mode": api.Mode.REQUIRED, "method": method}
        for method in api.Method
        if method != api.Method.AUTO
    }
    if value.lower() not in words:
        raise ValueError(f"write one of {', '.join(words)}")
    return {key: str(word) for key, word in words[value.lower()].items()}


KNOBS: Mapping[str, _Knob] = {
    "accelerators": _Knob(("accelerators", "allowed"), _names),
    "capacityTypes": _Knob(("accelerators", "capacityTypes"), _names),
    "maxPerReplica": _Knob(("accelerators", "maxPerReplica"), _whole),
    "maxTotal": _Knob(("accelerators", "maxTotal"), _whole),
    "tensor": _Knob(("parallelism", "tensor"), _whole),
    "pipeline": _Knob(("parallelism", "pipeline"), _whole),
    "engine": _Knob(("engine", "type")),
    "speculation": _Knob(("speculation",), _speculation),
    "maxDraftTokens": _Knob(("speculation", "maxDraftTokens"), _whole),
    "dtype": _Knob(("model", "dtype")),
    "maxModelLen": _Knob(("model", "maxModelLen"), _whole),
    "requestsPerSecond": _Knob(("workload", "requestsPerSecond"), instead_of=("workload", "concurrency")),
    "concurrency": _Knob(("workload", "concurrency"), _whole, ("workload", "requestsPerSecond")),
    "inputTokens": _Knob(("workload", "inputTokens"), lambda value: {"mean": _whole(value)}),
    "outputTokens": _Knob(("workload", "outputTokens"), lambda value: {"mean": _whole(value)}),
    "timeToFirstToken": _Knob(("targets", "timeToFirstToken"), part="max"),
    "timePerOutputToken": _Knob(("targets", "timePerOutputToken"), part="max"),
    "tokensPerSecond": _Knob(("targets", "tokensPerSecond")),
    "maxPerHour": _Knob(("cost", "maxPerHour")),
    "maxPerMillionTokens": _Knob(("cost", "maxPerMillionTokens")),
    "objective": _Knob(("cost", "objective")),
    "replicas": _Knob(("replicas",), _whole),
    "minReplicas": _Knob(("scaling", "minReplicas"), _whole),
    "maxReplicas": _Knob(("scaling", "maxReplicas"), _whole),
}


def _remove(document: dict[str, Any], path: _Path) -> None:
    *parents, last = path
    for name in parents:
        inner = document.get(name)
        if not isinstance(inner, dict):
            return
        document = inner
    document.pop(last, None)


def _put(document: dict[str, Any], path: _Path, value: Any) -> None:
    *parents, last = path
    for name in parents:
        if not isinstance(document.get(name), dict):
            document[name] = {}
        document = document[name]
    document[last] = value
