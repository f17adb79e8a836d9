"""Speculation is never slower than none where it can help least: random tokens, free writing, and misleading
prompts, all at temperature 1. The misleading ones are near-copies of a text, and JSON with random values, to
be continued with other words and values: drafts are found, and most are wrong. And on mixed prompts,
greedily. Where drafts shorten some answers, one request follows another as soon as it is answered, and tokens
a second are those until the last one has its first: the end of such a run depends on its slowest request.

Pairs of runs in one process: the same requests without speculation and with it. The two take steps in turn,
so that what else the machine does falls on both, and a run's time is that of its own steps. The drafters
remember nothing at a run's beginning; what a step costs, and whether drafts helped, is known from the runs
before, as in a server.

Then what `bitwise` costs before the first token: long prompts by the arithmetic of the start-up check, and by
the cheapest that each row may be computed in (`distribution`), in turn.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from copy import copy, deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from engines import Encode, WhileFull, as_new, fresh, run, settle_process, tokenizer
from harness import Bar, arguments, finish, prompts

from turbo_dev.model import ensure
from turbo_runtime.contract.config import RuntimeConfig
from turbo_runtime.messages import EngineStats, GenerationRequest, SamplingParams

if TYPE_CHECKING:
    from turbo_runtime.engine.loop import Engine
    from turbo_runtime.speculation.controller import GoodputController

DRAFTING = ("off", "auto")
CONCURRENT = (1, 8, 32)
TRAFFIC = ("random", "writing", "misleading", "mixed")
FOLLOWED = ("misleading", "mixed")  # some of these answers end sooner with drafts, and others begin
FOLLOWING = 3  # such requests for each that may run
PROMPTS = (512, 2048)  # tokens before the first of an answer
LEAST_PAIRS = 15
BARS = (
    Bar("pairs", at_least=LEAST_PAIRS),
    *(Bar(f"{name}_{n}_median", at_least=0.97) for name in TRAFFIC for n in CONCURRENT),
    *(Bar(f"{name}_{n}_tenth", at_least=0.90) for name in TRAFFIC for n in CONCURRENT),
    *(
        Bar(f"{name}_{n}_drafted", at_least=LEAST_PAIRS)
        for name in ("misleading", "mixed")
        for n in CONCURRENT
    ),
    *(Bar(f"first_token_{n}", at_most=1.10) for n in PROMPTS),
)
PROMPT_TOKENS = 40
COPIED_WORDS, COPIES, CHANGED, RECORDS = 12, 3, 0.25, 2
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
MIXED = [row["prompt"] for row in prompts()]
TEXTS = [row["prompt"] for row in prompts() if row["domain"] == "support"]
PLACES = ("on the moon", "in a flooded city", "at a night market", "in the desert", "on a slow train")


def main() -> int:
    """Run all pairs; exit status by the bars."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--traffic", nargs="+", choices=TRAFFIC, default=TRAFFIC, help="default: all of it")
    parser.add_argument("--pairs", type=int, default=LEAST_PAIRS, help="of each kind (default: %(default)s)")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    options = parser.parse_args()
    settle_process(options.threads)
    from turbo_runtime.engine.startup.builder import start_engine

    config = RuntimeConfig(
        str(ensure()),
        dtype=options.dtype,
        threads=options.threads,
        kv_cache_gib=1.0,  # twice
    )
    engine, ready = start_engine(config, time.monotonic())
    encode, _ = tokenizer(config)
    noise = random.Random(0)
    engines = dict(zip(DRAFTING, (engine, _twin(engine)), strict=True))
    known = {drafting: _as_started(engine) for drafting in DRAFTING}
    rows: list[dict[str, Any]] = []
    figures: dict[str, float] = {"pairs": options.pairs}
    if ready.guarantee != "bitwise":
        sys.exit(f"the guarantee is {ready.guarantee}: there is no price of `bitwise` to tell")
    for name in options.traffic:
        for count in CONCURRENT:
            ratios, drafted, accepted = [], 0, 0
            for pair in range(options.pairs + 1):  # the first warms up
                number = FOLLOWING * count if name in FOLLOWED else count
                if name == "mixed":
                    asked = [encode(text) for text in noise.sample(MIXED, number)]
                else:
                    asked = [_prompt(name, noise, ready.vocab_size, encode) for _ in range(number)]
                params = SamplingParams(
                    temperature=0.0 if name == "mixed" else 1.0,
                    max_tokens=ANSWER_TOKENS[count],
                    stop_token_ids=frozenset(ready.eos_token_ids),  # as the server has it
                )
                requests = [_ask(prompt, pair, i, params) for i, prompt in enumerate(asked)]
                if name in FOLLOWED:
                    requests = [_of_any_length(request, noise) for request in requests]
                speed, stats = _answered(engines, known, requests, count, pair)
                ratios.append(speed["auto"] / speed["off"])
                drafted += stats.draft_tokens if pair else 0
                accepted += stats.accepted_tokens if pair else 0
            rows.append(_row(f"{name}, requests: {count}", ratios[1:], drafted, accepted))
            print(rows[-1], flush=True)
            for figure in ("median", "tenth", "worst", "drafted"):
                figures[f"{name}_{count}_{figure}"] = rows[-1][figure]
    for count in PROMPTS:
        ratios = []
        for pair in range(options.pairs + 1):
            prompt = tuple(noise.randrange(ready.vocab_size) for _ in range(count))
            request = GenerationRequest(f"first-{pair}", prompt, SamplingParams(max_tokens=1))
            order = ("distribution", "bitwise") if pair % 2 else ("bitwise", "distribution")
            times = {arithmetic: _first_token(engine, request, arithmetic) for arithmetic in order}
            ratios.append(times["bitwise"] / times["distribution"])
        rows.append(_row(f"first token, prompt: {count}", ratios[1:]))
        print(rows[-1], flush=True)
        figures[f"first_token_{count}"] = rows[-1]["median"]
    left_out = {name for name in TRAFFIC if name not in options.traffic}
    bars = [bar for bar in BARS if bar.figure.split("_")[0] not in left_out]
    return finish("never_slower", figures, rows, bars, options)


def _prompt(name: str, noise: random.Random, vocabulary: int, encode: Encode) -> list[int]:
    if name == "random":
        return [noise.randrange(vocabulary) for _ in range(PROMPT_TOKENS)]
    if name == "writing":
        return encode(f"Write a {_pick(noise)}.")
    return encode(noise.choice((_near_copies, _records))(noise))


def _near_copies(noise: random.Random) -> str:
    text = noise.choice(TEXTS).split()
    first = noise.randrange(max(1, len(text) - COPIED_WORDS))
    words = text[first : first + COPIED_WORDS]
    copies = (
        " ".join(noise.choice(text) if noise.random() < CHANGED else word for word in words)
        for _ in range(COPIES)
    )
    return "Say this once more, with a word changed here and there:\n" + "\n".join(copies)


def _records(noise: random.Random) -> str:
    records = (
        {
            "id": noise.randrange(10**5),
            "code": "".join(noise.choices("abcdefgh", k=5)),
            "price": noise.random(),
        }
        for _ in range(RECORDS)
    )
    return "Continue this list with other random values:\n" + "\n".join(map(json.dumps, records))


def _pick(noise: random.Random) -> str:
    return f"{noise.choice(KINDS)} about a {noise.choice(HEROES)} {noise.choice(PLACES)}"


def _ask(prompt: list[int], pair: int, number: int, params: SamplingParams) -> GenerationRequest:
    return GenerationRequest(f"{pair}-{number}", tuple(prompt), replace(params, seed=1000 * pair + number))


def _of_any_length(request: GenerationRequest, noise: random.Random) -> GenerationRequest:
    """From half as long to half as long again: answers of one length end together without drafts, and with
    them do not, so that the last ones of a run count against drafts.
    """
    usual = request.params.max_tokens
    length = noise.randint(usual // 2, 3 * usual // 2)
    return replace(request, params=replace(request.params, max_tokens=length))


def _twin(engine: Engine) -> Engine:
    """The same weights with a KV cache of its own, so that steps of the two can be taken in turn."""
    other = copy(engine)
    other.model = copy(engine.model)
    other.model.pool = engine.model.allocate(engine.model.pool.blocks)
    return other


def _as_started(engine: Engine) -> GoodputController:
    """What the engine knows of the times of its steps, to go on from apart."""
    return deepcopy(engine.speculation.control, {id(engine.model): engine.model})


def _answered(
    engines: Mapping[str, Engine],
    known: Mapping[str, GoodputController],
    requests: list[GenerationRequest],
    at_a_time: int,
    turn: int,
) -> tuple[dict[str, float], EngineStats]:
    """Tokens a second with drafts and without (`WhileFull`), and what was drafted; who takes the first step
    changes by `turn`.
    """
    servers = {drafting: fresh(engines[drafting], control=known[drafting]) for drafting in DRAFTING}
    counted = {drafting: WhileFull(len(requests), at_a_time) for drafting in DRAFTING}
    spent = dict.fromkeys(DRAFTING, 0.0)
    tokens: dict[str, dict[str, list[int]]] = {drafting: defaultdict(list) for drafting in DRAFTING}
    waiting = {drafting: deque(requests) for drafting in DRAFTING}
    live = dict.fromkeys(DRAFTING, 0)
    order = DRAFTING if turn % 2 else DRAFTING[::-1]
    while any(waiting.values()) or any(live.values()):
        for drafting in order:
            server = servers[drafting]
            while waiting[drafting] and live[drafting] < at_a_time:
                request = waiting[drafting].popleft()
                server.accept(as_new(request, request.request_id, draft_method=drafting))
                live[drafting] += 1
            if live[drafting]:
                began = time.perf_counter()
                step = server.step()
                spent[drafting] += time.perf_counter() - began
                counted[drafting].see(step, spent[drafting])
                for event in step.events:
                    tokens[drafting][event.request_id] += event.tokens
                    live[drafting] -= event.finish_reason is not None
    if tokens["off"] != tokens["auto"]:
        sys.exit("the answers with drafts are others than those without")
    return {name: seen.tokens / seen.seconds for name, seen in counted.items()}, servers["auto"].stats()


def _first_token(engine: Engine, request: GenerationRequest, arithmetic: str) -> float:
    server = fresh(engine)
    with _free(engine) if arithmetic == "distribution" else nullcontext():
        began = time.perf_counter()
        run(server, [request], 1)
        return time.perf_counter() - began


@contextmanager
def _free(engine: Engine) -> Iterator[None]:
    """The engine as a machine has it where rows are not found to hold."""
    from turbo_runtime.engine.startup.invariance_check import set_free

    rule, forms = engine.model.rule, [(one, one.form) for one in engine.model.decoder.products()]
    set_free(engine.model)
    try:
        yield
    finally:
        engine.model.rule = rule
        for product, form in forms:
            product.use(form)


def _row(
    what: str, ratios: list[float], drafted: int | None = None, accepted: int | None = None
) -> dict[str, Any]:
    ordered = sorted(ratios)
    return {
        "what": what,
        "pairs": len(ratios),
        "median": statistics.median(ratios),
        "tenth": ordered[len(ordered) // 10],
        "worst": ordered[0],
        "best": ordered[-1],
        "drafted": drafted,
        "accepted": accepted,
    }


if __name__ == "__main__":
    sys.exit(main())
