"""From the file that names a deployment's drafts to those drafts, each loaded by itself: one that cannot be
used stays as it was, and the others are taken up.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from turbo_runtime.drafters.config import DraftConfig, read_selection
from turbo_runtime.drafters.heads.checkpoint import CONFIG_FILE, WEIGHTS_FILE, Target, load_heads
from turbo_runtime.drafters.heads.drafter import HeadsDrafter
from turbo_runtime.file_stamp import Stamp, file_stamp
from turbo_runtime.messages import Drafting
from turbo_runtime.sampling.noise import Noise

log = logging.getLogger(__name__)

Loaded = TypeVar("Loaded")


@dataclass(frozen=True, slots=True)
class LoadedDraft:
    """A trained draft, ready to be asked."""

    heads: HeadsDrafter
    version: str


@dataclass(frozen=True, slots=True)
class ActiveDrafts:
    """What a deployment drafts with."""

    drafter: Drafting = "auto"
    heads: HeadsDrafter | None = None
    version: str = ""
    named: Mapping[str, LoadedDraft] = field(
        default_factory=dict
    )  # a request may choose one instead of `heads`
    problem: str = field(default="", compare=False)  # why it is not all that was asked for; empty if it is


@dataclass(frozen=True, slots=True)
class _Held:
    stamps: tuple[Stamp | None, ...]  # of its files when they were read
    trained: LoadedDraft


class DraftLoader:
    """Remembers what it loaded last, so that a draft whose files are the same is not loaded again and keeps
    what it has learnt. For one thread at a time.
    """

    def __init__(self, target: Target, noise: Noise, until_then: Drafting = "auto") -> None:
        """`until_then` drafts where the first file's own draft cannot be loaded."""
        self._target, self._noise = target, noise
        self._in_use = ActiveDrafts(until_then)
        self._held: dict[Path, _Held] = {}

    def load(self, path: Path) -> ActiveDrafts:
        """What the file at `path` selects. Raises SelectionError where that cannot be followed."""
        selection, before = read_selection(path), self._in_use
        problems: list[str] = []
        default = _attempt(partial(self._default, selection), before, "", problems)
        named: dict[str, LoadedDraft] = {}
        for name, folder in selection.named.items():
            kept = before.named.get(name)
            trained = _attempt(partial(self._trained, folder), kept, f"the draft {name}: ", problems)
            if trained is not None:
                named[name] = trained
        self._in_use = ActiveDrafts(
            default.drafter, default.heads, default.version, named, "; ".join(problems)
        )
        used = {id(self._in_use.heads), *(id(trained.heads) for trained in named.values())}
        self._held = {at: held for at, held in self._held.items() if id(held.trained.heads) in used}
        return self._in_use

    def _default(self, selection: DraftConfig) -> ActiveDrafts:
        if selection.heads is None:
            return ActiveDrafts(selection.drafter, None, selection.version)
        trained = self._trained(selection.heads)
        return ActiveDrafts(selection.drafter, trained.heads, selection.version or trained.version)

    def _trained(self, folder: Path) -> LoadedDraft:
        """Raises HeadsError."""
        stamps = file_stamp(folder / CONFIG_FILE), file_stamp(folder / WEIGHTS_FILE)
        held = self._held.get(folder)
        if held is None or held.stamps != stamps:
            config, heads = load_heads(folder, self._target)
            held = _Held(stamps, LoadedDraft(HeadsDrafter(heads, self._noise), config.version))
            self._held[folder] = held
        return held.trained


def _attempt(load: Callable[[], Loaded], otherwise: Loaded, which: str, problems: list[str]) -> Loaded:
    try:
        return load()
    except ValueError as error:
        problems.append(f"{which}{error}")
    except Exception as error:  # whatever it is, it is no reason to do without the others
        log.exception("%sloading failed", which)
        problems.append(f"{which}loading failed: {type(error).__name__}: {error}")
    return otherwise
