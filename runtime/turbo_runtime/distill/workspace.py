"""The folder that a run works in: its specification, its progress, its lock, and what is reported of it."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from turbo_runtime.contract.documents import MOST_DOMAINS, DraftManifest
from turbo_runtime.distill.progress import Progress
from turbo_runtime.distill.recipe import EAGLE3, HEADS, SAMPLING_FIELDS, DistillError, Recipe, TransientError
from turbo_runtime.files import checkpoint_digest, read_object, write_whole
from turbo_runtime.prompts import Prompt
from turbo_runtime.version import turbo_version

CONFIG_FILE = "config.json"  # of the checkpoint: where it is, all is done
EVALUATION_FILE = "evaluation.json"
WORK, REQUEST_FILE = "work", "request.json"  # of a run that is not done
_SECONDS, _LOCK = "seconds.json", "lock"
_CAPTURED = "captured.json"
_DIGITS = 4  # behind the point: a manifest must fit a termination message


@dataclass(frozen=True, slots=True)
class RunSpec:
    """All that the bits of a checkpoint depend on, but for the machine's arithmetic."""

    target_digest: str
    prompts_digest: str  # of all that counts of each prompt, or kept response, in any order
    recipe: Recipe
    domain: str
    threads: int
    device: str
    dtype: str
    memory_gib: float  # decides how responses are dealt into parts
    answers_from: str  # "engine", "endpoint" of another server, or "kept" by earlier runs
    captured: bool  # whether there are captured prompts, which change and are in no digest
    version: str = field(default_factory=turbo_version)

    def differences(self, other: Mapping[str, Any]) -> str:
        """Describe where another document differs."""
        ours, theirs = _flat(asdict(self)), _flat(other)
        return ", ".join(
            f"{name} {_brief(theirs.get(name))} and not {_brief(ours.get(name))}"
            for name in sorted({*ours, *theirs})
            if ours.get(name) != theirs.get(name)
        )


class Workspace:
    """The folder of one run."""

    def __init__(self, out: Path, request: RunSpec, progress: Progress) -> None:
        self.out, self.request, self.progress = out, request, progress
        self.folder = out / WORK

    @property
    def is_done(self) -> bool:
        """Whether an earlier run finished. Raises DistillError where the folder holds something else."""
        config = _document(self.out / CONFIG_FILE)
        if config is not None:
            training = _training_of(config)
            other = training and training["request"]
            if other == asdict(self.request):
                return True
            differences = f": {self.request.differences(other)}" if other else ""
            raise DistillError(
                f"{self.out} holds a draft that was made otherwise{differences}; name another folder "
                "with --out"
            )
        if self.out.exists() and not self.out.is_dir():
            raise DistillError(f"{self.out} is a file; name a folder with --out")
        existing = _document(self.folder / REQUEST_FILE)
        if existing is None and self.out.is_dir() and any(path != self.folder for path in self.out.iterdir()):
            raise DistillError(f"{self.out} is not empty; name a new folder with --out")
        if existing not in (None, asdict(self.request)):
            raise DistillError(
                f"{self.out} holds a distillation that was begun otherwise: "
                f"{self.request.differences(existing or {})}; ask for that again to go on with it, name "
                f"another folder with --out, or remove {self.folder}"
            )
        return False

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes out. Raises DistillError where one works in it."""
        self.out.mkdir(parents=True, exist_ok=True)
        self.folder.mkdir(mode=0o700, exist_ok=True)  # it holds prompts, captured ones among them
        path = self.folder / _LOCK
        with path.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                alone = path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino
            except OSError:
                alone = False
            if not alone:
                raise TransientError(f"another process works in {self.out}; wait for it, or end it")
            yield

    def read(self, name: str) -> Any:
        """Read what an earlier run wrote under that name; None where nothing readable is there."""
        return _read(self.folder / name)

    def write(self, name: str, document: Any) -> None:
        """Write what `read` returns."""
        write_whole(self.folder / name, json.dumps(document))

    def keep_captured(self, folders: Sequence[Path], captured: Sequence[Prompt]) -> None:
        """Keep the captured prompts for `captured_before`: the folders change."""
        rows = [(p.name, p.domain, p.written, p.captured_at, p.tenant) for p in captured]
        self.write(_CAPTURED, {"folders": _named(folders), "prompts": rows})

    @contextmanager
    def stage(self, name: str, total: int, unit: str, done: int = 0) -> Iterator[Callable[..., None]]:
        """Run a stage and keep its time, which a kill within it loses. `done`: units of an earlier run."""
        start_time = time.monotonic()
        with self.progress.stage(name, total, unit, done) as advance:
            yield advance
        seconds = self.seconds.get(name, 0.0) + time.monotonic() - start_time
        self.write(_SECONDS, {**self.seconds, name: seconds})

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of each stage."""
        return self.read(_SECONDS) or {}

    def remove(self) -> None:
        """Remove it: all is done."""
        shutil.rmtree(self.folder)

    def tidy(self) -> None:
        """Remove what a run left that was killed at its very end, unless it is about to itself."""
        if self.folder.is_dir():
            with suppress(DistillError), self.lock():
                self.remove()


def captured_before(out: Path, folders: Sequence[Path]) -> list[Prompt] | None:
    """Return what `keep_captured` kept, None where nothing. Raises DistillError for that of other folders."""
    if (existing := _read(out / WORK / _CAPTURED)) is None:
        return None
    if existing["folders"] != _named(folders):
        raise DistillError(
            f"{out} holds a distillation of what was captured in {', '.join(existing['folders'])}; name that "
            f"with --prompts to go on with it, name another folder with --out, or remove {out / WORK}"
        )
    return [
        Prompt(name, domain, written=text, captured_at=at, tenant=rest[0] if rest else None)
        for name, domain, text, at, *rest in existing["prompts"]
    ]


def _named(folders: Sequence[Path]) -> list[str]:
    return sorted(str(folder.resolve()) for folder in folders if folder.is_dir())


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return None


def _document(path: Path) -> dict[str, Any] | None:
    """None where there is no file. Raises DistillError where it holds anything but an object."""
    return read_object(path, DistillError, "name another folder with --out") if path.is_file() else None


def read_training(out: Path) -> dict[str, Any] | None:
    """Return how a folder's checkpoint was trained, None where there is none. Raises DistillError."""
    config = _document(out / CONFIG_FILE)
    return None if config is None else _training_of(config)


def drawn_by(folders: Sequence[Path]) -> dict[str, Any]:
    """Return what these checkpoints' responses were drawn with, as far as they agree. Raises DistillError."""
    recipes = [training["request"].get("recipe", {}) for out in folders if (training := read_training(out))]
    first = recipes[0] if recipes else {}
    return {
        name: first[name]
        for name in SAMPLING_FIELDS
        if name in first and all(recipe.get(name) == first[name] for recipe in recipes)
    }


def read_manifest(folder: Path) -> DraftManifest:
    """Read what is reported of a finished draft from its folder."""
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    info, method = (config["turbo"], EAGLE3) if "turbo" in config else (config, HEADS)
    text = (folder / EVALUATION_FILE).read_text(encoding="utf-8")
    evaluation = json.loads(text, parse_float=lambda number: round(float(number), _DIGITS))
    domains = list(evaluation["domains"].items())[:MOST_DOMAINS]
    manifest = {
        **info,
        "method": method,
        "digest": checkpoint_digest(folder),
        "captured": info["training"].get("capture", {}).get("prompts", 0),
        "worth": [{**row["unseen"], "domain": name, "speedups": row["speedups"]} for name, row in domains],
    }
    return DraftManifest.from_json(json.dumps(manifest))


def _training_of(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return our part of either format: that of `speculators` has a key for it."""
    ours = config.get("turbo", config)
    training = ours.get("training") if isinstance(ours, dict) else None
    is_ours = isinstance(training, dict) and isinstance(training.get("request"), dict)
    return training if is_ours else None


def _brief(value: object) -> object:
    """Two digests differ in their first digits."""
    return f"{value[:15]}..." if isinstance(value, str) and value.startswith("sha256:") else value


def _flat(document: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in document.items():
        flat |= value if isinstance(value, dict) else {name.replace("_digest", ""): value}
    return flat
