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
from typing import NamedTuple, TypeAlias, get_args

import torch

from turbo_runtime.contract.config import DraftMethod
from turbo_runtime.drafters import eagle3_layer, heads, model
from turbo_runtime.drafters.draft_memory import MEMORY_FILE, DraftMemory, DraftMemoryError, read_memory
from turbo_runtime.drafters.eagle3 import Eagle3Drafter, load_eagle3
from turbo_runtime.drafters.heads import HeadsDrafter, load_heads
from turbo_runtime.drafters.interface import Drafter
from turbo_runtime.drafters.model import ModelDrafter, load_draft_model, load_first_layers
from turbo_runtime.drafters.target import Target
from turbo_runtime.files import Stamp, file_stamp, read_object
from turbo_runtime.messages import DEFAULT_DRAFT
from turbo_runtime.sampling.noise import Noise

log = logging.getLogger(__name__)

Source: TypeAlias = Path | int  # a folder, or a number of the model's own first layers

LOOK_SECONDS = 2.0
RETRY_SECONDS = 30.0  # the named files may appear later
MAX_NAMED = 8  # each takes memory in addition to the model, and the time of a pass where it is chosen
METHODS = (HeadsDrafter.name, Eagle3Drafter.name, ModelDrafter.name)  # with weights
_KEYS = ("drafter", *METHODS, "version", "named")
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


class SelectionError(ValueError):
    """The file is invalid; one sentence says why."""


@dataclass(frozen=True, slots=True)
class DraftConfig:
    """The content of the file. `auto` drafts with everything, at each position with the most confident."""

    drafter: DraftMethod = "auto"
    own: Mapping[str, Source] = field(default_factory=dict)  # the deployment's drafts, by method
    version: str = ""  # a label of metrics; by default the drafts' own
    named: Mapping[str, Source] = field(default_factory=dict)  # drafts that a request may choose


def read_selection(path: Path) -> DraftConfig:
    """Read `{"drafter": "auto", "heads": "/path", "eagle3": "/path", "model": {"layers": 6}, "version": "7",
    "named": {"latex": "/path"}}`, all optional; relative paths start from the file's folder. Raises
    SelectionError.
    """
    document = read_object(path, SelectionError, "write a JSON object there")
    if unknown := sorted({*document} - {*_KEYS}):
        raise SelectionError(f"{path}: there is no {unknown[0]!r}; it knows {', '.join(_KEYS)}")
    drafter, version = document.get("drafter", "auto"), document.get("version", "")
    if drafter not in get_args(DraftMethod):
        raise SelectionError(f"{path}: drafter must be {', '.join(get_args(DraftMethod))}, not {drafter!r}")
    own = {key: _source(path, key, document[key]) for key in METHODS if document.get(key) is not None}
    if drafter in METHODS and drafter not in own:
        raise SelectionError(f"{path}: drafter is {drafter} and no folder is named; set {drafter}")
    if not isinstance(version, str):
        raise SelectionError(f"{path}: version must be a string, not {version!r}")
    folders = document.get("named", {})
    if not isinstance(folders, dict):
        raise SelectionError(f"{path}: named must be an object of names and folders, not {folders!r}")
    if len(folders) > MAX_NAMED:
        raise SelectionError(f"{path}: named has {len(folders)} drafts; keep {MAX_NAMED} at most")
    for name in folders:
        if name == DEFAULT_DRAFT or not _NAME.fullmatch(name):
            raise SelectionError(
                f"{path}: named cannot have {name!r}; a name has up to 63 lower-case letters, digits and "
                f"hyphens within, and {DEFAULT_DRAFT} is the deployment's own"
            )
    named = {name: _source(path, f"named.{name}", value) for name, value in folders.items()}
    return DraftConfig(drafter, own, version, named)


def read_selection_or_none(path: Path) -> DraftConfig:
    """Read the file, or no drafts where it is invalid: what is wrong with it is told as it is followed."""
    try:
        return read_selection(path)
    except SelectionError:
        return DraftConfig()


def _source(path: Path, key: str, value: object) -> Source:
    """Read a draft's folder, or `{"layers": 6}`."""
    if isinstance(value, str) and value:
        return path.parent / value
    if key in METHODS and key != ModelDrafter.name:
        raise SelectionError(f"{path}: {key} must be the path of a folder, not {value!r}")
    layers = value.get("layers") if isinstance(value, dict) and len(value) == 1 else None
    if type(layers) is not int:
        raise SelectionError(
            f'{path}: {key} must be the path of a folder, or {{"layers": N}} for the model\'s first N '
            f"layers, not {value!r}"
        )
    return layers


@dataclass(frozen=True, slots=True)
class ActiveDrafts:
    """The drafts of a deployment."""

    drafter: DraftMethod = "auto"
    heads: Drafter | None = None
    version: str = ""
    named: Mapping[str, Drafter] = field(default_factory=dict)  # a request may choose one
    memories: tuple[DraftMemory, ...] = ()  # that they brought, the deployment's own last
    problem: str = field(default="", compare=False)  # why it is not all of the file; else empty
    eagle3: Drafter | None = None
    model: Drafter | None = None

    @property
    def own(self) -> dict[str, Drafter]:
        """The deployment's drafts, by method."""
        return {name: draft for name in METHODS if (draft := getattr(self, name)) is not None}


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What a folder held when its files had these stamps."""

    stamps: tuple[Stamp | None, ...]
    drafter: Drafter
    memory: DraftMemory | None
    problem: str  # why its memory is not in use; else empty


class DraftLoader:
    """Loads drafts; those with unchanged files keep what they have learned. Not thread-safe."""

    def __init__(self, target: Target, noise: Noise, fallback: DraftMethod = "auto") -> None:
        """`fallback` drafts if the first file's own draft cannot be loaded."""
        self._target, self._noise = target, noise
        self._active = ActiveDrafts(fallback)
        self._cache: dict[Source, _Loaded] = {}

    def load(self, path: Path) -> ActiveDrafts:
        """Load what the file at `path` selects. Raises SelectionError if the file is invalid."""
        return self.load_all(read_selection(path))

    def load_all(self, config: DraftConfig) -> ActiveDrafts:
        """Load these drafts."""
        old = self._active
        problems: list[str] = []
        own = {method: self._load(source, method, "", problems) for method, source in config.own.items()}
        version = config.version or "+".join(draft.version for draft in own.values() if draft)
        kept = old if problems else ActiveDrafts(config.drafter, version=version)
        default = replace(
            kept,
            heads=own.get(HeadsDrafter.name) or kept.heads,
            eagle3=own.get(Eagle3Drafter.name) or kept.eagle3,
            model=own.get(ModelDrafter.name) or kept.model,
        )
        named: dict[str, Drafter] = {}
        for name, source in config.named.items():
            if draft := self._load(source, "", f"the draft {name}: ", problems) or old.named.get(name):
                named[name] = draft
        used = [*named.values(), *default.own.values()]
        self._cache = {source: loaded for source, loaded in self._cache.items() if loaded.drafter in used}
        loaded = sorted(self._cache.values(), key=lambda loaded: used.index(loaded.drafter))
        memories = tuple(one.memory for one in loaded if one.memory is not None)
        problem = "; ".join([*problems, *(one.problem for one in loaded if one.problem)])
        self._active = replace(default, named=named, memories=memories, problem=problem)
        return self._active

    def _load(self, source: Source, method: str, which: str, problems: list[str]) -> Drafter | None:
        """Load a draft unless it is unchanged; None, and one problem more, if it cannot be used or is not of
        `method`; empty: any.
        """
        try:
            stamps, found = _stamps(source), method_of(source)
            if method and found != method:
                raise SelectionError(f"{source} is a draft of method {found}; name it as {found}")
            if source not in self._cache or self._cache[source].stamps != stamps:
                self._cache[source] = _Loaded(stamps, self._draft(source, found), *self._remember(source))
            return self._cache[source].drafter
        except ValueError as error:
            problems.append(f"{which}{error}")
        except Exception as error:  # no reason to do without the others
            log.exception("%sloading failed", which)
            problems.append(f"{which}loading failed: {type(error).__name__}: {error}")
        return None

    def _draft(self, source: Source, method: str) -> Drafter:
        if isinstance(source, int):
            return load_first_layers(source, self._target, self._noise)
        if method == Eagle3Drafter.name:
            return load_eagle3(source, self._target, self._noise)
        if method == ModelDrafter.name:
            return load_draft_model(source, self._target, self._noise)
        config, loaded = load_heads(source, self._target)
        return HeadsDrafter(loaded, self._noise, config.version, at_once=self._target.asynchronous)

    def _remember(self, source: Source) -> tuple[DraftMemory | None, str]:
        """Read what a draft brings, or say why not: it drafts without."""
        if isinstance(source, int):
            return None, ""
        try:
            memory = read_memory(source, self._target.digest, len(self._target.embedding))
        except DraftMemoryError as error:
            return None, str(error)
        if memory is not None:
            log.info("%s brings %d answers of %d tokens", source, len(memory.answers), memory.num_tokens)
        return memory, ""


def method_of(source: Source) -> str:
    """Tell by a folder's configuration what drafts with it. Raises ValueError."""
    if isinstance(source, int):
        return ModelDrafter.name
    document = read_object(source / heads.CONFIG_FILE, SelectionError, "name the folder of a draft")
    if eagle3_layer.KIND in document:
        return Eagle3Drafter.name
    return ModelDrafter.name if "model_type" in document else HeadsDrafter.name


def select_model(folder: Path, drafter: DraftMethod) -> DraftConfig:
    """Select one draft for as long as the engine runs. Raises ValueError if `drafter` is another method."""
    if (found := method_of(folder)) == HeadsDrafter.name:
        raise SelectionError(f"{folder} has Turbo heads; name them in the file of --draft-config")
    if drafter in METHODS and drafter != found:
        raise SelectionError(f"{folder} is a draft of method {found}; write --speculation={found} or auto")
    return DraftConfig(drafter, {found: folder})


class DraftBytes(NamedTuple):
    """The memory that drafts take on a device."""

    per_token: int = 0  # of the model's KV cache, for their own
    weights: int = 0  # at most, with what they copy of the model's


def draft_bytes(config: DraftConfig, dtype: torch.dtype, models_elsewhere: bool) -> DraftBytes:
    """Tell what drafts take; those that cannot be used nothing. `models_elsewhere`: whether
    draft models have another device's memory.
    """
    per_token = weights = 0
    for source in {*config.own.values(), *config.named.values()}:
        if isinstance(source, int):  # the first layers have the model's own
            continue
        try:
            method = method_of(source)
            if method == ModelDrafter.name and models_elsewhere:
                continue
            if method == HeadsDrafter.name:
                weights += heads.copied_bytes(heads.read_config(source), dtype)
            else:
                kind = eagle3_layer if method == Eagle3Drafter.name else model
                per_token += kind.token_bytes(source, dtype)
            weights += sum(file.stat().st_size for file in source.glob("*.safetensors"))
        except (ValueError, OSError):  # loading will say why
            continue
    return DraftBytes(per_token, weights)


def _stamps(source: Source) -> tuple[Stamp | None, ...]:
    """Change with the files of a draft."""
    if isinstance(source, int):
        return ()
    weights = {heads.WEIGHTS_FILE, MEMORY_FILE, *(path.name for path in source.glob("*.safetensors"))}
    return tuple(file_stamp(source / name) for name in (heads.CONFIG_FILE, *sorted(weights)))


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
