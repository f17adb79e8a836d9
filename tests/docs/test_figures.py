"""The figures that docs/benchmarks.md prints are those of the runs in benchmarks/results."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "benchmarks.md").read_text()


def figures(benchmark: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / f"{benchmark}.json").read_text())
    return found["figures"]  # type: ignore[no-any-return]


def section(benchmark: str) -> str:
    return PAGE.partition(f"\n## {benchmark}\n")[2].partition("\n## ")[0]


def row(benchmark: str, label: str) -> list[float]:
    """The numbers of a table's row that begins so; what stands in brackets is a spread."""
    (line,) = re.findall(rf"^\| {re.escape(label)}[^|]*\|(.*)\|$", section(benchmark), re.MULTILINE)
    cells = [re.sub(r"\(.*?\)", "", cell) for cell in line.split("|")]
    return [float(number) for cell in cells for number in re.findall(r"\d+(?:\.\d+)?", cell)]


@pytest.mark.parametrize(
    ("label", "figure"),
    [("time per output token", "tpot"), ("throughput", "throughput"), ("time to first token", "ttft_median")],
)
def test_the_planners_errors_are_those_of_its_run(label: str, figure: str) -> None:
    run = figures("planner")
    document = json.loads((ROOT / "benchmarks" / "results" / "planner.json").read_text())
    (shipped,) = (
        each for each in document["rows"] if (each["rows of"], each["coefficients"]) == ("all", "shipped")
    )
    known = [run[f"{figure}_{place}"] for place in ("seen", "new_accelerator", "3_points")]
    assert row("planner", label) == [*known, float(shipped[f"{figure}_seen"])]


def test_the_planners_other_figures_are_those_of_its_run() -> None:
    run, text = figures("planner"), section("planner")
    tpot, throughput, first = (run[f"{name}_new_model"] for name in ("tpot", "throughput", "ttft_median"))
    assert f"On models never seen: {tpot}, {throughput} and {first}." in text
    assert f"Saturated throughput: {run['saturated']}." in text
    assert f"{run['speedup']} on the {run['speedup_rows']} A100 rows" in text
    assert f"{run['rows']:,} published measurements" in text
    assert f"{run['saturated_rows']} of saturated throughput" in text


DOMAINS = ("json", "maths", "support")
OTHER_ENGINES = "speculation_other_engines"


@pytest.mark.parametrize(
    ("result", "label", "names"),
    [
        ("speculation", "speedup over none", ["of_plain"]),
        ("speculation", "over vLLM 0.32 on CPU", ["of_vllm"]),
        ("speculation", "over vLLM with suffix decoding", ["of_vllm_suffix"]),
        ("speculation", "of the speedup, a new pod with a draft has", ["new_pod_of_warm"]),
        ("speculation", "with a draft that is learned in seconds", ["draft_of_plain", "draft_of_suffix"]),
        (OTHER_ENGINES, "over no drafts", ["of_plain"]),
        (OTHER_ENGINES, "over transformers' `generate`", ["of_transformers", "of_lookup"]),
        (OTHER_ENGINES, "over vLLM without drafts", ["of_vllm"]),
        (OTHER_ENGINES, "over vLLM with its n-grams", ["of_vllm_ngram"]),
        (OTHER_ENGINES, "over llama.cpp with the same float32 weights", ["of_llama_f32"]),
    ],
)
def test_the_speedups_are_those_of_their_run(result: str, label: str, names: list[str]) -> None:
    run = figures(result)
    found = [round(run[f"{domain}_{name}"], 2) for domain in DOMAINS for name in names]
    assert row("speculation", label) == found


@pytest.mark.parametrize(
    ("who", "label"),
    [("turbo k=0", "tokens/s without drafts"), ("turbo", "tokens/s with drafts")],
)
def test_the_speeds_are_those_of_their_run(who: str, label: str) -> None:
    rows = json.loads((ROOT / "benchmarks" / "results" / "speculation.json").read_text())["rows"]
    speeds = {each["domain"]: round(each["tokens_per_s"], 1) for each in rows if each["who"] == who}
    assert row("speculation", label) == [speeds[domain] for domain in DOMAINS]


def test_the_speed_without_drafts_is_that_of_its_run() -> None:
    plain = figures("speculation")["plain_of_vllm"]
    assert f"Without drafts the engine is {plain:.2f} times as fast as vLLM" in section("speculation")


def test_the_speedups_on_the_xeon_are_those_of_their_run() -> None:
    run, text = figures("speculation_xeon"), section("speculation")
    over_none, over_suffix = (
        "{:.2f}, {:.2f} and {:.2f}".format(*(run[f"{domain}_{of}"] for domain in DOMAINS))
        for of in ("of_plain", "of_vllm_suffix")
    )
    assert f"the speedup over none was {over_none} for JSON, math and support" in text
    assert f"over vLLM with suffix decoding it was {over_suffix}, and without drafts" in text
    assert f"Turbo was {run['plain_of_vllm']:.2f} times as fast as vLLM" in text


BY_DRAFTER = json.loads((ROOT / "benchmarks" / "results" / "distill_drafters.json").read_text())
DRAFTERS = {
    "memory": "memory",
    "heads": "heads",
    "eagle3": "EAGLE-3 layer",
    "first_layers": "the model's first ",
    "memory_heads": "memory and heads",
    "memory_eagle3": "memory and EAGLE-3 layer",
    "together": "all four",
}


RAN = {
    (each["domain"], each["new"], each["drafts"]): each["times"]
    for each in BY_DRAFTER["rows"]
    if "times" in each
}
GAINS = {
    (each["served"], each["drafts"], each["domain"], each["new"], each["together"]): each["gain"]
    for each in BY_DRAFTER["rows"]
    if "gain" in each
}
COMPUTED_HEAD = "\n| an 8B with |"


def spread(values: Iterable[float]) -> str:
    lowest, *_, highest = sorted(values)
    return f"{lowest:.2f} to {highest:.2f}"


@pytest.mark.parametrize("way", DRAFTERS)
def test_what_each_drafter_brings_is_that_of_its_run(way: str) -> None:
    run = BY_DRAFTER["figures"]
    parts = ["json_{}_near", "maths_{}_near", "maths_{}_new", "support_{}_near", "support_{}_new"]
    cells = [
        f"{run[part.format(f'{way}_of_plain')]:.2f} ({run[part.format(f'{way}_acceptance_length')]:.2f})"
        for part in parts
    ]
    measured = section("distill").partition(COMPUTED_HEAD)[0]
    (line,) = (line for line in measured.splitlines() if line.endswith(f" | {' | '.join(cells)} |"))
    assert line.startswith(f"| {DRAFTERS[way]}")


def test_what_the_run_by_drafter_compared_is_said() -> None:
    run, text = BY_DRAFTER["figures"], section("distill")
    assert f"In {run['by_drafter_compared']:,} comparisons no output differs." in text
    assert run["by_drafter_differing"] == 0

    def over_memory(way: str, ends: tuple[str, ...], domains: tuple[str, ...] = ("maths", "support")) -> str:
        names = tuple(f"{domain}_{way}_of_memory_" for domain in domains)
        return spread(ratio for name, ratio in run.items() if name.startswith(names) and name.endswith(ends))

    together = over_memory("together", ("near", "new"))
    assert f"all four together have {together} of the speed of the memory alone, and for JSON" in text
    assert f"and for JSON {run['json_together_of_memory_near']:.2f}." in text
    heads = over_memory("memory_heads", ("new",)).partition(" to ")
    assert heads[0] == heads[2]
    assert f"with heads has {heads[0]} of the speed of the memory alone, and with an EAGLE-3 layer " in text
    assert f"an EAGLE-3 layer {over_memory('memory_eagle3', ('new',))}. Alone" in text
    cost = [100 * (1 - ratio) for name, ratio in run.items() if "_first_layers_of_plain_" in name]
    assert f"hardly ever right and cost {min(cost):.0f} to {max(cost):.0f} %." in text


@pytest.mark.parametrize("way", ["memory", "heads", "eagle3", "first_layers", "memory_heads"])
def test_what_each_drafter_would_gain_an_8b_is_that_of_its_run(way: str) -> None:
    computed = section("distill").partition(COMPUTED_HEAD)[2]
    label = "the model's first layers" if way == "first_layers" else DRAFTERS[way]
    (line,) = re.findall(rf"^\| {re.escape(label)} \|(.*)$", computed, re.MULTILINE)
    assert [float(number) for number in re.findall(r"\d\.\d+", line)] == [
        GAINS[f"8B on {place}", way, domain, True, requests]
        for place in ("an L4", "an H100", "this CPU")
        for domain in ("maths", "support")
        for requests in (1, 32)
    ]


def test_what_was_computed_is_compared_with_what_was_measured() -> None:
    def found(way: str) -> str:
        return spread(
            GAINS["135M on this CPU", way, domain, new, 1] / times
            for (domain, new, drafts), times in RAN.items()
            if drafts == way
        )

    text = section("distill")
    assert f"{found('memory')} of the speedup measured with the memory, {found('heads')} with heads" in text
    assert f"{found('eagle3')} with the EAGLE-3 layer, and {found('memory_heads')} with memory and" in text
    assert f"For memory and EAGLE-3 layer it therefore gives {found('memory_eagle3')} of what was" in text
    assert f"for all four {found('together')}, and these two are left out" in text


def test_which_draft_pays_is_as_the_runs_say() -> None:
    page = (ROOT / "docs" / "distill.md").read_text()
    more: dict[int, list[float]] = {1: [], 32: []}  # by requests together, in percent
    for (served, way, *rest, together), gain in GAINS.items():
        if served != "135M on this CPU":
            if way == "heads":
                assert gain >= GAINS[served, "eagle3", *rest, together], "heads come before an EAGLE-3 layer"
            if way == "memory_heads" and served != "8B on this CPU":
                more[together].append(100 * (gain / GAINS[served, "memory", *rest, together] - 1))
    alone, full = (f"{min(more[requests]):.0f} to {max(more[requests]):.0f} %" for requests in (1, 32))
    assert f"So the {alone} (on a GPU, one request) that heads add" in section("distill")
    assert f"With 32, heads add {full} by the same computation" in page
    new = [
        gain
        for (served, *_, is_new, together), gain in GAINS.items()
        if served == "8B on this CPU" and is_new and together == 32
    ]
    assert f"drafts gain at most {100 * (max(new) - 1):.0f} %" in page
    support = figures("distill")["support_of_memory"]
    assert f"up to {100 * (support - 1):.0f} % (for support) on an AMD EPYC" in page


def test_what_drafts_cost_at_worst_is_that_of_its_run() -> None:
    run, text = figures("never_slower"), section("never_slower")

    def found(figure: str, *kinds: str) -> list[float]:
        return [run[f"{kind}_{requests}_{figure}"] for kind in kinds for requests in (1, 8, 32)]

    medians, tenths = (found(figure, "random", "writing", "misleading") for figure in ("median", "tenth"))
    assert f"the medians lie between {min(medians):.2f} and {max(medians):.2f}" in text
    assert f"the tenth percentiles between {min(tenths):.3f} and {max(tenths):.3f}" in text
    assert f"cost at most {100 * (1 - min(medians)):.0f} % in the median" in text
    worst = min(found("worst", "random", "writing", "misleading"))
    assert f"The slowest of these 135 pairs was {worst:.3f} times as fast" in text
    assert f"and {100 * (1 - worst):.1f} % in the worst pair" in text
    one, eight, many = found("median", "mixed")
    assert f"The slowest of these pairs was {min(found('worst', 'mixed')):.3f} times as fast" in text
    assert f"Mixed prompts were {one:.2f}, {eight:.2f} and {many:.2f} times as fast" in text
    first = [run[f"first_token_{tokens}"] for tokens in (512, 2048)]
    assert f"`bitwise` took {first[0]:.2f} and {first[1]:.2f} times the time to the first token" in text


@pytest.mark.parametrize("drafts", ["", "_drafting"])
@pytest.mark.parametrize("sampling", ["greedy", "mixed"])
def test_the_time_outside_the_model_is_that_of_its_runs(sampling: str, drafts: str) -> None:
    label = f"{sampling}, 4 drafts each |" if drafts else f"{sampling} |"
    (line,) = re.findall(rf"^\| {re.escape(label)}(.*)\|$", section("host_time"), re.MULTILINE)
    names = [f"{sampling}_{requests}{drafts}_ms" for requests in (1, 8, 32, 64, 256)]
    now, before = figures("host_time"), figures("host_time_before")
    assert line.split("|") == [f" {now[name]:.2f} ({before[name]:.2f}) " for name in names]
    assert now["waits_per_step"] == 1
    assert "waits for the device once a step" in section("host_time")


def test_how_soon_fresh_processes_draft_is_that_of_their_run() -> None:
    run, text = figures("fresh_starts"), section("fresh_starts")
    assert run["processes"] == 12
    assert f"more than {run['steps_without_a_draft']} steps in a row without a draft" in text
    assert f"{run['median']:.2f} times as fast as without drafts in the median process" in text
    assert f"and {run['worst']:.2f} times in the slowest" in text


def test_what_load_costs_outside_the_model_is_that_of_its_run() -> None:
    run, text = figures("load"), section("load")
    assert f"At most {100 * run['outside_share_max']:.1f} % of a step is outside" in text
    speedups = [f"{run[f'speedup_{count}']:.2f}" for count in (1, 8, 32, 64)]
    assert f"drafts give {', '.join(speedups[:3])} and {speedups[3]} times the tokens per second" in text
    assert f"Memory grew by {run['memory_growth_mib']:.1f} MiB over the last 7,000 of 10,000" in text
    assert run["memory_requests"] == 10_000


@pytest.mark.parametrize(
    ("label", "cell"),
    [
        ("outputs that differ", "{byte_differences} of {requests:,}"),
        ("outputs compared that an adapter gave", "{adapter_requests:,}"),
        ("draft tokens accepted / rejected in them", "{accepted_drafts:,} / {rejected_drafts:,}"),
        ("of these, of SmolLM2's own first layers", "{model_accepted:,} / {model_rejected:,}"),
        ("and of an EAGLE-3 layer of it", "{eagle3_accepted:,} / {eagle3_rejected:,}"),
        (
            "logit positions that differ between five ways to compute them",
            "{logit_differences} of {logit_positions}",
        ),
        ("streams of a tiny vocabulary that differ under any draft", "{stream_differences} of {streams:,}"),
        ("smallest p of the chi-square test of 60,000 sampled tokens", "{chi_square_p_min:.2f}"),
    ],
)
def test_what_was_compared_for_losslessness_is_that_of_its_runs(label: str, cell: str) -> None:
    cells = [cell.format(**figures(f"lossless_{dtype}")) for dtype in ("float32", "bfloat16")]
    assert f"\n| {label} | {' | '.join(cells)} |\n" in section("lossless")


def test_every_proof_of_losslessness_caught_every_broken_verifier() -> None:
    runs = [figures(f"lossless_{dtype}") for dtype in ("float32", "bfloat16")]
    caught = [count for run in runs for name, count in run.items() if name.startswith("broken_caught")]
    assert caught == [3] * 10


def test_what_the_router_gains_and_costs_is_that_of_its_run() -> None:
    document = json.loads((ROOT / "benchmarks" / "results" / "router.json").read_text())
    rows = {(each["what"], each["way"]): each for each in document["rows"]}

    def both(what: str, field: str, scale: float, digits: int) -> list[float]:
        return [round(rows[what, way][field] * scale, digits) for way in ("Service", "router")]

    assert row("router", "50 conversations on four") == both("50 conversations", "hit_rate", 100, 0)
    assert row("router", "95 % of first tokens") == both("50 conversations", "p95_ms", 1e-3, 2)
    killed = [rows["a pod killed", way] for way in ("Service", "router")]
    counts = [[each["failed"], each["failed"] + each["answered"]] for each in killed]
    assert row("router", "the same load while a pod is killed") == [*counts[0], *counts[1]]
    assert row("router", "median first token, one stream") == both("1 streams", "p50_ms", 1, 1)
    assert row("router", "median first token, 64 streams") == both("64 streams", "p50_ms", 1, 0)
    assert row("router", "99 % of first tokens within, 64 streams") == both("64 streams", "p99_ms", 1, 0)
    assert row("router", "two real pods") == both("two real pods", "tokens_per_second", 1, 1)
    alone = rows["64 streams", "router alone"]["p50_ms"] - rows["64 streams", "Service"]["p50_ms"]
    added = document["figures"]["added_p50_ms_at_64"]
    assert f"That is {added:.0f} ms at 64 streams, of which vllm-router alone is {alone:.0f} ms." in section(
        "router"
    )


def test_what_became_of_wrong_objects_is_that_of_its_run() -> None:
    document = json.loads((ROOT / "benchmarks" / "results" / "bad_input.json").read_text())
    for each in document["rows"]:
        counts = [each[name] for name in ("mutations", "refused", "told", "read")]
        assert row("bad_input", f"`{each['kind']}`") == [float(count) for count in counts if count]
    run = document["figures"]
    assert (run["mutations"], run["unanswered"], run["tracebacks"], run["good_disturbed"]) == (500, 0, 0, 0)
