"""`turbo drafts`: drafts in some folders, done or not, and what they are worth."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError, safe_open

from turbo_runtime.client.client import printable
from turbo_runtime.contract.documents import DomainEvaluation
from turbo_runtime.distill.recipe import EAGLE3, HEADS
from turbo_runtime.distill.workspace import CONFIG_FILE, EVALUATION_FILE, REQUEST_FILE, WORK
from turbo_runtime.files import checkpoint_digest, read_object

_is_file = os.path.isfile  # that of Path raises in somebody else's folder
_DEFAULT_WIDTH = 1000  # columns where no terminal says how many
_KIND = "turbo-heads"
_WEIGHTS = {HEADS: "heads.safetensors", EAGLE3: "model.safetensors"}
_LEGEND = "at a time: speed over no drafts, from memory alone > with the draft"
_CONFIG_FIELDS = ("version", "domain", "heads", "markov_rank", "vocabulary_size", "target_digest")
_ANSWER_SETTINGS = ("temperature", "top_p", "top_k", "max_tokens", "dtype", "answers_from")
_EAGLE3_NOTE = "holds an EAGLE-3 layer, which pods of engine Turbo use if speculation.method is EAGLE3"


class DraftsError(ValueError):
    """Problem in one sentence for whoever typed the command."""


class NoDraftError(DraftsError):
    """Folder that `turbo distill` did not write."""


@dataclass(frozen=True)
class Measurement:
    """What was measured on one domain's answers that the draft was not trained on."""

    worth: DomainEvaluation
    num_answers: int | None = None
    answers: object = None  # the digest of them

    @classmethod
    def parse(cls, domain: str, row: Mapping[str, Any]) -> Measurement:
        """Read it as `turbo distill` writes it. Raises ValueError, TypeError or AttributeError."""
        unseen = row.get("unseen", {})
        document = {**unseen, "domain": domain, "speedups": row.get("speedups", [])}
        worth = DomainEvaluation.from_json(json.dumps(document))
        return cls(worth, unseen.get("answers"), row.get("measured_on"))

    @property
    def speedups(self) -> dict[int, tuple[float, float]]:
        """From memory alone and with the draft, by batch size."""
        return {speedup.batch: (speedup.before, speedup.after) for speedup in self.worth.speedups}


@dataclass(frozen=True)
class Draft:
    """A draft's own documents, read without its tensors."""

    folder: Path
    method: str
    config: Mapping[str, Any]
    evaluation: Mapping[str, Any]  # empty where it has none
    domains: Mapping[str, Measurement]

    def measured(self, domain: str) -> Measurement:
        """Return what was measured on a domain, of which there may be nothing."""
        return self.domains.get(domain, Measurement(DomainEvaluation(domain)))


def drafts(argv: list[str]) -> int:
    """Exit status: 0, or 1 where a folder holds no draft."""
    options = _build_parser().parse_args(argv)
    width = None if sys.stdout.isatty() else _DEFAULT_WIDTH
    console = Console(highlight=False, markup=False, width=width)
    try:
        if options.verb == "list":
            finished, unfinished = _find_drafts(options.folders)
            if finished:
                _print_overview(console, finished)
            for folder in unfinished:
                console.print(printable(_describe_missing(folder)))
        elif options.verb == "show":
            _show(console, _read_draft(options.folder))
        elif options.verb == "manifest":
            draft = _read_draft(options.folder)
            print(json.dumps(_build_manifest(draft, options), indent=2))
            if draft.method == EAGLE3:
                print(f"turbo drafts: {draft.folder} {_EAGLE3_NOTE}", file=sys.stderr)
        else:
            _compare(console, _read_draft(options.first), _read_draft(options.second))
    except DraftsError as error:
        print(f"turbo drafts: {error}", file=sys.stderr)
        return 1
    return 0


def _find_drafts(folders: Sequence[Path]) -> tuple[list[Draft], list[Path]]:
    """Return the drafts in or right below folders, and the folders of unfinished ones. Raises DraftsError."""
    drafts: list[Draft] = []
    unfinished: list[Path] = []
    for folder in folders:
        if _is_file(folder / CONFIG_FILE):
            drafts.append(_read_draft(folder))
            continue
        candidates = [folder, *(sorted(folder.iterdir()) if folder.is_dir() else ())]
        before = len(drafts) + len(unfinished)
        unfinished += filter(_is_unfinished, candidates)
        for candidate in candidates:
            try:
                if _is_file(candidate / CONFIG_FILE):
                    drafts.append(_read_draft(candidate))
            except NoDraftError:  # a model, say
                pass
            except DraftsError as error:
                print(f"turbo drafts: {error}", file=sys.stderr)
        if len(drafts) + len(unfinished) == before:
            raise DraftsError(_describe_missing(folder))
    return drafts, unfinished


def _is_unfinished(folder: Path) -> bool:
    return _is_file(folder / WORK / REQUEST_FILE) and not _is_file(folder / CONFIG_FILE)


def _describe_missing(folder: Path) -> str:
    if _is_unfinished(folder):
        hint = "where nothing is at work on it, the same `turbo distill` goes on with it"
        return f"{folder} is not done: {hint}"
    return f"{folder} holds no draft; `turbo distill` makes one"


def _read_draft(folder: Path) -> Draft:
    """Read a draft. Raises DraftsError where there is none, or it is damaged."""
    if not _is_file(folder / CONFIG_FILE):
        raise DraftsError(_describe_missing(folder))
    config, method = read_object(folder / CONFIG_FILE, DraftsError, "name a folder of a draft"), HEADS
    if config.get("kind") != _KIND:
        fields, method = config.get("turbo"), EAGLE3  # the format of `speculators` has ours apart
        if config.get("speculators_model_type") != EAGLE3 or not isinstance(fields, dict):
            path = folder / CONFIG_FILE
            raise NoDraftError(f"{path}: it is no draft that `turbo distill` made; name a folder of one")
        config = {**fields, "vocabulary_size": config.get("draft_vocab_size", "")}
    weights = folder / _WEIGHTS[method]
    try:  # without reading them all: the file exists and is as long as its header says
        with safe_open(weights, framework="numpy"):
            pass
    except (OSError, SafetensorError) as error:
        raise DraftsError(f"{weights} holds no weights: {error}; copy the draft anew, or train it") from error
    path = folder / EVALUATION_FILE
    evaluation = read_object(path, DraftsError, "name a folder of a draft") if path.is_file() else {}
    try:
        domains = {name: Measurement.parse(name, row) for name, row in evaluation.get("domains", {}).items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise DraftsError(f"{path} is not what `turbo distill` writes: {error!r}") from error
    return Draft(folder, method, config, evaluation, domains)


def _print_overview(console: Console, drafts: Sequence[Draft]) -> None:
    headings = ("draft", "method", "version", "model", "domain", "held out", "per draft")
    table = _build_table(*headings, "1 at a time", "8", "32")
    for draft in drafts:
        for measured in map(draft.measured, draft.domains or [draft.config.get("domain", "")]):
            speedups = [measured.speedups.get(size) for size in (1, 8, 32)]
            cells = (
                draft.folder.resolve().name,
                draft.method,
                str(draft.config.get("version", "")),
                str(draft.config.get("target_digest", "")).removeprefix("sha256:")[:8],
                measured.worth.domain,
                str(measured.num_answers or "-"),
                _format_number(measured.worth.acceptance_length),
                *(" > ".join(map(_format_number, pair)) if pair else "-" for pair in speedups),
            )
            table.add_row(*map(printable, cells))
    console.print(table)
    console.print(_LEGEND)


def _show(console: Console, draft: Draft) -> None:
    config, training = draft.config, draft.config.get("training", {})
    rows: dict[str, object] = {"method": draft.method}
    rows |= {name.replace("_", " "): config[name] for name in _CONFIG_FIELDS if name in config}
    rows["digest"] = checkpoint_digest(draft.folder)
    rows |= {f"answers, {part}": count for part, count in training.get("answers", {}).items()}
    if memory := training.get("memory"):
        rows["memory"] = "{answers} answers, {shared} for all tenants, {tokens} tokens".format(**memory)
    if "left_out" in training:
        rows["answers, left out"] = training["left_out"]
    if losses := draft.evaluation.get("losses"):
        rows["epochs"] = len(losses)
    request = training.get("request", {})
    settings = {**request.get("recipe", {}), **request}
    rows |= {name.replace("_", " "): settings[name] for name in settings if name in _ANSWER_SETTINGS}
    rows |= {f"seconds, {key}": f"{value:.0f}" for key, value in draft.evaluation.get("seconds", {}).items()}
    table = _build_table("", "")
    for name, value in rows.items():
        table.add_row(name, printable(str(value)))
    console.print(table)
    _print_overview(console, [draft])
    for domain, measured in draft.domains.items():
        fractions = ", ".join(map(_format_number, measured.worth.acceptance_per_position))
        console.print(f"{printable(domain)}: accepted by position, all before being so: {fractions}")


def _build_manifest(draft: Draft, options: argparse.Namespace) -> dict[str, Any]:
    """Build the TurboDraft that names a folder; JSON is YAML, too."""
    path = options.path or draft.folder.resolve().name
    version = str(draft.config.get("version", ""))
    name = options.name or re.sub(r"[^a-z0-9]+", "-", version.lower()).strip("-")
    spec: dict[str, Any] = {
        "method": "TurboHeads" if draft.method == HEADS else "EAGLE3",
        "location": {"claimName": options.claim, "path": path.strip("/")},
        "version": version,
        "digest": checkpoint_digest(draft.folder),
        "targetDigest": str(draft.config.get("target_digest", "")),
        "domain": str(draft.config.get("domain", "")) or "draft",
        "evaluation": [measured.worth.to_api() for measured in draft.domains.values()],
        **({"deploymentName": options.deployment} if options.deployment else {}),
    }
    head = {"apiVersion": "serving.turbo.dev/v1alpha1", "kind": "TurboDraft", "metadata": {"name": name}}
    return {**head, "spec": spec}


def _compare(console: Console, first: Draft, second: Draft) -> None:
    if first.config.get("target_digest") != second.config.get("target_digest"):
        raise DraftsError(f"{first.folder} and {second.folder} are for different models; compare two of one")
    shared = [domain for domain in first.domains if domain in second.domains]
    if not shared:
        domains = " and ".join(", ".join(draft.domains) or "nothing" for draft in (first, second))
        raise DraftsError(f"they were measured on {domains}: compare drafts of one kind of prompts")
    table = _build_table("domain", "what", str(first.folder), str(second.folder), "second over first")
    for domain in {**first.domains, **second.domains}:
        both = [draft.measured(domain) for draft in (first, second)]
        rows = {"tokens per draft": [measured.worth.acceptance_length for measured in both]}
        for size in sorted({*both[0].speedups, *both[1].speedups}):
            for index, source in enumerate(("memory alone", "the draft")):
                rows[f"speed by {source}, {size} at a time"] = [
                    measured.speedups[size][index] if size in measured.speedups else None for measured in both
                ]
        for label, (before, after) in rows.items():
            ratio = after / before if before and after else None
            table.add_row(printable(domain), label, *map(_format_number, (before, after, ratio)))
    console.print(table)
    pairs = [(domain, first.domains[domain].answers, second.domains[domain].answers) for domain in shared]
    if different := [domain for domain, ours, theirs in pairs if ours is None or ours != theirs]:
        console.print(
            f"Of {printable(', '.join(different))} they were measured on unlike answers: what is the draft's "
            "and what the answers' is open."
        )


def _build_table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=any(headings))
    for heading in headings:
        table.add_column(printable(heading), overflow="fold")
    return table


def _format_number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="turbo drafts", description="Drafts that `turbo distill` has made.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="list | show | compare | manifest")
    overview = verbs.add_parser("list", help="a line for each draft and domain")
    overview.add_argument("folders", type=Path, nargs="*", default=[Path()], metavar="DIR")
    show = verbs.add_parser("show", help="all that is known of one")
    text = "the TurboDraft for a cluster, to be piped into kubectl apply -f -"
    manifest = verbs.add_parser("manifest", help=text)
    for verb in (show, manifest):
        verb.add_argument("folder", type=Path, metavar="DIR")
    manifest.add_argument("--claim", required=True, help="PersistentVolumeClaim that holds the folder")
    manifest.add_argument("--path", help="of the folder below the claim's root (default: its name)")
    text = "TurboDeployment that is to try it on one pod first"
    manifest.add_argument("--deployment", metavar="NAME", help=text)
    manifest.add_argument("--name", help="of the object (default: the draft's version)")
    compare = verbs.add_parser("compare", help="what the second brings over the first")
    for name in ("first", "second"):
        compare.add_argument(name, type=Path, metavar="DIR")
    return parser
