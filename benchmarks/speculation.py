"""How much sooner the same text comes: over no drafts in the same engine, and over what others serve with.

Every domain's prompts are answered once without drafts: answers that loop are left out, the rest is dealt
into runs that have no prompt in common. A run gives every competitor the same prompts: each prompt to all in
turn, in an order that moves on, and speeds are compared within the run. What competitors remember is emptied
before each run; our drafter's memory is then warmed on prompts that are in none; a new pod (`turbo new pod`)
is not, and starts with a draft that brings the answers to them. `turbo draft` is warmed as `turbo` is, and
has a draft, trained in seconds on answers to prompts of the domain that are in no run: heads, and those
answers.
All compute in float32 with the same weights, on one thread; llama.cpp's 4-bit figure stands beside them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from engines import tokenizer
from harness import PROMPTS, Bar, arguments, finish, prompts
from peers.contest import (
    DRAFT,
    LLAMA_F32,
    LLAMA_Q4,
    LOOKUP,
    NEW_POD,
    NGRAMS,
    PEERS,
    PLAIN,
    SUFFIXES,
    TRANSFORMERS,
    TURBO,
    VLLM_PLAIN,
    Competitor,
    Contest,
    Limits,
)
from peers.domains import Asked, Domain, Wanted, deal, trimmed
from peers.estimate import minutes
from peers.weights import float32_folder, float32_gguf
from peers.worker import Result

from turbo_dev.model import ensure
from turbo_dev.progress import say, step
from turbo_runtime.contract.config import RuntimeConfig

BARS = (
    Bar("byte_differences", at_most=0),
    Bar("runs", at_least=5),
    Bar("prompts_min", at_least=40),
    Bar("answer_tokens_min", at_least=4000),
    Bar("plain_of_transformers", at_least=1.3),
    Bar("plain_of_vllm", at_least=0.95),
    Bar("json_of_plain", at_least=4.3),  # the suffix drafter alone, which remembers 24 answers
    Bar("maths_of_plain", at_least=1.95),
    Bar("support_of_plain", at_least=1.45),
    Bar("json_draft_of_plain", at_least=4.3),  # with a draft that is learned in seconds
    Bar("maths_draft_of_plain", at_least=1.95),
    Bar("support_draft_of_plain", at_least=1.45),
    Bar("json_of_vllm_suffix", at_least=1.0),
    Bar("maths_of_vllm_suffix", at_least=1.0),
    Bar("support_of_vllm_suffix", at_least=0.97),
    Bar("json_of_vllm_ngram", at_least=1.0),
    Bar("support_of_vllm_ngram", at_least=1.0),
    *(Bar(f"{domain}_new_pod_of_warm", at_least=0.9) for domain in ("json", "maths", "support")),
)
SIZES = ("runs", "prompts_min", "answer_tokens_min")
DOMAINS = ("json", "support", "maths")  # `code` is there too
BATCH, MAX_LENGTH = 8, 1024
ALL = Wanted(prompts=40, tokens=4000, warm=24, learn=64, runs=5, answer_tokens=128, stop=[])
QUICK = Wanted(prompts=6, tokens=300, warm=4, learn=8, runs=2, answer_tokens=64, stop=[])
FIGURES = {
    PLAIN: "plain",
    TRANSFORMERS: "transformers",
    LOOKUP: "lookup",
    LLAMA_F32: "llama_f32",
    LLAMA_Q4: "llama_q4",
    VLLM_PLAIN: "vllm",
}
FASTEST_OF = {"vllm_ngram": NGRAMS, "vllm_suffix": SUFFIXES}


@dataclass(frozen=True)
class Measured:
    """One competitor's run."""

    tokens: int
    seconds: float
    drafts: int
    accepted: int
    asked: int
    same: int  # answers that are ours without drafts
    computed_with: str

    @property
    def speed(self) -> float:
        """Tokens per second, prompts included in the time."""
        return self.tokens / self.seconds


Runs: TypeAlias = Mapping[tuple[str, int, Competitor], list[Measured]]  # by domain, requests at a time, who


def main() -> int:
    """Exit status by the bars that the chosen domains and peers have figures for."""
    options = _options()
    competitors = [PLAIN, TURBO, NEW_POD, DRAFT]
    competitors += [peer for name in options.peers if name != "none" for peer in PEERS[name]]
    source = ensure()
    folder = float32_folder(source)
    models = {"source": source, "folder": folder, "gguf": float32_gguf(source)}
    wanted = _wanted(options, folder)
    count = len(options.domains or DOMAINS)
    estimate = minutes(count, wanted, options.at_a_time, competitors)
    say(f"{len(competitors)} competitors, {count} domains: about {estimate:.0f} min on one thread")
    with tempfile.TemporaryDirectory(prefix="turbo-bench-") as logs:
        contest = Contest(models, options.threads, BATCH, MAX_LENGTH, Path(logs))
        try:
            domains = list(_domains(options, contest, folder, wanted))
            runs = _measure(contest, domains, competitors, wanted, options.at_a_time)
        finally:
            contest.close()
    figures = _figures(domains, runs)
    if sized := not options.quick and options.prompts == [PROMPTS]:
        say("the amount of prompts, tokens and runs is held to its bars")
    bars = [bar for bar in BARS if bar.figure in figures and (sized or bar.figure not in SIZES)]
    if untried := [bar.figure for bar in BARS if bar.figure not in figures]:
        say(f"no bar is held for what did not run: {', '.join(untried)}")
    return finish("speculation", figures, _rows(runs), bars, options)


def _options() -> argparse.Namespace:
    parser = arguments(__doc__ or "")
    parser.set_defaults(threads=1)
    parser.add_argument(
        "--prompts",
        type=Path,
        nargs="+",
        default=[PROMPTS],
        metavar="PATH",
        help="JSON lines, or folders of them",
    )
    parser.add_argument(
        "--domains", nargs="+", help=f"default: {' '.join(DOMAINS)}; `code` is there too; of --prompts: all"
    )
    parser.add_argument("--peers", nargs="+", choices=(*PEERS, "none"), default=tuple(PEERS))
    parser.add_argument(
        "--at-a-time", type=int, nargs="+", choices=(1, BATCH), default=[1], help="requests (default: 1)"
    )
    parser.add_argument("--runs", type=int, help="into which each domain's prompts are dealt (default: 5)")
    parser.add_argument(
        "--quick", action="store_true", help="few prompts, and no bars for their amount: for development"
    )
    return parser.parse_args()


def _wanted(options: argparse.Namespace, folder: Path) -> Wanted:
    said = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))["eos_token_id"]
    amount = QUICK if options.quick else ALL
    return replace(amount, runs=options.runs or amount.runs, stop=[said] if isinstance(said, int) else said)


def _domains(options: argparse.Namespace, contest: Contest, folder: Path, wanted: Wanted) -> Iterator[Domain]:
    encode, _ = tokenizer(RuntimeConfig(str(folder)))
    by_domain = defaultdict[str, list[list[int]]](list)
    for row in prompts(options.prompts):
        ids = encode(row["prompt"])
        if len(ids) + wanted.answer_tokens < MAX_LENGTH and ids not in by_domain[row["domain"]]:
            by_domain[row["domain"]].append(ids)
    for name in options.domains or (DOMAINS if options.prompts == [PROMPTS] else list(by_domain)):
        if name not in by_domain:
            sys.exit(
                f"there are no prompts of domain {name}; there are some of {', '.join(sorted(by_domain))}"
            )
        with step(f"look at answers of domain {name}", "1 min"):
            domain = deal(contest, name, by_domain[name], wanted)
        say(
            f"   {name}: {len(domain.asked)} prompts, {domain.tokens} answer tokens; "
            f"{domain.looping} answers that loop are left out, {len(domain.learn)} prompts are learned from"
        )
        yield domain


def _measure(
    contest: Contest,
    domains: Sequence[Domain],
    competitors: Sequence[Competitor],
    wanted: Wanted,
    concurrent: Sequence[int],
) -> Runs:
    runs = defaultdict[tuple[str, int, Competitor], list[Measured]](list)
    for domain in domains:
        for at_a_time in concurrent:
            able = [one for one in competitors if one.batches or at_a_time == 1]
            if not domain.learn:
                able.remove(DRAFT)
            for number, asked in enumerate(domain.runs):
                if number == 1:
                    able = [one for one in able if not one.once]
                limits = wanted.answer_tokens, wanted.stop
                for competitor in able:
                    contest.begin(competitor, domain.warm, limits, domain.learn)
                for competitor, results in _in_turn(contest, able, asked, at_a_time, limits, number).items():
                    measured = _measured(results, asked, wanted.stop)
                    runs[domain.name, at_a_time, competitor].append(measured)
                    say(
                        f"   {domain.name}, run {number + 1} of {len(domain.runs)}, {at_a_time} at a time: "
                        f"{competitor.name} {measured.speed:.1f} tokens/s"
                    )
    return runs


def _in_turn(
    contest: Contest,
    competitors: Sequence[Competitor],
    asked: Sequence[Asked],
    at_a_time: int,
    limits: Limits,
    first: int,
) -> Mapping[Competitor, list[Result]]:
    """Ask all one prompt after the other, so that a machine whose speed drifts is as fast for each; or, where
    several are answered together, all prompts.
    """
    results = defaultdict[Competitor, list[Result]](list)
    for number, part in enumerate([[one] for one in asked] if at_a_time == 1 else [asked], first):
        turn = number % len(competitors)
        for competitor in (*competitors[turn:], *competitors[:turn]):
            own = [one.prompt for one in part]
            results[competitor].append(contest.answer(competitor, own, at_a_time, limits))
    return results


def _measured(results: Sequence[Result], asked: Sequence[Asked], stop: Sequence[int]) -> Measured:
    answers = [trimmed(answer, stop) for result in results for answer in result.answers]
    return Measured(
        sum(map(len, answers)),
        sum(result.seconds for result in results),
        sum(result.drafts for result in results),
        sum(result.accepted for result in results),
        len(asked),
        sum(answer == one.answer for answer, one in zip(answers, asked, strict=True)),
        results[0].computed_with,
    )


def _fastest(runs: Runs, domain: str, at_a_time: int, settings: Sequence[Competitor]) -> Competitor | None:
    """The one of the settings that is fastest in the median; None where none ran."""
    found = {one: runs[domain, at_a_time, one] for one in settings if (domain, at_a_time, one) in runs}
    speeds = {one: statistics.median(each.speed for each in measured) for one, measured in found.items()}
    return max(speeds, key=lambda one: speeds[one], default=None)


def _ratios(runs: Runs, domain: str, at_a_time: int, over: Competitor, of: Competitor = TURBO) -> list[float]:
    """How much faster `of` was, run by run: those of the first runs that both took part in."""
    pairs = zip(runs[domain, at_a_time, of], runs[domain, at_a_time, over], strict=False)
    return [ours.speed / theirs.speed for ours, theirs in pairs]


def _rows(runs: Runs) -> list[dict[str, Any]]:
    rows = []
    for (domain, at_a_time, competitor), found in runs.items():
        speeds = [one.speed for one in found]
        ratios = _ratios(runs, domain, at_a_time, competitor)
        drafts, accepted = sum(one.drafts for one in found), sum(one.accepted for one in found)
        rows.append(
            {
                "domain": domain,
                "at_a_time": at_a_time,
                "who": competitor.name,
                "tokens_per_s": statistics.median(speeds),
                "from": min(speeds),
                "to": max(speeds),
                "tokens_per_draft": 1 + accepted / drafts if drafts else None,
                "turbo_is_faster_by": statistics.median(ratios),
                "faster_from": min(ratios),
                "faster_to": max(ratios),
                "runs": len(found),
                "same_answers": f"{sum(one.same for one in found)} of {sum(one.asked for one in found)}",
                "computed_with": found[0].computed_with,
            }
        )
    return rows


def _figures(domains: Sequence[Domain], runs: Runs) -> dict[str, float]:
    """Medians of ratios within a run; `_8`: eight requests at a time."""
    own = [found for (_, _, who), found in runs.items() if who in (PLAIN, TURBO, NEW_POD, DRAFT)]
    figures: dict[str, float] = {
        "byte_differences": sum(one.asked - one.same for runs in own for one in runs)
    }
    figures |= {
        "runs": min(len(domain.runs) for domain in domains),
        "prompts_min": min(len(domain.asked) for domain in domains),
        "answer_tokens_min": min(domain.tokens for domain in domains),
    }
    for domain, at_a_time, competitor in runs:
        end = f"_{at_a_time}" if at_a_time > 1 else ""
        if competitor in FIGURES:
            ratios = _ratios(runs, domain, at_a_time, competitor)
            figures[f"{domain}_of_{FIGURES[competitor]}{end}"] = round(statistics.median(ratios), 3)
        for name, settings in FASTEST_OF.items():
            if competitor == _fastest(runs, domain, at_a_time, settings):
                ratios = _ratios(runs, domain, at_a_time, competitor)
                figures[f"{domain}_of_{name}{end}"] = round(statistics.median(ratios), 3)
        if competitor is NEW_POD:
            ratios = _ratios(runs, domain, at_a_time, TURBO, NEW_POD)
            figures[f"{domain}_new_pod_of_warm{end}"] = round(statistics.median(ratios), 3)
        if competitor is DRAFT:
            for over, name in ((PLAIN, "plain"), (TURBO, "suffix")):
                ratios = _ratios(runs, domain, at_a_time, over, DRAFT)
                figures[f"{domain}_draft_of_{name}{end}"] = round(statistics.median(ratios), 3)
    for peer in (TRANSFORMERS, VLLM_PLAIN):
        measured = [one.name for one in domains if (one.name, 1, peer) in runs]
        if each := [ratio for domain in measured for ratio in _ratios(runs, domain, 1, peer, PLAIN)]:
            figures[f"plain_of_{FIGURES[peer]}"] = round(statistics.median(each), 3)
    for one in domains:
        warm, known = one.recurring
        figures[f"{one.name}_outputs_among_warm"] = warm
        figures[f"{one.name}_outputs_among_learned"] = known
        figures[f"{one.name}_copied_fraction"] = round(one.copied_fraction, 3)
    return figures


if __name__ == "__main__":
    raise SystemExit(main())
