"""Which drafts a deployment wants: a small JSON file that can change while the engine runs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from turbo_runtime.engine.request import Drafting


class SelectionError(ValueError):
    """The file says nothing that can be followed; one sentence says why."""


@dataclass(frozen=True, slots=True)
class Selection:
    """`auto` drafts with everything there is, for each position what is surer."""

    drafter: Drafting = "auto"
    heads: Path | None = None  # a folder, see `drafters.heads`
    version: str = ""  # stated in metrics; by default the heads' own


def read_selection(path: Path) -> Selection:
    """`{"drafter": "auto", "heads": "/path", "version": "7"}`, each of them optional; a relative path counts
    from the file's folder, other keys are not read. Raises SelectionError.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SelectionError(f"{path} cannot be read: {error}; write a JSON object there") from error
    if not isinstance(document, dict):
        raise SelectionError(f"{path}: expected a JSON object, got {type(document).__name__}")
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
    return Selection(drafter, None if heads is None else path.parent / heads, version)
