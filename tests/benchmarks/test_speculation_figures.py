"""What the speculation benchmark makes of its runs, and how long it says that they take."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

import pytest
from peers.contest import (
    LLAMA_F32,
    LLAMA_Q4,
    LOOKUP,
    NGRAMS,
    PLAIN,
    SUFFIXES,
    TRANSFORMERS,
    TURBO,
    VLLM_PLAIN,
    VLLM_SUFFIX_64,
    Competitor,
)
from peers.domains import Asked, Domain
from peers.estimate import minutes
from peers.worker import Job, Result, timed
from speculation import ALL, Measured, Runs, _figures, _rows

JSON = Domain("json", [], [], [[Asked([1], [2])], [Asked([3], [4])]], 0)


def measured(*speeds: float) -> list[Measured]:
    return [Measured(int(speed), 1.0, 0, 0, 1, 1, "AVX2") for speed in speeds]


def runs(more: Runs = MappingProxyType({})) -> dict[tuple[str, int, Competitor], list[Measured]]:
    found: dict[tuple[str, int, Competitor], list[Measured]] = {
        ("json", 1, PLAIN): measured(20, 20),
        ("json", 1, TURBO): measured(40, 60),
        ("json", 1, LLAMA_Q4): measured(80),
    }
    return {**found, **more}


@pytest.mark.parametrize(("name", "settings"), [("vllm_ngram", NGRAMS), ("vllm_suffix", SUFFIXES)])
def test_the_bar_is_for_the_setting_of_a_peer_that_is_fastest_in_the_median_of_all_runs(
    name: str, settings: tuple[Competitor, ...]
) -> None:
    def ratio(first: list[Measured], second: list[Measured]) -> float:
        peers = {("json", 1, settings[0]): first, ("json", 1, settings[1]): second}
        return _figures([JSON], runs(peers))[f"json_of_{name}"]

    assert ratio(measured(25, 30), measured(10, 40)) == 1.8
    assert ratio(measured(20, 10), measured(19, 20)) == round((40 / 19 + 60 / 20) / 2, 3)


def test_who_took_part_once_is_compared_in_that_run() -> None:
    assert _figures([JSON], runs())["json_of_llama_q4"] == 0.5
    rows = {row["who"]: row for row in _rows(runs())}
    assert (rows["llama.cpp Q4_1"]["runs"], rows["turbo"]["runs"]) == (1, 2)
    assert rows["turbo"]["computed_with"] == "AVX2"


def test_plain_steps_are_compared_without_drafts() -> None:
    assert _figures([JSON], runs() | {("json", 1, VLLM_PLAIN): measured(25, 20)})["plain_of_vllm"] == 0.9
    assert "plain_of_vllm" not in _figures([JSON], runs())


def test_sizes_are_told_of_few_prompts_too() -> None:
    figures = _figures([JSON], runs())
    assert (figures["runs"], figures["prompts_min"], figures["answer_tokens_min"]) == (2, 2, 2)


def test_the_estimate_counts_who_takes_part_once_and_who_batches() -> None:
    everyone = [PLAIN, TURBO, TRANSFORMERS, LOOKUP, VLLM_PLAIN, *NGRAMS, LLAMA_F32, LLAMA_Q4]
    alone = minutes(3, ALL, [1], everyone)
    both = minutes(3, ALL, [1, 8], everyone)
    assert 55 < alone < 75
    assert alone + 3 < both < alone + 15
    assert minutes(1, ALL, [1], everyone) < alone / 2


def test_the_estimate_counts_what_warms_a_memory() -> None:
    forgetful = minutes(3, ALL, [1], [replace(VLLM_SUFFIX_64, remembers=False)])
    assert minutes(3, ALL, [1], [VLLM_SUFFIX_64]) > forgetful + 2


def test_a_peer_forgets_before_it_is_warmed_and_timed() -> None:
    calls: list[object] = []

    def answer(prompts: list[list[int]]) -> list[list[int]]:
        calls.append(prompts)
        return prompts

    job = Job("a peer", "", [[1]], 1, 4, [0], warm=[[2]])
    result = timed(job, answer, lambda: calls.append("forget"), "AVX2")
    assert calls == ["forget", [[2]], [[1]]]
    assert result == Result([[1]], result.seconds, computed_with="AVX2")
    timed(replace(job, prompts=[[3]], begins=False), answer, lambda: calls.append("forget"))
    assert calls[3:] == [[[3]]], "a job that continues a run resets nothing"
