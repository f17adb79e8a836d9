"""The folder that a distillation works in: what was asked for, what is done of it, and who is at it."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from turbo_runtime.atomic_write import write_whole
from turbo_runtime.distill.errors import DistillError, MayPassError
from turbo_runtime.distill.progress import Advance, Progress
from turbo_runtime.distill.recipe import DRAWN, Recipe
from turbo_runtime.prompts import Prompt
from turbo_runtime.version import turbo_version

CONFIG_FILE = "config.json"  # of the artefact: where it is, all is done
EVALUATION_FILE = "evaluation.json"
WORK, REQUEST_FILE = "work", "request.json"  # of one that is not done
_SECONDS, _LOCK = "seconds.json", "lock"
_CAPTURED = "captured.json"


@dataclass(frozen=True, slots=True)
class RunSpec:
    """All that the bits of an artefact depend on, but for the machine's arithmetic."""

    target_digest: str
    prompts_digest: str
    recipe: Mapping[str, Any]
    domain: str
    threads: int
    device: str
    dtype: str
    memory_gib: float  # says how answers are dealt into parts
    answers_from: str  # "engine", "endpoint" of another server, or "kept" by earlier distillations
    captured: (
        bool  # whether captured prompts are among those learnt from; they go on to change, and count not
    )
    version: str  # of Turbo

    @classmethod
    def of(
        cls,
        target_digest: str,
        asked: Iterable[str],
        recipe: Recipe,
        *,
        domain: str,
        threads: int,
        device: str,
        dtype: str,
        memory_gib: float,
        answers_from: str,
        captured: bool,
    ) -> RunSpec:
        """`asked`: a text for each prompt, or kept answer, of all that counts of it; in any order."""
        digest = f"sha256:{hashlib.sha256(chr(0).join(sorted(asked)).encode()).hexdigest()}"
        facts = dataclasses.asdict(recipe)
        return cls(
            target_digest,
            digest,
            facts,
            domain,
            threads,
            device,
            dtype,
            memory_gib,
            answers_from,
            captured,
            turbo_version(),
        )

    def document(self) -> dict[str, Any]:
        """As it stands in files."""
        document: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return document

    def differences(self, other: Mapping[str, Any]) -> str:
        """What another one says that this one does not, in words."""
        ours, theirs = _flat(self.document()), _flat(other)
        return ", ".join(
            f"{name} {_brief(theirs.get(name))} and not {_brief(ours.get(name))}"
            for name in sorted({*ours, *theirs})
            if ours.get(name) != theirs.get(name)
        )


class Workspace:
    """The folder of one request."""

    def __init__(self, out: Path, request: RunSpec) -> None:
        self.out, self.request = out, request
        self.folder = out / WORK

    @property
    def is_done(self) -> bool:
        """Whether an earlier run has come to the end. Raises DistillError where something else is there."""
        made = _document(self.out / CONFIG_FILE)
        if made is not None:
            training = _training_of(made)
            other = training and training["request"]
            if other != self.request.document():
                told = f": {self.request.differences(other)}" if other else ""
                raise DistillError(
                    f"{self.out} holds a draft that was made otherwise{told}; name another folder with --out"
                )
            return True
        if self.out.exists() and not self.out.is_dir():
            raise DistillError(f"{self.out} is a file; name a folder with --out")
        begun = _document(self.folder / REQUEST_FILE)
        if begun is not None and begun != self.request.document():
            raise DistillError(
                f"{self.out} holds a distillation that was begun otherwise: "
                f"{self.request.differences(begun)}; ask for that again to go on with it, name another "
                f"folder with --out, or remove {self.folder}"
            )
        if begun is None and self.out.is_dir() and any(each != self.folder for each in self.out.iterdir()):
            raise DistillError(f"{self.out} is not empty; name a new folder with --out")
        return False

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Nobody else may work in it meanwhile. Raises DistillError where somebody does."""
        self.out.mkdir(parents=True, exist_ok=True)
        self.folder.mkdir(mode=0o700, exist_ok=True)  # it tells prompts, captured ones among them
        path = self.folder / _LOCK
        with path.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                alone = path.exists() and path.stat().st_ino == os.fstat(lock.fileno()).st_ino
            except OSError:
                alone = False
            if not alone:
                raise MayPassError(f"another process works in {self.out}; wait for it, or end it")
            yield

    def begin(self) -> None:
        """Write down what is asked for."""
        self.write(REQUEST_FILE, self.request.document())

    def read(self, name: str) -> Any:
        """What an earlier run has written under that name; None where there is none, or none any more."""
        return _read(self.folder / name)

    def write(self, name: str, document: Any) -> None:
        """For `read`."""
        write_whole(self.folder / name, json.dumps(document))

    def keep_captured(self, folders: Sequence[Path], captured: Sequence[Prompt]) -> None:
        """For `captured_before`: what is learnt from, however the folders go on."""
        rows = [(p.name, p.domain, p.written, p.captured_at) for p in captured]
        self.write(_CAPTURED, {"folders": _named(folders), "prompts": rows})

    @contextmanager
    def stage(self, progress: Progress, name: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
        """A stage whose time is kept; that of a run which is killed within it is lost. `done`: units that an
        earlier run has done.
        """
        began = time.monotonic()
        with progress.stage(name, total, unit, done) as advance:
            yield advance
        seconds = self.seconds
        seconds[name] = seconds.get(name, 0.0) + time.monotonic() - began
        write_whole(self.folder / _SECONDS, json.dumps(seconds))

    @property
    def seconds(self) -> dict[str, float]:
        """By stage."""
        return self.read(_SECONDS) or {}

    def remove(self) -> None:
        """All is done."""
        shutil.rmtree(self.folder)

    def tidy(self) -> None:
        """Remove what a run that was killed at its very end has left, unless it is just about to itself."""
        if self.folder.is_dir():
            with suppress(DistillError), self.taken():
                self.remove()


def captured_before(out: Path, folders: Sequence[Path]) -> list[Prompt] | None:
    """The prompts that a distillation into `out` found captured in `folders` when it began; None where none
    has begun with any. Raises DistillError where it began with those of other folders.
    """
    begun = _read(out / WORK / _CAPTURED)
    if begun is None:
        return None
    if begun["folders"] != _named(folders):
        raise DistillError(
            f"{out} holds a distillation of what was captured in {', '.join(begun['folders'])}; name that "
            f"with --prompts to go on with it, name another folder with --out, or remove {out / WORK}"
        )
    return [
        Prompt(name, domain, written=written, captured_at=at)
        for name, domain, written, at in begun["prompts"]
    ]


def _named(folders: Sequence[Path]) -> list[str]:
    return sorted(str(folder.resolve()) for folder in folders if folder.is_dir())


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return None


def _document(path: Path) -> dict[str, Any] | None:
    """None where there is no file; raises DistillError where it holds anything but an object."""
    if not path.is_file():
        return None
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise DistillError(f"{path} holds no JSON object; name another folder with --out")
    return document


def made_by(out: Path) -> dict[str, Any] | None:
    """How the artefact in a folder was trained, its `request` among that; None where there is none. Raises
    DistillError for a file of that name that holds no JSON object.
    """
    made = _document(out / CONFIG_FILE)
    return None if made is None else _training_of(made)


def drawn_by(folders: Sequence[Path]) -> dict[str, Any]:
    """What the answers of these artefacts were drawn with, as far as they agree. Raises DistillError."""
    recipes = [training["request"].get("recipe", {}) for out in folders if (training := made_by(out))]
    first = recipes[0] if recipes else {}
    alike = [name for name in DRAWN if name in first and all(one.get(name) == first[name] for one in recipes)]
    return {name: first[name] for name in alike}


def _training_of(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The format of `speculators` has our facts in a place of their own."""
    ours = config.get("turbo", config)
    training = ours.get("training") if isinstance(ours, dict) else None
    is_ours = isinstance(training, dict) and isinstance(training.get("request"), dict)
    return training if is_ours else None


def _brief(value: object) -> object:
    """Two digests differ in their first digits."""
    return f"{value[:15]}..." if isinstance(value, str) and value.startswith("sha256:") else value


def _flat(document: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in document.items():
        found |= value if isinstance(value, dict) else {name.replace("_digest", ""): value}
    return found
