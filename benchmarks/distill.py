"""What drafts bring that the model has taught itself: `turbo distill` on four domains, then the same prompts
without drafts, with what is drafted from memory alone, and with the heads beside it; then every drafter alone
and with others, of near-copies and of new prompts apart.

Answers are the model's own: greedy ones, and at temperature 0.7 where greedy ones loop. Prompts that speeds
are taken of were held out; of their answers those count that do not stand word for word among the answers
learnt from (`_whole`: all of them, where there are others). The memory is emptied before each run and filled
with the answers learnt from, then some prompts that judged the training are answered first. All as `turbo
serve` computes on this machine, on all cores, but that threads which wait for each other spin. The draft for
all domains learns from the same answers as those of its own for each.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from distillation import by_drafter
from distillation.cases import Case, Trained, same, ways_of
from distillation.larger_models import places
from harness import HERE, Bar, arguments, finish
from peers.contest import TRANSFORMERS, Contest
from peers.weights import float32_folder

from turbo_dev.model import ensure
from turbo_dev.progress import say, step
from turbo_runtime.contract.config import RuntimeConfig
from turbo_runtime.distill.data.responses import Completion, TokenizedPrompt, deal, is_looping, read_kept
from turbo_runtime.distill.evaluation.speedup_benchmark import runs
from turbo_runtime.distill.recipe import Recipe
from turbo_runtime.distill.target import TargetModel
from turbo_runtime.drafters.heads import load_heads
from turbo_runtime.engine.process import quiet_libraries
from turbo_runtime.messages import SamplingParams
from turbo_runtime.model_files.inspector import inspect_model
from turbo_runtime.prompts import read_prompts

BARS = (
    Bar("differing", at_most=0),
    Bar("by_drafter_differing", at_most=0),
    Bar("prompts_min", at_least=40),
    Bar("answer_tokens_min", at_least=4000),
    Bar("json_of_plain", at_least=2.2),
    Bar("maths_of_plain", at_least=1.35),
    Bar("support_of_plain", at_least=1.3),
    Bar("json_of_plain_8", at_least=1.72),  # speed-up - 1 is 0.6 of what one request at a time must have
    Bar("maths_of_plain_8", at_least=1.21),
    Bar("support_of_plain_8", at_least=1.18),
)
SIZES = ("prompts_min", "answer_tokens_min")
DATA = HERE / "data" / "distill"
SAMPLED = ("latex",)  # greedy answers loop
TEMPERATURE = 0.7
PARTS = ("heads", "drafters")
TEST_FRACTION, VALIDATION_FRACTION, SEED = 0.22, 0.08, 0
DEALT = ("--test-fraction", str(TEST_FRACTION), "--validation-fraction", str(VALIDATION_FRACTION))
ANSWER_TOKENS, CONTEXT, ROUNDS = 128, 1024, 5
DEPTH, SIDES = 4, 3  # of the EAGLE-3 layer's training; rounds of near-copies and of new prompts
ENOUGH_PROMPTS, ENOUGH_TOKENS = 45, 4400  # of a case: more than the bars want


def main() -> int:
    """Exit status by the bars of the domains that were asked for."""
    options = _options()
    threads = options.threads or len(os.sched_getaffinity(0))
    quiet_libraries()
    folder = float32_folder(ensure())
    files = {file.stem: file for path in options.prompts for file in _files(path)}
    domains = options.domains or list(files)
    measured = options.measure or domains
    for names, known in ((domains, files), (measured, domains)):
        if unknown := {*names} - {*known}:
            sys.exit(f"{', '.join(sorted(unknown))}: not among {', '.join(known)}")
    with tempfile.TemporaryDirectory(prefix="turbo-distill-") as scratch:
        work = options.work or Path(scratch)
        drafts = {
            name: _distill(folder, work / name, name, options.dtype, ["--prompts", files[name], *DEALT])
            for name in domains
        }
        if len(domains) > 1 and "heads" in options.parts and not options.quick:
            out = work / f"all-{'-'.join(sorted(domains))}"
            drafts["all"] = _distill(folder, out, "all", options.dtype, ["--answers", *drafts.values()])
        served = TargetModel(
            RuntimeConfig(
                str(folder),
                dtype=options.dtype,
                threads=threads,
                max_model_len=CONTEXT,
                audit_fraction=0.0,
                device="cpu",
            )
        )
        trained = {name: _read(served, out) for name, out in drafts.items()}
        asked = {name: _asked(served, trained[name], files[name], name) for name in measured}
        figures, rows = dict[str, float](), list[dict[str, Any]]()
        if "heads" in options.parts:
            cases = list(_cases(served, asked, trained, options))
            figures, rows = _figures(cases, trained), _rows(cases)
            if not options.quick:
                figures |= _over_transformers(folder, served, asked, trained, threads, Path(scratch))
        if "drafters" in options.parts:
            parts = list[by_drafter.Part]()
            for name in measured:
                layer = _eagle3(folder, work, drafts[name], name, options.dtype)
                said = _enough(_unseen(asked[name][_temperature(name)], trained[name]))
                params = _params(served, _temperature(name))
                parts += by_drafter.measure(served, name, said, trained[name], layer, params, SIDES)
            figures |= by_drafter.figures(parts)
            rows += by_drafter.rows(parts) + _gains(served, folder, parts, threads)
    sized = options.prompts == [DATA]
    bars = [bar for bar in BARS if bar.figure in figures and (sized or bar.figure not in SIZES)]
    bars = [] if options.quick else bars
    return finish("distill", figures, rows, bars, options)


def _options() -> argparse.Namespace:
    parser = arguments(__doc__ or "")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument(
        "--prompts", type=Path, nargs="+", default=[DATA], metavar="PATH", help="JSON lines, a file a domain"
    )
    parser.add_argument("--domains", nargs="+", help="by the names of their files (default: all)")
    parser.add_argument("--measure", nargs="+", help="speeds of so many of the domains (default: of all)")
    parser.add_argument("--work", type=Path, help="keep drafts here, and take up what is there already")
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=PARTS,
        help="heads beside memory, or every drafter alone and together (default: both)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="one temperature and one draft a domain, no bars"
    )
    return parser.parse_args()


def _files(path: Path) -> list[Path]:
    return sorted(path.glob("*.jsonl")) if path.is_dir() else [path]


def _temperature(domain: str) -> float:
    return TEMPERATURE if domain in SAMPLED else 0.0


def _distill(folder: Path, out: Path, domain: str, dtype: str, source: Sequence[str | Path]) -> Path:
    """As it is typed."""
    command = [sys.executable, "-m", "turbo_cli", "distill", str(folder), "--out", str(out)]
    command += [*map(str, source), "--domain", domain, "--keep-answers"]
    command += ["--dtype", dtype, "--device", "cpu"]
    command += [
        "--temperature",
        str(_temperature(domain)),
        "--max-tokens",
        str(ANSWER_TOKENS),
        "--no-speedup",
    ]
    command += ["--seed", str(SEED), "--max-model-len", str(CONTEXT)]
    with step(f"distill {domain}", "10 min"):
        subprocess.run(command, check=True)
    return out


def _eagle3(folder: Path, work: Path, answers: Path, domain: str, dtype: str) -> Path:
    """The layer, from the same answers."""
    learned = ("--answers", answers, "--method", "eagle3", "--depth", str(DEPTH))
    return _distill(folder, work / f"{domain}-eagle3", domain, dtype, learned)


def _gains(
    served: TargetModel, folder: Path, parts: list[by_drafter.Part], threads: int
) -> list[dict[str, Any]]:
    shape, element = inspect_model(str(folder)).shape, 4 if served.ready.dtype == "float32" else 2
    return by_drafter.gains(parts, places(shape, element, threads), by_drafter.LAYERS / shape.layers)


def _read(served: TargetModel, out: Path) -> Trained:
    _, heads = load_heads(out, served.target)
    answers = read_kept([out], served.target.digest).completions
    record = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
    return Trained(heads, [one for one in answers if one.request.part != "test"], record["seconds"])


def _params(served: TargetModel, temperature: float) -> SamplingParams:
    return SamplingParams(
        temperature=temperature, seed=SEED, max_tokens=ANSWER_TOKENS, stop_token_ids=served.stop_ids
    )


def _asked(served: TargetModel, trained: Trained, file: Path, domain: str) -> dict[float, list[Completion]]:
    """By temperature the model's answers to the prompts that `turbo distill` held out, looping ones left out.
    Exits where too few are new to be measured.
    """
    recipe = Recipe(test_fraction=TEST_FRACTION, validation_fraction=VALIDATION_FRACTION, seed=SEED)
    prompts = deal(read_prompts([file]), recipe.seed, recipe.shares)["test"]
    held = [TokenizedPrompt("test", domain, served.encode(prompt)) for prompt in prompts]
    found = {}
    for temperature in sorted({_temperature(domain), TEMPERATURE}):
        told = served.answer(
            [replace(one, temperature=temperature) for one in held], _params(served, temperature)
        )
        found[temperature] = [one for one in map(Completion, held, told) if not is_looping(one.tokens)]
        if len(_unseen(found[temperature], trained)) < ROUNDS:
            sys.exit(f"{file}: of the answers to prompts held out hardly any is new; give more prompts")
    return found


def _unseen(said: Sequence[Completion], *trained: Trained) -> list[Completion]:
    learnt = {one.tokens for draft in trained for one in draft.answers}
    return [one for one in said if one.tokens not in learnt]


def _cases(
    served: TargetModel,
    asked: dict[str, dict[float, list[Completion]]],
    trained: dict[str, Trained],
    options: argparse.Namespace,
) -> Iterator[Case]:
    for domain, by_temperature in asked.items():
        own = trained[domain]
        before = own.known, own.warm_up
        of_own = ways_of(served, own)
        further = {}
        if "all" in trained:
            further["all"] = ways_of(served, trained["all"])["heads"]
        two = {name: of_own[name] for name in ("none", "heads")}
        for temperature, said in by_temperature.items():
            usual = temperature == _temperature(domain)
            if options.quick and not usual:
                continue
            unseen = _unseen(said, own, trained.get("all", own))
            some = _enough(unseen)
            params, cases = _params(served, temperature), {}
            told = frozenset(one.tokens for one in said)
            for batch in (1, 8):
                name = f"{domain} at {temperature}, {batch} at a time"
                say(f"   {name}: {len(some)} prompts, {sum(len(s.tokens) for s in some)} tokens")
                compared = of_own | further if usual else two
                found = list(runs(served, compared, some, *before, params, batch, ROUNDS))
                cases[batch] = case = Case(
                    domain, temperature, batch, whole=False, found=found, same=same(found, told)
                )
                say(f"   {name}: {statistics.median(case.ratios()):.2f} times")
                yield case
            seen = [one for one in said if one not in unseen]
            seen = seen[: round(len(seen) * len(some) / len(unseen))]  # as large a share as of all
            if usual and not options.quick and len(seen) >= ROUNDS:
                found = list(runs(served, two, seen, *before, params, 1, ROUNDS))
                yield cases[1].joined(found, same(found, told))


def _enough(said: Sequence[Completion]) -> list[Completion]:
    """The first ones, so many that a case is measured on enough."""
    tokens = 0
    for number, one in enumerate(said):
        if number >= ENOUGH_PROMPTS and tokens >= ENOUGH_TOKENS:
            return list(said[:number])
        tokens += len(one.tokens)
    return list(said)


def _name(case: Case) -> str:
    end = "" if case.temperature == _temperature(case.domain) else f"_at_{case.temperature}"
    end += "_whole" if case.whole else ""
    return f"{end}_8" if case.batch == 8 else end


def _figures(cases: Sequence[Case], trained: dict[str, Trained]) -> dict[str, float]:
    own = [case for case in cases if case.batch == 1 and not case.whole]
    firsts = [[run for run in case.found if run.way == "none"] for case in own]
    figures: dict[str, float] = {
        "answers_compared": sum(len(case.same) for case in cases),
        "differing": sum(case.same.count(False) for case in cases),
        "prompts_min": min(sum(len(run.answers) for run in some) for some in firsts),
        "answer_tokens_min": min(sum(len(a) for run in some for a in run.answers) for some in firsts),
    }
    ends = {"heads": "", "memory": "_memory", "all": "_all"}
    for case in cases:
        for way, end in ends.items():
            if ratios := case.ratios(way):
                figures[f"{case.domain}{end}_of_plain{_name(case)}"] = round(statistics.median(ratios), 3)
        if ratios := case.ratios("heads", "memory"):
            figures[f"{case.domain}_of_memory{_name(case)}"] = round(statistics.median(ratios), 3)
    for name, one in trained.items():
        figures[f"{name}_training_minutes"] = round(one.seconds["training"] / 60, 2)
    return figures


def _rows(cases: Sequence[Case]) -> list[dict[str, Any]]:
    rows = []
    for case in cases:
        plain = [run for run in case.found if run.way == "none"]
        for way in dict.fromkeys(run.way for run in case.found if run.way != "none"):
            ratios = case.ratios(way)
            drafts = sum(run.drafts for run in case.found if run.way == way)
            accepted = sum(run.accepted for run in case.found if run.way == way)
            rows.append(
                {
                    "domain": case.domain,
                    "temperature": case.temperature,
                    "at_a_time": case.batch,
                    "seen_too": case.whole,
                    "drafts": way,
                    "prompts": sum(len(run.answers) for run in plain),
                    "tokens": sum(len(answer) for run in plain for answer in run.answers),
                    "plain_tokens_per_s": statistics.median(run.speed for run in plain),
                    "times": statistics.median(ratios),
                    "from": min(ratios),
                    "to": max(ratios),
                    "tokens_per_draft": 1 + accepted / drafts if drafts else 1.0,
                }
            )
    return rows


def _over_transformers(
    folder: Path,
    served: TargetModel,
    asked: dict[str, dict[float, list[Completion]]],
    trained: dict[str, Trained],
    threads: int,
    logs: Path,
) -> dict[str, float]:
    """Greedy, one request at a time: ours with heads and `generate` on the same prompts, in turn."""
    contest = Contest({"folder": folder}, threads, 1, CONTEXT, logs)
    theirs_as_ours = replace(TRANSFORMERS, settings={"dtype": served.ready.dtype})
    params, limits = _params(served, 0.0), (ANSWER_TOKENS, list(served.stop_ids))
    figures = {}
    try:
        for domain, by_temperature in asked.items():
            unseen = _enough(_unseen(by_temperature.get(0.0, []), trained[domain]))
            ratios = []
            for number in range(ROUNDS if unseen else 0):
                some = unseen[number :: ROUNDS * 3]
                with_heads = {"heads": ways_of(served, trained[domain])["heads"]}
                before = (trained[domain].known, trained[domain].warm_up)
                (ours,) = runs(served, with_heads, some, *before, params, 1, 1)
                prompts = [list(one.request.prompt) for one in some]
                theirs = contest.answer(theirs_as_ours, prompts, 1, limits)
                ratios.append(ours.speed * theirs.seconds / sum(map(len, theirs.answers)))
            if ratios:
                figures[f"{domain}_of_transformers"] = round(statistics.median(ratios), 3)
    finally:
        contest.close()
    return figures


if __name__ == "__main__":
    raise SystemExit(main())
