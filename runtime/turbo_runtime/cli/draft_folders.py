"""What lies in folders of drafts: those that are done, and those that are not."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from turbo_runtime.distill.recipe import EAGLE3, HEADS
from turbo_runtime.distill.workspace import CONFIG_FILE, EVALUATION_FILE, REQUEST_FILE, WORK

_KIND = "turbo-heads"
_WEIGHTS = {HEADS: "heads.safetensors", EAGLE3: "model.safetensors"}


class DraftsError(ValueError):
    """One sentence for whoever typed the command."""


class NoDraftError(DraftsError):
    """The folder is somebody else's."""


@dataclass(frozen=True)
class Draft:
    """An artefact's own words, read without its tensors."""

    folder: Path
    method: str
    config: Mapping[str, Any]
    evaluation: Mapping[str, Any]  # empty where it has none

    @property
    def domains(self) -> Mapping[str, Mapping[str, Any]]:
        """What was measured of each."""
        found: Mapping[str, Mapping[str, Any]] = self.evaluation.get("domains", {})
        return found

    def length(self, domain: str) -> float | None:
        """Acceptance length on answers that were not learnt from."""
        return _number(self.domains.get(domain, {}).get("unseen", {}).get("acceptance_length"))

    def held_out(self, domain: str) -> int | None:
        """Answers that all this was measured on."""
        count = _number(self.domains.get(domain, {}).get("unseen", {}).get("answers"))
        return None if count is None else int(count)

    def measured_as(self, other: Draft, domain: str) -> bool:
        """Whether both were measured on the same answers."""
        ours, theirs = (one.domains.get(domain, {}).get("measured_on") for one in (self, other))
        return ours is not None and ours == theirs

    def gains(self, domain: str) -> dict[int, tuple[float, float]]:
        """Speed over no drafts, from memory alone and with this one, by requests at a time."""
        return {
            int(gain["batch"]): (float(gain["before"]), float(gain["after"]))
            for gain in self.domains.get(domain, {}).get("gains", ())
        }


def find_drafts(folders: Sequence[Path]) -> tuple[list[Draft], list[Path]]:
    """The drafts in folders or right below them, and the folders of those that are not done. Of one that is
    damaged a line goes to standard error. Raises DraftsError where there is neither.
    """
    found, begun = [], []
    for folder in folders:
        if _is_there(folder / CONFIG_FILE):
            found.append(read(folder))
            continue
        each = [folder, *(sorted(folder.iterdir()) if folder.is_dir() else ())]
        here = [*_drafts(each)], [*filter(_is_begun, each)]
        if not any(here):
            raise DraftsError(_none(folder))
        found += here[0]
        begun += here[1]
    return found, begun


def not_done(folder: Path) -> str:
    """A sentence."""
    return f"{folder} is not done: where nothing is at work on it, the same `turbo distill` goes on with it"


def _is_begun(folder: Path) -> bool:
    return _is_there(folder / WORK / REQUEST_FILE) and not _is_there(folder / CONFIG_FILE)


def _is_there(file: Path) -> bool:
    try:
        return file.is_file()
    except PermissionError:  # in somebody else's folder
        return False


def _none(folder: Path) -> str:
    return not_done(folder) if _is_begun(folder) else f"{folder} holds no draft; `turbo distill` makes one"


def _drafts(folders: Sequence[Path]) -> Iterator[Draft]:
    for each in folders:
        if _is_there(each / CONFIG_FILE):
            try:
                yield read(each)
            except NoDraftError:
                continue  # a model, say: it is not what was asked for
            except DraftsError as error:
                print(f"turbo drafts: {error}", file=sys.stderr)


def read(folder: Path) -> Draft:
    """Raises DraftsError where there is none, or it is damaged."""
    if not _is_there(folder / CONFIG_FILE):
        raise DraftsError(_none(folder))
    method, config = _facts(folder / CONFIG_FILE)
    _check_weights(folder / _WEIGHTS[method])
    path = folder / EVALUATION_FILE
    draft = Draft(folder, method, config, _document(path) if path.is_file() else {})
    try:
        for domain in {**draft.domains}:
            draft.length(domain)
            draft.gains(domain)
            draft.held_out(domain)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise DraftsError(f"{path} is not what `turbo distill` writes: {error!r}") from error
    return draft


def _check_weights(path: Path) -> None:
    """As far as can be seen without reading them: the file is there and as long as its beginning says."""
    try:
        with safe_open(path, framework="numpy"):
            pass
    except (OSError, SafetensorError) as error:
        raise DraftsError(f"{path} holds no weights: {error}; copy the draft anew, or train it") from error


def _facts(path: Path) -> tuple[str, Mapping[str, Any]]:
    """The method, and what is told of the draft; in the format of `speculators` ours stand by themselves."""
    config = _document(path)
    if config.get("kind") == _KIND:
        return HEADS, config
    ours = config.get("turbo")
    if config.get("speculators_model_type") == EAGLE3 and isinstance(ours, dict):
        return EAGLE3, {**ours, "vocabulary_size": config.get("draft_vocab_size", "")}
    raise NoDraftError(f"{path}: it is no draft that `turbo distill` made; name a folder of one")


def _document(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DraftsError(f"{path} cannot be read: {error}; name a folder of a draft") from error
    if not isinstance(document, dict):
        raise DraftsError(f"{path} holds no object; name a folder of a draft")
    return document


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
