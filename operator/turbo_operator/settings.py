"""The operator's settings, read once from the environment at start.

Every variable is `TURBO_` and the field's name in capitals. Others with that prefix are errors, since a
misspelling would go unnoticed. (The chart turns service links off: Kubernetes would add
`TURBO_..._SERVICE_HOST` for every Service of such a name.)
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

PREFIX = "TURBO_"


class BadSettingError(ValueError):
    """A setting that is missing, unknown or wrong."""


def _checked(
    convert: Callable[[str], Any], is_valid: Callable[[Any], bool], wish: str
) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        value = convert(text)
        if not is_valid(value):
            raise ValueError(f"write {wish}")
        return value

    return parse


def _whole(noun: str, high: int) -> Callable[[str], Any]:
    return _checked(int, lambda value: 1 <= value <= high, f"a {noun} between 1 and {high}")


def _one_of(*choices: str) -> Callable[[str], Any]:
    return _checked(str, choices.__contains__, f"one of {', '.join(choices)}")


_text = _checked(str.strip, bool, "a value that is not empty")
_flag = _checked({"true": True, "false": False}.get, lambda value: value is not None, "true or false")
_seconds = _checked(float, lambda value: 0 < value <= 86400, "seconds above 0 and at most 86400")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _words(text: str) -> tuple[str, ...]:
    """Split as a shell does; ValueError for a quotation mark without another one."""
    return tuple(shlex.split(text))


def _variables(text: str) -> tuple[tuple[str, str], ...]:
    """Read a JSON object of texts; ValueError for anything else."""
    values = json.loads(text)
    if not isinstance(values, dict) or not all(isinstance(value, str) for value in values.values()):
        raise ValueError("write a JSON object of texts")
    return tuple(sorted(values.items()))


def _setting(parse: Callable[[str], Any], default: Any = dataclasses.MISSING) -> Any:
    return dataclasses.field(default=default, metadata={"parse": parse})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of an operator process, with their defaults."""

    runtime_image: str = _setting(_text)  # image of the serving and inspecting pods, with its tag or digest
    vllm_image: str = _setting(_text, "vllm/vllm-openai:v0.32.0")  # of the pods that serve by vLLM
    router_image: str | None = _setting(_text, None)  # of the pods that route; without it none do
    router_role: str = _setting(_text, "turbo-router")  # ClusterRole by which a router watches pods
    router_args: tuple[str, ...] = _setting(_words, ())  # further flags of the router
    activator_args: tuple[str, ...] = _setting(_words, ())  # and of the activator in front of it
    image_pull_policy: str = _setting(_one_of("Always", "IfNotPresent", "Never"), "IfNotPresent")
    model_env: tuple[tuple[str, str], ...] = _setting(_variables, ())  # variables of pods that read models
    namespaces: tuple[str, ...] = _setting(_names, ())  # watched; none is all of them
    apply_catalog: bool = _setting(_flag, True)  # write the shipped accelerators as objects at start
    # Of shipped accelerators that are a share of a node; Node where their nodes are bought whole.
    billing_unit: str = _setting(_one_of("Accelerator", "Node"), "Accelerator")
    # Where the operator runs; without one, the namespace of the kubeconfig's context.
    operator_namespace: str | None = _setting(_text, None)
    # The Lease there that this operator's replicas share; without one it writes at once.
    lease_name: str | None = _setting(_text, None)
    resync_seconds: float = _setting(_seconds, 600.0)  # every object is looked at again at least this often
    scrape_seconds: float = _setting(_seconds, 15.0)  # between two reads of a pod's load
    scrape_timeout_seconds: float = _setting(_seconds, 2.0)
    num_workers: int = _setting(_whole("number", 1000), 16)  # objects reconciled at the same time
    health_port: int = _setting(_whole("port", 65535), 8081)
    metrics_port: int = _setting(_whole("port", 65535), 8080)
    log_format: str = _setting(_one_of("text", "json"), "json")
    log_level: str = _setting(_one_of("DEBUG", "INFO", "WARNING", "ERROR"), "INFO")


def read(environment: Mapping[str, str]) -> Settings:
    """Read the settings. Raises BadSettingError for the first missing, unknown or wrong variable."""
    fields = {PREFIX + spec.name.upper(): spec for spec in dataclasses.fields(Settings)}
    given = {name: text for name, text in environment.items() if name.startswith(PREFIX)}
    for name in sorted(given.keys() - fields.keys()):
        raise BadSettingError(f"{name} is no setting of the operator; the settings are {', '.join(fields)}.")
    values: dict[str, Any] = {}
    for name, spec in fields.items():
        if name in given:
            try:
                values[spec.name] = spec.metadata["parse"](given[name])
            except ValueError as error:
                raise BadSettingError(f"{name} is {given[name]!r}: {error}.") from error
        elif spec.default is dataclasses.MISSING:
            raise BadSettingError(f"{name} is missing: it has no default.")
    return Settings(**values)
