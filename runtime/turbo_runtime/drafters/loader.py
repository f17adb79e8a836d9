"""Loads a deployment's drafts from a small JSON file that can change while the engine runs.

Each draft is loaded on its own: one that cannot be used stays as it was, and the others are taken up.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar, get_args

from turbo_runtime.drafters.heads.checkpoint import CONFIG_FILE, WEIGHTS_FILE, Target, load_heads
from turbo_runtime.drafters.heads.drafter import HeadsDrafter
from turbo_runtime.file_stamp import Stamp, file_stamp
from turbo_runtime.messages import DEFAULT_DRAFT, Drafting
from turbo_runtime.sampling.noise import Noise

log = logging.getLogger(__name__)

MAX_NAMED = 8  # each takes memory in addition to the model, and the time of a pass where it is chosen
_KEYS = ("drafter", "heads", "version", "named")
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")

Loaded = TypeVar("Loaded")


class SelectionError(ValueError):
    """The file is invalid; one sentence says why."""


@dataclass(frozen=True, slots=True)
class DraftConfig:
    """The content of the file. `auto` drafts with everything, at each position with the most confident."""

    drafter: Drafting = "auto"
    heads: Path | None = None  # a folder, see `drafters.heads`
    version: str = ""  # a label of metrics; by default the heads' own
    named: Mapping[str, Path] = field(default_factory=dict)  # folders of heads that a request may choose


def read_selection(path: Path) -> DraftConfig:
    """Read `{"drafter": "auto", "heads": "/path", "version": "7", "named": {"latex": "/path"}}`, all
    optional; relative paths start from the file's folder. Raises SelectionError.
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
    named = _read_named(path, document.get("named", {}))
    return DraftConfig(drafter, None if heads is None else path.parent / heads, version, named)


def _read_named(path: Path, folders: object) -> dict[str, Path]:
    if not isinstance(folders, dict):
        raise SelectionError(f"{path}: named must be an object of names and folders, not {folders!r}")
    if len(folders) > MAX_NAMED:
        raise SelectionError(f"{path}: named has {len(folders)} drafts; keep {MAX_NAMED} at most")
    for name, folder in folders.items():
        if name == DEFAULT_DRAFT or not _NAME.fullmatch(name):
            raise SelectionError(
                f"{path}: named cannot have {name!r}; a name has up to 63 lower-case letters, digits and "
                f"hyphens within, and {DEFAULT_DRAFT} is the one of heads"
            )
        if not isinstance(folder, str) or not folder:
            raise SelectionError(f"{path}: named.{name} must be the path of a folder, not {folder!r}")
    return {name: path.parent / folder for name, folder in folders.items()}


@dataclass(frozen=True, slots=True)
class LoadedDraft:
    """A trained draft, ready to draft."""

    heads: HeadsDrafter
    version: str


@dataclass(frozen=True, slots=True)
class ActiveDrafts:
    """The drafts of a deployment."""

    drafter: Drafting = "auto"
    heads: HeadsDrafter | None = None
    version: str = ""
    named: Mapping[str, LoadedDraft] = field(default_factory=dict)  # a request may choose one
    problem: str = field(default="", compare=False)  # why it is not all of the file; else empty


class DraftLoader:
    """Loads drafts; those with unchanged files keep what they have learned. Not thread-safe."""

    def __init__(self, target: Target, noise: Noise, until_then: Drafting = "auto") -> None:
        """`until_then` drafts if the first file's own draft cannot be loaded."""
        self._target, self._noise = target, noise
        self._in_use = ActiveDrafts(until_then)
        self._cache: dict[Path, tuple[tuple[Stamp | None, ...], LoadedDraft]] = {}  # by folder, with stamps

    def load(self, path: Path) -> ActiveDrafts:
        """Load what the file at `path` selects. Raises SelectionError if the file is invalid."""
        selection, before = read_selection(path), self._in_use
        problems: list[str] = []
        default = _attempt(partial(self._load_default, selection), before, "", problems)
        named: dict[str, LoadedDraft] = {}
        for name, folder in selection.named.items():
            load = partial(self._load_heads, folder)
            draft = _attempt(load, before.named.get(name), f"the draft {name}: ", problems)
            if draft is not None:
                named[name] = draft
        problem = "; ".join(problems)
        self._in_use = ActiveDrafts(default.drafter, default.heads, default.version, named, problem)
        used = {id(self._in_use.heads), *(id(draft.heads) for draft in named.values())}
        self._cache = {folder: entry for folder, entry in self._cache.items() if id(entry[1].heads) in used}
        return self._in_use

    def _load_default(self, selection: DraftConfig) -> ActiveDrafts:
        if selection.heads is None:
            return ActiveDrafts(selection.drafter, None, selection.version)
        draft = self._load_heads(selection.heads)
        return ActiveDrafts(selection.drafter, draft.heads, selection.version or draft.version)

    def _load_heads(self, folder: Path) -> LoadedDraft:
        """Load a folder of heads unless it is unchanged. Raises HeadsError."""
        stamps = file_stamp(folder / CONFIG_FILE), file_stamp(folder / WEIGHTS_FILE)
        if folder not in self._cache or self._cache[folder][0] != stamps:
            config, heads = load_heads(folder, self._target)
            self._cache[folder] = stamps, LoadedDraft(HeadsDrafter(heads, self._noise), config.version)
        return self._cache[folder][1]


def _attempt(load: Callable[[], Loaded], default: Loaded, which: str, problems: list[str]) -> Loaded:
    try:
        return load()
    except ValueError as error:
        problems.append(f"{which}{error}")
    except Exception as error:  # no reason to do without the others
        log.exception("%sloading failed", which)
        problems.append(f"{which}loading failed: {type(error).__name__}: {error}")
    return default
