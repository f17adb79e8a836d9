"""Folders of drafts: those that are done, and those that are not."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from turbo_runtime.distill.recipe import EAGLE3, HEADS
from turbo_runtime.distill.workspace import CONFIG_FILE, EVALUATION_FILE, REQUEST_FILE, WORK

_KIND = "turbo-heads"
_WEIGHTS = {HEADS: "heads.safetensors", EAGLE3: "model.safetensors"}


class DraftsError(ValueError):
    """Problem in one sentence for whoever typed the command."""


class NoDraftError(DraftsError):
    """Folder that `turbo distill` did not write."""


@dataclass(frozen=True)
class Draft:
    """A draft's own documents, read without its tensors."""

    folder: Path
    method: str
    config: Mapping[str, Any]
    evaluation: Mapping[str, Any]  # empty where it has none

    @property
    def domains(self) -> Mapping[str, Mapping[str, Any]]:
        """Measurements by domain."""
        domains: Mapping[str, Mapping[str, Any]] = self.evaluation.get("domains", {})
        return domains

    def _measurement(self, domain: str, name: str) -> float | None:
        """A number that was measured on answers of the test part."""
        value = self.domains.get(domain, {}).get("unseen", {}).get(name)
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None

    def acceptance_length(self, domain: str) -> float | None:
        """Return the acceptance length on answers that the draft was not trained on."""
        return self._measurement(domain, "acceptance_length")

    def num_test_answers(self, domain: str) -> int | None:
        """Return the number of answers that all this was measured on."""
        count = self._measurement(domain, "answers")
        return None if count is None else int(count)

    def has_same_test_answers(self, other: Draft, domain: str) -> bool:
        """Return whether both were measured on the same answers."""
        ours, theirs = (draft.domains.get(domain, {}).get("measured_on") for draft in (self, other))
        return ours is not None and ours == theirs

    def speedups(self, domain: str) -> dict[int, tuple[float, float]]:
        """Return the speedups from memory alone and with this draft, by batch size."""
        return {
            int(row["batch"]): (float(row["before"]), float(row["after"]))
            for row in self.domains.get(domain, {}).get("gains", ())
        }


def find_drafts(folders: Sequence[Path]) -> tuple[list[Draft], list[Path]]:
    """Return the drafts in folders or right below them, and the folders of those that are not done.

    Damaged ones are reported on standard error. Raises DraftsError for a folder with neither.
    """
    drafts: list[Draft] = []
    unfinished: list[Path] = []
    for folder in folders:
        if _is_file(folder / CONFIG_FILE):
            drafts.append(read_draft(folder))
            continue
        candidates = [folder, *(sorted(folder.iterdir()) if folder.is_dir() else ())]
        own_drafts = [draft for draft in map(_try_read, candidates) if draft is not None]
        own_unfinished = [*filter(_is_unfinished, candidates)]
        if not own_drafts and not own_unfinished:
            raise DraftsError(_describe_missing(folder))
        drafts += own_drafts
        unfinished += own_unfinished
    return drafts, unfinished


def _try_read(folder: Path) -> Draft | None:
    if not _is_file(folder / CONFIG_FILE):
        return None
    try:
        return read_draft(folder)
    except NoDraftError:  # a model, say
        return None
    except DraftsError as error:
        print(f"turbo drafts: {error}", file=sys.stderr)
        return None


def describe_unfinished(folder: Path) -> str:
    """Return a sentence."""
    return f"{folder} is not done: where nothing is at work on it, the same `turbo distill` goes on with it"


def _is_unfinished(folder: Path) -> bool:
    return _is_file(folder / WORK / REQUEST_FILE) and not _is_file(folder / CONFIG_FILE)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except PermissionError:  # in somebody else's folder
        return False


def _describe_missing(folder: Path) -> str:
    if _is_unfinished(folder):
        return describe_unfinished(folder)
    return f"{folder} holds no draft; `turbo distill` makes one"


def read_draft(folder: Path) -> Draft:
    """Read a draft. Raises DraftsError where there is none, or it is damaged."""
    if not _is_file(folder / CONFIG_FILE):
        raise DraftsError(_describe_missing(folder))
    method, config = _read_config(folder / CONFIG_FILE)
    weights = folder / _WEIGHTS[method]
    try:  # without reading them all: the file exists and is as long as its header says
        with safe_open(weights, framework="numpy"):
            pass
    except (OSError, SafetensorError) as error:
        raise DraftsError(f"{weights} holds no weights: {error}; copy the draft anew, or train it") from error
    path = folder / EVALUATION_FILE
    draft = Draft(folder, method, config, _read_json(path) if path.is_file() else {})
    try:
        for domain in {**draft.domains}:
            draft.acceptance_length(domain)
            draft.speedups(domain)
            draft.num_test_answers(domain)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise DraftsError(f"{path} is not what `turbo distill` writes: {error!r}") from error
    return draft


def _read_config(path: Path) -> tuple[str, Mapping[str, Any]]:
    """Return the method and the draft's fields, which the format of `speculators` has apart."""
    config = _read_json(path)
    if config.get("kind") == _KIND:
        return HEADS, config
    fields = config.get("turbo")
    if config.get("speculators_model_type") == EAGLE3 and isinstance(fields, dict):
        return EAGLE3, {**fields, "vocabulary_size": config.get("draft_vocab_size", "")}
    raise NoDraftError(f"{path}: it is no draft that `turbo distill` made; name a folder of one")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DraftsError(f"{path} cannot be read: {error}; name a folder of a draft") from error
    if not isinstance(document, dict):
        raise DraftsError(f"{path} holds no object; name a folder of a draft")
    return document
