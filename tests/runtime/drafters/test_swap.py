"""Drafts are swapped by a file while answers run; a file that says nonsense changes nothing and is told."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from turbo_dev.server_process import PATIENCE
from turbo_runtime.contract.config import DraftMethod
from turbo_runtime.drafters.heads import Heads, HeadsConfig, save_heads
from turbo_runtime.drafters.interface import DraftRequest
from turbo_runtime.drafters.loader import (
    LOOK_SECONDS,
    RETRY_SECONDS,
    ActiveDrafts,
    DraftConfig,
    DraftLoader,
    SelectionError,
    WatchedFile,
    read_selection,
)
from turbo_runtime.drafters.proposer import Proposer
from turbo_runtime.drafters.target import Target
from turbo_runtime.sampling.noise import Noise

VOCABULARY, WIDTH = 40, 8
ROWS = torch.linspace(-1, 1, VOCABULARY * WIDTH).view(VOCABULARY, WIDTH)
TARGET = Target("sha256:x", ROWS, lambda ids: ROWS[ids])


def write_heads(folder: Path, version: str) -> None:
    ids = torch.arange(20)
    heads = Heads(TARGET.embedding, TARGET.output_rows(ids), ids, heads=2, markov_rank=4)
    save_heads(folder, HeadsConfig(version, 2, WIDTH, 4, 20, VOCABULARY, TARGET.digest), heads)


def following(path: Path) -> Proposer:
    return Proposer(file=WatchedFile(path, DraftLoader(TARGET, Noise(VOCABULARY)).load))


def settle(drafters: Proposer, now: float, until: Callable[[], bool]) -> None:
    """Poll at one moment until what it began has been taken up."""
    end = time.monotonic() + 30
    while not until():
        assert time.monotonic() < end
        drafters.poll(now)
        time.sleep(0.002)


def names(drafters: Proposer, drafting: DraftMethod = "auto") -> set[str]:
    """Who proposes for a context that everybody knows something about."""
    tokens = [1, 2, 3, 4, 1, 2, 3, 4, 1, 2]
    want = DraftRequest("r", tokens, 1, 4, "", 0, 0.0, torch.ones(WIDTH), drafting)
    (draft,) = drafters.propose([want])
    return {origin.source for origin in draft.origins}


def test_what_the_file_names_is_taken_up_and_swapped_while_it_runs(tmp_path: Path) -> None:
    write_heads(tmp_path / "one", "v1")
    write_heads(tmp_path / "two", "v2")
    file = tmp_path / "drafts.json"
    file.write_text(json.dumps({"drafter": "heads", "heads": "one"}))
    drafters = following(file)
    assert names(drafters) == {"suffix"}
    settle(drafters, 0.0, lambda: drafters.versions["default"] == "v1")
    assert names(drafters) == {"heads"}
    file.write_text(json.dumps({"drafter": "heads", "heads": str(tmp_path / "two"), "version": "mine"}))
    drafters.poll(LOOK_SECONDS / 2)
    assert drafters.versions["default"] == "v1"
    settle(drafters, LOOK_SECONDS * 2, lambda: drafters.versions["default"] == "mine")
    file.write_text(json.dumps({"drafter": "off"}))
    settle(drafters, LOOK_SECONDS * 4, lambda: drafters.versions["default"] == "")
    assert names(drafters) == set()


def test_a_swapped_symlink_is_seen_as_a_mounted_config_map_makes_it(tmp_path: Path) -> None:
    for name, drafter in (("first", "suffix"), ("second", "off")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "drafts.json").write_text(json.dumps({"drafter": drafter, "version": name}))
        os.utime(tmp_path / name / "drafts.json", (1, 1))
    (tmp_path / "..data").symlink_to("first")
    (tmp_path / "drafts.json").symlink_to("..data/drafts.json")
    drafters = following(tmp_path / "drafts.json")
    settle(drafters, 0.0, lambda: drafters.versions["default"] == "first")
    (tmp_path / "..next").symlink_to("second")
    (tmp_path / "..next").rename(tmp_path / "..data")
    settle(drafters, 10.0, lambda: drafters.versions["default"] == "second")
    assert names(drafters) == set()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "cannot be read"),
        ("[]", "expected a JSON object, got list"),
        ('{"head": "/x"}', "there is no 'head'; it knows drafter, heads, eagle3, model, version, named"),
        ('{"drafter": "eagle"}', "drafter must be auto, off, suffix, heads, eagle3, model, not 'eagle'"),
        ('{"drafter": ["off"]}', "drafter must be auto, off, suffix, heads, eagle3, model, not ['off']"),
        ('{"heads": 3}', "heads must be the path of a folder, not 3"),
        ('{"drafter": "heads"}', "drafter is heads and no folder is named; set heads"),
        ('{"drafter": "eagle3", "heads": "one"}', "drafter is eagle3 and no folder is named; set eagle3"),
        ('{"model": {"layers": "6"}}', 'model must be the path of a folder, or {"layers": N} for'),
        ('{"model": {"layers": 1}}', "cannot be used here; name Turbo heads"),
        ('{"eagle3": "one"}', "one is a draft of method heads; name it as heads"),
        ('{"version": 3}', "version must be a string, not 3"),
        ('{"heads": "nowhere"}', "nowhere/config.json cannot be read"),
    ],
)
def test_a_broken_file_changes_nothing_and_says_why(tmp_path: Path, content: str, said: str) -> None:
    write_heads(tmp_path / "one", "v1")
    file = tmp_path / "drafts.json"
    file.write_text('{"heads": "one"}')
    drafters = following(file)
    settle(drafters, 0.0, lambda: drafters.versions["default"] == "v1")
    file.write_text(content)
    settle(drafters, 10.0, lambda: drafters.problem != "")
    assert said in drafters.problem
    assert drafters.versions["default"] == "v1"
    assert names(drafters, "heads") == {"heads"}
    file.write_text('{"heads": "one", "version": "again"}')
    settle(drafters, 20.0, lambda: drafters.versions["default"] == "again")
    assert drafters.problem == ""


def test_a_folder_that_comes_after_the_file_is_taken_up_without_another_change(tmp_path: Path) -> None:
    file = tmp_path / "drafts.json"
    file.write_text('{"heads": "late"}')
    drafters = following(file)
    settle(drafters, 0.0, lambda: drafters.problem != "")
    write_heads(tmp_path / "late", "v1")
    drafters.poll(RETRY_SECONDS / 2)
    assert drafters.versions["default"] == ""
    settle(drafters, RETRY_SECONDS + LOOK_SECONDS, lambda: drafters.versions["default"] == "v1")
    assert drafters.problem == ""


def test_steps_go_on_while_drafts_are_loaded(tmp_path: Path) -> None:
    file = tmp_path / "drafts.json"
    file.write_text("{}")
    go_on = threading.Event()

    def slow(path: Path) -> ActiveDrafts:
        assert go_on.wait(PATIENCE)
        return ActiveDrafts("off", None, "slow")

    drafters = Proposer(file=WatchedFile(file, slow))
    for step in range(50):
        drafters.poll(float(step))
        assert names(drafters) == {"suffix"}
    go_on.set()
    settle(drafters, 51.0, lambda: drafters.versions["default"] == "slow")


def test_an_unforeseen_failure_is_told_and_serving_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "drafts.json"
    file.write_text("{}")

    def broken(path: Path) -> ActiveDrafts:
        raise MemoryError("no room")

    drafters = Proposer(file=WatchedFile(file, broken))
    settle(drafters, 0.0, lambda: drafters.problem != "")
    assert "loading failed: MemoryError: no room" in drafters.problem


@pytest.mark.parametrize(
    ("deployed", "wanted", "found"),
    [
        ("auto", "suffix", {"suffix"}),
        ("auto", "heads", {"heads"}),
        ("auto", "off", set()),
        ("suffix", "auto", {"suffix"}),
        ("suffix", "heads", {"heads"}),
        ("heads", "auto", {"heads"}),
        ("off", "auto", set()),
        ("off", "suffix", set()),
    ],
)
def test_a_request_chooses_among_what_the_deployment_allows(
    tmp_path: Path, deployed: DraftMethod, wanted: DraftMethod, found: set[str]
) -> None:
    write_heads(tmp_path, "v1")
    file = tmp_path / "drafts.json"
    file.write_text(json.dumps({"drafter": deployed, "heads": "."}))
    drafters = Proposer(DraftLoader(TARGET, Noise(VOCABULARY)).load(file))
    assert names(drafters, wanted) == found


def test_a_selection_needs_nothing_and_counts_paths_from_its_own_folder(tmp_path: Path) -> None:
    file = tmp_path / "drafts.json"
    file.write_text("{}")
    assert read_selection(file) == DraftConfig()
    file.write_text('{"heads": "a/b", "version": "7"}')
    assert read_selection(file) == DraftConfig("auto", {"heads": tmp_path / "a/b"}, "7")
    with pytest.raises(SelectionError, match=r"cannot be read.*; write a JSON object there"):
        read_selection(tmp_path / "none.json")


def test_every_committed_token_teaches_and_none_after_the_first_that_differs() -> None:
    learnt: list[tuple[object, bool]] = []
    drafters = Proposer()
    drafters._suffix.learn = lambda cell, accepted: learnt.append((cell, accepted))  # type: ignore[method-assign]
    tokens = [1, 2, 3, 4, 5, 6, 7, 1, 2, 3]
    (draft,) = drafters.propose([DraftRequest("r", tokens, 1, 4, "", 0, 0.0)])
    assert draft.tokens[:3] == (4, 5, 6)
    drafters.observe(draft, [4])  # verified without drafts: the engine's token tells of the first draft
    assert [right for _, right in learnt] == [True]
    learnt.clear()
    drafters.observe(draft, [4, 9])
    assert [right for _, right in learnt] == [True, False]


def test_a_file_that_is_not_there_is_a_problem_until_it_comes(tmp_path: Path) -> None:
    drafters = following(file := tmp_path / "drafts.json")
    settle(drafters, 0.0, lambda: drafters.problem != "")
    assert drafters.problem.startswith(f"{file} cannot be read")
    file.write_text('{"drafter": "suffix", "version": "v1"}')
    settle(drafters, LOOK_SECONDS, lambda: drafters.versions["default"] == "v1")
    assert drafters.problem == ""
