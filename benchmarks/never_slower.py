"""Speculation is never slower than none where it can help least: random tokens and free writing at
temperature 1.

Pairs of runs in one process: the same requests without speculation and with it, in turn first and second. The
drafters remember nothing at a run's beginning; what a step costs is known from the runs before, as in a
server. Prompts are shorter than what the prefix cache shares.

Then what `bytes` costs before the first token: long prompts by the arithmetic of the start-up check, and by
the cheapest that each row may be computed in (`law`), in turn.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from engines import as_new, fresh, run, tokenizer
from harness import Bar, arguments, finish

from turbo_dev.model import ensure
from turbo_runtime.contract import RuntimeConfig
from turbo_runtime.engine.request import SamplingParams, Submit
from turbo_runtime.engine.threads import settle_threads

if TYPE_CHECKING:
    from turbo_runtime.engine.loop import Engine

CONCURRENT = (1, 8, 32)
TRAFFIC = ("random", "writing")
PROMPTS = (512, 2048)  # tokens before the first of an answer
LEAST_PAIRS = 15
BARS = (
    Bar("pairs", at_least=LEAST_PAIRS),
    *(Bar(f"{name}_{n}_median", at_least=0.97) for name in TRAFFIC for n in CONCURRENT),
    *(Bar(f"{name}_{n}_tenth", at_least=0.90) for name in TRAFFIC for n in CONCURRENT),
    *(Bar(f"first_token_{n}", at_most=1.10) for n in PROMPTS),
)
PROMPT_TOKENS = 40
ANSWER_TOKENS = {1: 96, 8: 64, 32: 48}
KINDS = ("story", "poem", "letter", "diary entry", "speech")
HEROES = (
    "lighthouse keeper",
    "shy robot",
    "baker",
    "lost dog",
    "young queen",
    "old sailor",
    "thief",
    "nurse",
)
PLACES = ("on the moon", "in a flooded city", "at a night market", "in the desert", "on a slow train")


def main() -> int:
    """Run all pairs; exit status by the bars."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--pairs", type=int, default=LEAST_PAIRS, help="of each kind (default: %(default)s)")
    options = parser.parse_args()
    settle_threads(options.threads)
    from turbo_runtime.engine.start import start_engine

    config = RuntimeConfig(model=str(ensure()), threads=options.threads)
    engine, ready = start_engine(config, time.monotonic())
    encode, _ = tokenizer(config)
    noise = random.Random(0)
    rows: list[dict[str, Any]] = []
    figures: dict[str, float] = {"pairs": options.pairs}
    for name in TRAFFIC:
        for count in CONCURRENT:
            ratios = []
            for pair in range(options.pairs + 1):  # the first warms up
                prompts = [
                    [noise.randrange(ready.vocab_size) for _ in range(PROMPT_TOKENS)]
                    if name == "random"
                    else encode(f"Write a {_pick(noise)}.")
                    for _ in range(count)
                ]
                requests = [_ask(prompt, pair, i, ANSWER_TOKENS[count]) for i, prompt in enumerate(prompts)]
                seconds = {drafting: _seconds(engine, requests, drafting) for drafting in _turn(pair)}
                ratios.append(seconds["off"] / seconds["auto"])
            rows.append(_row(f"{name}, requests: {count}", ratios[1:]))
            print(rows[-1], flush=True)
            for figure in ("median", "tenth", "worst"):
                figures[f"{name}_{count}_{figure}"] = rows[-1][figure]
    if ready.guarantee != "bytes":
        sys.exit(f"the guarantee is {ready.guarantee}: there is no price of `bytes` to tell")
    for count in PROMPTS:
        ratios = []
        for pair in range(options.pairs + 1):
            prompt = tuple(noise.randrange(ready.vocab_size) for _ in range(count))
            request = Submit(f"first-{pair}", prompt, SamplingParams(max_tokens=1))
            order = ("law", "bytes") if pair % 2 else ("bytes", "law")
            times = {arithmetic: _first_token(engine, request, arithmetic) for arithmetic in order}
            ratios.append(times["bytes"] / times["law"])
        rows.append(_row(f"first token, prompt: {count}", ratios[1:]))
        print(rows[-1], flush=True)
        figures[f"first_token_{count}"] = rows[-1]["median"]
    return finish("never_slower", figures, rows, BARS, options)


def _pick(noise: random.Random) -> str:
    return f"{noise.choice(KINDS)} about a {noise.choice(HEROES)} {noise.choice(PLACES)}"


def _ask(prompt: list[int], pair: int, number: int, tokens: int) -> Submit:
    params = SamplingParams(temperature=1.0, seed=1000 * pair + number, max_tokens=tokens)
    return Submit(f"{pair}-{number}", tuple(prompt), params)


def _turn(pair: int) -> tuple[str, str]:
    return ("off", "auto") if pair % 2 else ("auto", "off")


def _seconds(engine: Engine, requests: list[Submit], drafting: str) -> float:
    server = fresh(engine)
    wanted = [as_new(request, request.request_id, drafting=drafting) for request in requests]
    began = time.perf_counter()
    run(server, wanted, len(wanted))
    return time.perf_counter() - began


def _first_token(engine: Engine, request: Submit, arithmetic: str) -> float:
    server = fresh(engine)
    with _free(engine) if arithmetic == "law" else nullcontext():
        began = time.perf_counter()
        run(server, [request], 1)
        return time.perf_counter() - began


@contextmanager
def _free(engine: Engine) -> Iterator[None]:
    """The engine as a machine has it where rows are not found to hold."""
    from turbo_runtime.engine.check import set_free

    rule, forms = engine.model.rule, [(one, one.form) for one in engine.model.decoder.products()]
    set_free(engine.model)
    try:
        yield
    finally:
        engine.model.rule = rule
        for product, form in forms:
            product.use(form)


def _row(what: str, ratios: list[float]) -> dict[str, Any]:
    ordered = sorted(ratios)
    return {
        "what": what,
        "pairs": len(ratios),
        "median": statistics.median(ratios),
        "tenth": ordered[len(ordered) // 10],
        "worst": ordered[0],
        "best": ordered[-1],
    }


if __name__ == "__main__":
    sys.exit(main())
