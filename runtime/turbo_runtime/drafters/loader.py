"""Loads a deployment's drafts in the background, from a small JSON file that can change at any time.

Each draft is loaded on its own: one that cannot be used stays as it was, and the others are taken up.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

from turbo_runtime.contract.config import DraftMethod
from turbo_runtime.drafters.heads import CONFIG_FILE, WEIGHTS_FILE, HeadsDrafter, Target, load_heads
from turbo_runtime.files import Stamp, file_stamp, read_object
from turbo_runtime.messages import DEFAULT_DRAFT
from turbo_runtime.sampling.noise import Noise

log = logging.getLogger(__name__)

LOOK_SECONDS = 2.0
RETRY_SECONDS = 30.0  # the named files may appear later
MAX_NAMED = 8  # each takes memory in addition to the model, and the time of a pass where it is chosen
_KEYS = ("drafter", "heads", "version", "named")
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


class SelectionError(ValueError):
    """The file is invalid; one sentence says why."""


@dataclass(frozen=True, slots=True)
class DraftConfig:
    """The content of the file. `auto` drafts with everything, at each position with the most confident."""

    drafter: DraftMethod = "auto"
    heads: Path | None = None  # a folder, see `drafters.heads`
    version: str = ""  # a label of metrics; by default the heads' own
    named: Mapping[str, Path] = field(default_factory=dict)  # folders of heads that a request may choose


def read_selection(path: Path) -> DraftConfig:
    """Read `{"drafter": "auto", "heads": "/path", "version": "7", "named": {"latex": "/path"}}`, all
    optional; relative paths start from the file's folder. Raises SelectionError.
    """
    document = read_object(path, SelectionError, "write a JSON object there")
    if unknown := sorted({*document} - {*_KEYS}):
        raise SelectionError(f"{path}: there is no {unknown[0]!r}; it knows {', '.join(_KEYS)}")
    drafter, heads = document.get("drafter", "auto"), document.get("heads")
    version = document.get("version", "")
    if drafter not in get_args(DraftMethod):
        raise SelectionError(f"{path}: drafter must be {', '.join(get_args(DraftMethod))}, not {drafter!r}")
    if heads is not None and (not isinstance(heads, str) or not heads):
        raise SelectionError(f"{path}: heads must be the path of a folder, not {heads!r}")
    if drafter == "heads" and heads is None:
        raise SelectionError(f"{path}: drafter is heads and no folder is named; set heads")
    if not isinstance(version, str):
        raise SelectionError(f"{path}: version must be a string, not {version!r}")
    folders = document.get("named", {})
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
    named = {name: path.parent / folder for name, folder in folders.items()}
    return DraftConfig(drafter, None if heads is None else path.parent / heads, version, named)


@dataclass(frozen=True, slots=True)
class ActiveDrafts:
    """The drafts of a deployment."""

    drafter: DraftMethod = "auto"
    heads: HeadsDrafter | None = None
    version: str = ""
    named: Mapping[str, HeadsDrafter] = field(default_factory=dict)  # a request may choose one
    problem: str = field(default="", compare=False)  # why it is not all of the file; else empty


class DraftLoader:
    """Loads drafts; those with unchanged files keep what they have learned. Not thread-safe."""

    def __init__(self, target: Target, noise: Noise, fallback: DraftMethod = "auto") -> None:
        """`fallback` drafts if the first file's own draft cannot be loaded."""
        self._target, self._noise = target, noise
        self._active = ActiveDrafts(fallback)
        self._cache: dict[Path, tuple[tuple[Stamp | None, ...], HeadsDrafter]] = {}  # by folder, with stamps

    def load(self, path: Path) -> ActiveDrafts:
        """Load what the file at `path` selects. Raises SelectionError if the file is invalid."""
        config, old = read_selection(path), self._active
        problems: list[str] = []
        default = ActiveDrafts(config.drafter, None, config.version)
        if config.heads is not None:
            own = self._load(config.heads, "", problems)
            default = ActiveDrafts(config.drafter, own, config.version or own.version) if own else old
        named: dict[str, HeadsDrafter] = {}
        for name, folder in config.named.items():
            if heads := self._load(folder, f"the draft {name}: ", problems) or old.named.get(name):
                named[name] = heads
        self._active = replace(default, named=named, problem="; ".join(problems))
        used = (default.heads, *named.values())
        self._cache = {folder: entry for folder, entry in self._cache.items() if entry[1] in used}
        return self._active

    def _load(self, folder: Path, which: str, problems: list[str]) -> HeadsDrafter | None:
        """Load a folder of heads unless it is unchanged; None, and one problem more, if it cannot be used."""
        stamps = file_stamp(folder / CONFIG_FILE), file_stamp(folder / WEIGHTS_FILE)
        try:
            if folder not in self._cache or self._cache[folder][0] != stamps:
                config, heads = load_heads(folder, self._target)
                self._cache[folder] = stamps, HeadsDrafter(heads, self._noise, config.version)
            return self._cache[folder][1]
        except ValueError as error:
            problems.append(f"{which}{error}")
        except Exception as error:  # no reason to do without the others
            log.exception("%sloading failed", which)
            problems.append(f"{which}loading failed: {type(error).__name__}: {error}")
        return None


class WatchedFile:
    """Loads again whenever the file changes, also behind a swapped symlink as of a mounted ConfigMap."""

    def __init__(self, path: Path, load: Callable[[Path], ActiveDrafts]) -> None:
        """`load` runs in another thread; the sentence of its ValueError becomes the problem."""
        self.path = path
        self.problem = ""  # why what the file names is not in use; else empty
        self._load = load
        self._seen: Stamp | None = (0, 0, 0)  # of no file: a missing one is a problem too
        self._loading: Future[ActiveDrafts] | None = None
        self._look_at = self._retry_at = float("-inf")
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="drafts")

    def poll(self, now: float) -> ActiveDrafts | None:
        """Return what was loaded since the last call, if anything; takes microseconds. `now` is monotonic."""
        if self._loading is not None:
            return self._take(self._loading, now) if self._loading.done() else None
        if now < self._look_at:
            return None
        self._look_at = now + LOOK_SECONDS
        stamp = file_stamp(self.path)
        if stamp != self._seen or (self.problem and now >= self._retry_at):
            self._seen = stamp
            self._loading = self._thread.submit(self._load, self.path)
        return None

    def wait(self, now: float) -> ActiveDrafts | None:
        """`poll`, and wait for the load that it begins: for the start."""
        loaded = self.poll(now)
        return self._take(self._loading, now) if self._loading is not None else loaded

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _take(self, loading: Future[ActiveDrafts], now: float) -> ActiveDrafts | None:
        loaded, self._loading = None, None
        try:
            loaded = loading.result()
            problem = loaded.problem
        except ValueError as error:
            problem = str(error)
        except Exception as error:  # no reason to stop serving
            log.exception("%s: loading failed", self.path)
            problem = f"{self.path}: loading failed: {type(error).__name__}: {error}"
        if problem and problem != self.problem:
            log.error("drafts stay as they are: %s", problem)
        self.problem, self._retry_at = problem, now + RETRY_SECONDS
        return loaded
