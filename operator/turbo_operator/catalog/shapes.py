"""Model shapes without a model: from a `config.json`, `turbo inspect`'s output, or the shipped table.

In a cluster the inspect Job counts the weights themselves instead.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

from turbo_runtime.contract.documents import ModelInfo, ModelShape
from turbo_runtime.shapes import UnknownShapeError, from_config

__all__ = ["UnknownShapeError", "from_config", "from_document", "shipped", "table"]


def from_document(text: str, name: str) -> ModelShape:
    """Read the shape in `turbo inspect`'s output or a model's `config.json`; `name` is for the error."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:  # also numbers and nesting beyond what Python reads
        raise UnknownShapeError(
            f"{name} is no JSON; give a config.json, a folder that holds one, or what "
            "`turbo inspect MODEL` prints. A .gguf file is read by `turbo inspect`."
        ) from error
    if not isinstance(document, dict):
        raise UnknownShapeError(
            f"{name} holds no JSON object; give a config.json or what `turbo inspect MODEL` prints."
        )
    if "shape" not in document:
        return from_config(document, name)
    try:
        return ModelInfo.from_json(text).shape
    except (ValueError, TypeError) as error:
        raise UnknownShapeError(f"{name} is no output of `turbo inspect`: {error}.") from error


def shipped(hub_id: str) -> ModelShape | None:
    """Return the shape of a well-known model by its hub id in any case; None when it is not shipped."""
    name = spellings().get(hub_id.lower())
    return None if name is None else from_config(table()[name], hub_id)


@cache
def spellings() -> Mapping[str, str]:
    """Return the hub ids of the shipped shapes as their hub writes them, by those in lower case."""
    return {name.lower(): name for name in table()}


@cache
def table() -> Mapping[str, Mapping[str, Any]]:
    """Return the shipped configurations by hub id; a row may be `like` one before it."""
    text = resources.files(__package__).joinpath("shapes.toml").read_text(encoding="utf-8")
    configs: dict[str, Mapping[str, Any]] = {}
    for row in tomllib.loads(text)["model"]:
        like = configs[row["like"]] if "like" in row else {}
        config = {**like, **row.get("config", {})}
        configs |= dict.fromkeys(row["names"], config)
    return configs
