"""`turbo drafts`: what the drafts in some folders are, and what they are worth."""

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
from turbo_runtime.cli.draft_folders import Draft, DraftsError, find_drafts, not_done, read
from turbo_runtime.client.terminal import printable
from turbo_runtime.distill.recipe import EAGLE3, HEADS

_WIDE = 1000  # columns where no terminal says how many
_GAIN = "at a time: speed over no drafts, from memory alone > with the draft"
_ASKED = ("temperature", "top_p", "top_k", "max_tokens", "dtype", "answers_from")
_NOT_OURS = "holds an EAGLE-3 layer, which vLLM and SGLang load; the engine Turbo cannot draft with it yet"


def drafts(argv: list[str]) -> int:
    """Exit status: 0, or 1 where a folder holds no draft."""
    options = _parser().parse_args(argv)
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else _WIDE)
    try:
        if options.verb == "list":
            found, begun = find_drafts(options.folders)
            if found:
                console.print(_listed(found))
                console.print(_GAIN)
            for folder in begun:
                console.print(printable(not_done(folder)))
        elif options.verb == "show":
            _show(console, read(options.folder))
        elif options.verb == "manifest":
            draft = read(options.folder)
            print(json.dumps(_manifest(draft, options), indent=2))
            if draft.method == EAGLE3:
                print(f"turbo drafts: {draft.folder} {_NOT_OURS}", file=sys.stderr)
        else:
            _compare(console, read(options.first), read(options.second))
    except DraftsError as error:
        print(f"turbo drafts: {error}", file=sys.stderr)
        return 1
    return 0


def _listed(found: Sequence[Draft]) -> Table:
    about = ("draft", "method", "version", "model", "domain", "held out")
    table = _table(*about, "per draft", "1 at a time", "8", "32")
    for draft in found:
        for domain in draft.domains or [draft.config.get("domain", "")]:
            gains = draft.gains(domain)
            table.add_row(
                *map(
                    printable,
                    (
                        draft.folder.resolve().name,
                        draft.method,
                        str(draft.config.get("version", "")),
                        str(draft.config.get("target_digest", "")).removeprefix("sha256:")[:8],
                        domain,
                        str(draft.held_out(domain) or "-"),
                        _told(draft.length(domain)),
                        *(_over(gains.get(batch)) for batch in (1, 8, 32)),
                    ),
                )
            )
    return table


def _show(console: Console, draft: Draft) -> None:
    facts = _table("", "")
    facts.add_row("method", draft.method)
    for name in ("version", "domain", "heads", "markov_rank", "vocabulary_size", "target_digest"):
        if name in draft.config:
            facts.add_row(name.replace("_", " "), printable(str(draft.config[name])))
    facts.add_row("digest", artefact_digest(draft.folder))
    training = draft.config.get("training", {})
    for part, count in training.get("answers", {}).items():
        facts.add_row(f"answers, {part}", str(count))
    if "left_out" in training:
        facts.add_row("answers, left out", str(training["left_out"]))
    if losses := draft.evaluation.get("losses"):
        facts.add_row("epochs", str(len(losses)))
    request = training.get("request", {})
    for name, value in {**request.get("recipe", {}), **request}.items():
        if name in _ASKED:
            facts.add_row(name.replace("_", " "), printable(str(value)))
    for stage, seconds in draft.evaluation.get("seconds", {}).items():
        facts.add_row(f"seconds, {stage}", f"{seconds:.0f}")
    console.print(facts)
    console.print(_listed([draft]))
    console.print(_GAIN)
    for domain in draft.domains:
        shares = draft.domains[domain].get("unseen", {}).get("acceptance_per_position", ())
        told = ", ".join(f"{share:.2f}" for share in shares)
        console.print(f"{printable(domain)}: accepted by position, all before being so: {told}")


def _manifest(draft: Draft, options: argparse.Namespace) -> dict[str, Any]:
    """The TurboDraft that names a folder; JSON is YAML, too."""
    path = options.path or draft.folder.resolve().name
    version = str(draft.config.get("version", ""))
    name = options.name or re.sub(r"[^a-z0-9]+", "-", version.lower()).strip("-")
    spec: dict[str, Any] = {
        "method": "TurboHeads" if draft.method == HEADS else "EAGLE3",
        "location": {"claimName": options.claim, "path": path.strip("/")},
        "version": version,
        "digest": artefact_digest(draft.folder),
        "targetDigest": str(draft.config.get("target_digest", "")),
        "domain": str(draft.config.get("domain", "")) or "draft",
        "evaluation": [_evaluated(draft, domain) for domain in draft.domains],
    }
    if options.deployment:
        spec["deployment"] = options.deployment
    return {
        "apiVersion": "serving.turbo.dev/v1alpha1",
        "kind": "TurboDraft",
        "metadata": {"name": name},
        "spec": spec,
    }


def _evaluated(draft: Draft, domain: str) -> dict[str, Any]:
    length = draft.length(domain)
    shares = draft.domains[domain].get("unseen", {}).get("acceptance_per_position", ())
    return {
        "domain": domain,
        **({} if length is None else {"acceptanceLength": f"{length:.3f}"}),
        "acceptancePerPosition": [f"{share:.3f}" for share in shares],
        "gains": [
            {"batch": batch, "before": f"{before:.3f}", "after": f"{after:.3f}"}
            for batch, (before, after) in draft.gains(domain).items()
        ],
    }


def _compare(console: Console, first: Draft, second: Draft) -> None:
    if first.config.get("target_digest") != second.config.get("target_digest"):
        raise DraftsError(
            f"{first.folder} and {second.folder} are for different models; compare drafts of one model"
        )
    if not {*first.domains} & {*second.domains}:
        told = " and ".join(", ".join(one.domains) or "nothing" for one in (first, second))
        raise DraftsError(f"they were measured on {told}: compare drafts of one kind of prompts")
    table = _table("domain", "what", str(first.folder), str(second.folder), "second over first")
    for domain in [*first.domains, *(name for name in second.domains if name not in first.domains)]:
        pairs: dict[str, tuple[float | None, ...]] = {}
        pairs["tokens per draft"] = first.length(domain), second.length(domain)
        one, other = first.gains(domain), second.gains(domain)
        for batch in sorted({*one, *other}):
            for place, way in enumerate(("memory alone", "the draft")):
                speeds = (gains[batch][place] if batch in gains else None for gains in (one, other))
                pairs[f"speed by {way}, {batch} at a time"] = tuple(speeds)
        for what, (before, after) in pairs.items():
            ratio = after / before if before and after else None
            table.add_row(printable(domain), what, _told(before), _told(after), _told(ratio))
    console.print(table)
    both = [domain for domain in first.domains if domain in second.domains]
    unlike = [domain for domain in both if not first.measured_as(second, domain)]
    if unlike:
        console.print(
            f"Of {printable(', '.join(unlike))} they were measured on unlike answers: what is the draft's "
            "and what the answers' is open."
        )


def _table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=any(headings))
    for heading in headings:
        table.add_column(printable(heading), overflow="fold")
    return table


def _told(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _over(gain: tuple[float, float] | None) -> str:
    return "-" if gain is None else " > ".join(map(_told, gain))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="turbo drafts", description="Drafts that `turbo distill` has made.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="list | show | compare | manifest")
    listed = verbs.add_parser("list", help="a line for each draft and domain")
    listed.add_argument("folders", type=Path, nargs="*", default=[Path()], metavar="DIR")
    shown = verbs.add_parser("show", help="all that is known of one")
    shown.add_argument("folder", type=Path, metavar="DIR")
    made = verbs.add_parser(
        "manifest", help="the TurboDraft for a cluster, to be piped into kubectl apply -f -"
    )
    made.add_argument("folder", type=Path, metavar="DIR")
    made.add_argument("--claim", required=True, help="PersistentVolumeClaim that holds the folder")
    made.add_argument("--path", help="of the folder below the claim's root (default: its name)")
    made.add_argument(
        "--deployment", metavar="NAME", help="TurboDeployment that is to try it on one pod first"
    )
    made.add_argument("--name", help="of the object (default: the draft's version)")
    compared = verbs.add_parser("compare", help="what the second brings over the first")
    compared.add_argument("first", type=Path, metavar="DIR")
    compared.add_argument("second", type=Path, metavar="DIR")
    return parser
