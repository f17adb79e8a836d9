"""`turbo drafts`: drafts in some folders, and what they are worth."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from turbo_runtime.checkpoint_digest import artefact_digest
from turbo_runtime.cli.draft_folders import Draft, DraftsError, describe_unfinished, find_drafts, read_draft
from turbo_runtime.client.terminal import printable
from turbo_runtime.distill.recipe import EAGLE3, HEADS

_DEFAULT_WIDTH = 1000  # columns where no terminal says how many
_LEGEND = "at a time: speed over no drafts, from memory alone > with the draft"
_ANSWER_SETTINGS = ("temperature", "top_p", "top_k", "max_tokens", "dtype", "answers_from")
_EAGLE3_NOTE = "holds an EAGLE-3 layer, which vLLM and SGLang load; the engine Turbo cannot draft with it yet"


def drafts(argv: list[str]) -> int:
    """Exit status: 0, or 1 where a folder holds no draft."""
    options = _build_parser().parse_args(argv)
    width = None if sys.stdout.isatty() else _DEFAULT_WIDTH
    console = Console(highlight=False, markup=False, width=width)
    try:
        if options.verb == "list":
            found, unfinished = find_drafts(options.folders)
            if found:
                _print_overview(console, found)
            for folder in unfinished:
                console.print(printable(describe_unfinished(folder)))
        elif options.verb == "show":
            _show(console, read_draft(options.folder))
        elif options.verb == "manifest":
            draft = read_draft(options.folder)
            print(json.dumps(_build_manifest(draft, options), indent=2))
            if draft.method == EAGLE3:
                print(f"turbo drafts: {draft.folder} {_EAGLE3_NOTE}", file=sys.stderr)
        else:
            _compare(console, read_draft(options.first), read_draft(options.second))
    except DraftsError as error:
        print(f"turbo drafts: {error}", file=sys.stderr)
        return 1
    return 0


def _print_overview(console: Console, found: Sequence[Draft]) -> None:
    headings = ("draft", "method", "version", "model", "domain", "held out", "per draft")
    table = _build_table(*headings, "1 at a time", "8", "32")
    for draft in found:
        for domain in draft.domains or [draft.config.get("domain", "")]:
            speedups = draft.speedups(domain)
            cells = (
                draft.folder.resolve().name,
                draft.method,
                str(draft.config.get("version", "")),
                str(draft.config.get("target_digest", "")).removeprefix("sha256:")[:8],
                domain,
                str(draft.num_test_answers(domain) or "-"),
                _format_number(draft.acceptance_length(domain)),
                *(
                    " > ".join(map(_format_number, speedups[size])) if size in speedups else "-"
                    for size in (1, 8, 32)
                ),
            )
            table.add_row(*map(printable, cells))
    console.print(table)
    console.print(_LEGEND)


def _show(console: Console, draft: Draft) -> None:
    table = _build_table("", "")
    table.add_row("method", draft.method)
    for name in ("version", "domain", "heads", "markov_rank", "vocabulary_size", "target_digest"):
        if name in draft.config:
            table.add_row(name.replace("_", " "), printable(str(draft.config[name])))
    table.add_row("digest", artefact_digest(draft.folder))
    training = draft.config.get("training", {})
    for part, count in training.get("answers", {}).items():
        table.add_row(f"answers, {part}", str(count))
    if "left_out" in training:
        table.add_row("answers, left out", str(training["left_out"]))
    if losses := draft.evaluation.get("losses"):
        table.add_row("epochs", str(len(losses)))
    request = training.get("request", {})
    for name, value in {**request.get("recipe", {}), **request}.items():
        if name in _ANSWER_SETTINGS:
            table.add_row(name.replace("_", " "), printable(str(value)))
    for stage, seconds in draft.evaluation.get("seconds", {}).items():
        table.add_row(f"seconds, {stage}", f"{seconds:.0f}")
    console.print(table)
    _print_overview(console, [draft])
    for domain in draft.domains:
        fractions = ", ".join(f"{fraction:.2f}" for fraction in _acceptance_per_position(draft, domain))
        console.print(f"{printable(domain)}: accepted by position, all before being so: {fractions}")


def _acceptance_per_position(draft: Draft, domain: str) -> Sequence[float]:
    fractions: Sequence[float] = draft.domains[domain].get("unseen", {}).get("acceptance_per_position", ())
    return fractions


def _build_manifest(draft: Draft, options: argparse.Namespace) -> dict[str, Any]:
    """Build the TurboDraft that names a folder; JSON is YAML, too."""
    path = options.path or draft.folder.resolve().name
    version = str(draft.config.get("version", ""))
    name = options.name or re.sub(r"[^a-z0-9]+", "-", version.lower()).strip("-")
    evaluation = []
    for domain in draft.domains:
        length = draft.acceptance_length(domain)
        evaluation.append(
            {
                "domain": domain,
                **({} if length is None else {"acceptanceLength": f"{length:.3f}"}),
                "acceptancePerPosition": [
                    f"{fraction:.3f}" for fraction in _acceptance_per_position(draft, domain)
                ],
                "gains": [
                    {"batch": size, "before": f"{before:.3f}", "after": f"{after:.3f}"}
                    for size, (before, after) in draft.speedups(domain).items()
                ],
            }
        )
    spec: dict[str, Any] = {
        "method": "TurboHeads" if draft.method == HEADS else "EAGLE3",
        "location": {"claimName": options.claim, "path": path.strip("/")},
        "version": version,
        "digest": artefact_digest(draft.folder),
        "targetDigest": str(draft.config.get("target_digest", "")),
        "domain": str(draft.config.get("domain", "")) or "draft",
        "evaluation": evaluation,
    }
    if options.deployment:
        spec["deployment"] = options.deployment
    return {
        "apiVersion": "serving.turbo.dev/v1alpha1",
        "kind": "TurboDraft",
        "metadata": {"name": name},
        "spec": spec,
    }


def _compare(console: Console, first: Draft, second: Draft) -> None:
    if first.config.get("target_digest") != second.config.get("target_digest"):
        raise DraftsError(
            f"{first.folder} and {second.folder} are for different models; compare drafts of one model"
        )
    if not {*first.domains} & {*second.domains}:
        domains = " and ".join(", ".join(draft.domains) or "nothing" for draft in (first, second))
        raise DraftsError(f"they were measured on {domains}: compare drafts of one kind of prompts")
    table = _build_table("domain", "what", str(first.folder), str(second.folder), "second over first")
    for domain in {**first.domains, **second.domains}:
        rows: dict[str, tuple[float | None, ...]] = {
            "tokens per draft": (first.acceptance_length(domain), second.acceptance_length(domain))
        }
        both = first.speedups(domain), second.speedups(domain)
        for size in sorted({*both[0], *both[1]}):
            for index, source in enumerate(("memory alone", "the draft")):
                rows[f"speed by {source}, {size} at a time"] = tuple(
                    speedups[size][index] if size in speedups else None for speedups in both
                )
        for label, (before, after) in rows.items():
            ratio = after / before if before and after else None
            table.add_row(printable(domain), label, *map(_format_number, (before, after, ratio)))
    console.print(table)
    shared = [domain for domain in first.domains if domain in second.domains]
    different = [domain for domain in shared if not first.has_same_test_answers(second, domain)]
    if different:
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
