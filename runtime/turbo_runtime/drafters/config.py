"""Which drafts a deployment wants: a small JSON file that can change while the engine runs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from turbo_runtime.messages import DEFAULT_DRAFT, Drafting

MOST_NAMED = 8  # each takes memory beside the model, and the time of a pass where it is chosen
_KEYS = ("drafter", "heads", "version", "named")
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


class SelectionError(ValueError):
    """The file says nothing that can be followed; one sentence says why."""


@dataclass(frozen=True, slots=True)
class DraftConfig:
    """`auto` drafts with everything there is, for each position what is surer."""

    drafter: Drafting = "auto"
    heads: Path | None = None  # a folder, see `drafters.heads`
    version: str = ""  # stated in metrics; by default the heads' own
    named: Mapping[str, Path] = field(default_factory=dict)  # folders of heads that a request may choose


def read_selection(path: Path) -> DraftConfig:
    """`{"drafter": "auto", "heads": "/path", "version": "7", "named": {"latex": "/path"}}`, each of them
    optional; a relative path counts from the file's folder. Raises SelectionError.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SelectionError(f"{path} cannot be read: {error}; write a JSON object there") from error
    if not isinstance(document, dict):
        raise SelectionError(f"{path}: expected a JSON object, got {type(document).__name__}")
    if unknown := sorted({*document} - {*_KEYS}):
        raise SelectionError(f"{path}: there is no {unknown[0]!r}; it knows {', '.join(_KEYS)}")
    drafter, heads = document.get("drafter", "auto"), document.get("heads")
    version = document.get("version", "")
    if drafter not in get_args(Drafting):
        raise SelectionError(f"{path}: drafter must be {', '.join(get_args(Drafting))}, not {drafter!r}")
    if heads is not None and (not isinstance(heads, str) or not heads):
        raise SelectionError(f"{path}: heads must be the path of a folder, not {heads!r}")
    if drafter == "heads" and heads is None:
        raise SelectionError(f"{path}: drafter is heads and no folder is named; set heads")
    if not isinstance(version, str):
        raise SelectionError(f"{path}: version must be a string, not {version!r}")
    named = _named(path, document.get("named", {}))
    return DraftConfig(drafter, None if heads is None else path.parent / heads, version, named)


def _named(path: Path, said: object) -> dict[str, Path]:
    if not isinstance(said, dict):
        raise SelectionError(f"{path}: named must be an object of names and folders, not {said!r}")
    if len(said) > MOST_NAMED:
        raise SelectionError(f"{path}: named has {len(said)} drafts; keep {MOST_NAMED} at most")
    for name, folder in said.items():
        if name == DEFAULT_DRAFT or not _NAME.fullmatch(name):
            raise SelectionError(
                f"{path}: named cannot have {name!r}; a name has up to 63 lower-case letters, digits and "
                f"hyphens within, and {DEFAULT_DRAFT} is the one of heads"
            )
        if not isinstance(folder, str) or not folder:
            raise SelectionError(f"{path}: named.{name} must be the path of a folder, not {folder!r}")
    return {name: path.parent / folder for name, folder in said.items()}
