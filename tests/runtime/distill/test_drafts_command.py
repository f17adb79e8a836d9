"""`turbo drafts` tells what lies in folders, and says in a sentence where there is nothing to tell."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from turbo_operator.api import parse_draft
from turbo_runtime.cli.drafts import drafts
from turbo_runtime.files import checkpoint_digest


def draft(
    folder: Path, length: float, speedup: float, domain: str = "support", digest: str = "sha256:one"
) -> Path:
    folder.mkdir(parents=True)
    config = {
        "kind": "turbo-heads",
        "version": f"{folder.name}-1",
        "domain": domain,
        "heads": 4,
        "target_digest": digest,
        "training": {
            "answers": {"training": 300},
            "left_out": 17,
            "request": {"recipe": {"temperature": 0.6, "max_tokens": 192, "epochs": 0}, "dtype": "bfloat16"},
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"block": np.zeros(3, np.float32)}, folder / "heads.safetensors")
    unseen = {"acceptance_length": length, "acceptance_per_position": [0.8, 0.61], "answers": 47}
    speedups = [{"batch": batch, "after": speedup / batch**0.1, "before": 1.07} for batch in (1, 8, 32)]
    evaluation = {
        "domains": {domain: {"unseen": unseen, "speedups": speedups}},
        "seconds": {"training": 61.0},
    }
    evaluation["losses"] = [0.5] * 29
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    return folder


def test_a_line_for_each_draft_below_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draft(tmp_path / "a", 2.5, 1.4)
    draft(tmp_path / "b", 3.5, 2.2, domain="[json]$x")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
    assert drafts(["list", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "2.50" in told
    assert "[json]$x" in told
    assert "llama" not in told


def test_one_is_shown_with_all_that_is_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert drafts(["show", str(draft(tmp_path / "a", 2.5, 1.4))]) == 0
    told = capsys.readouterr().out
    folder = tmp_path / "a"
    for part in ("a-1", "sha256:one", checkpoint_digest(folder), "300", "0.80, 0.61", "1.07 > 1.40", " 47 "):
        assert part in told
    rows = [line.split() for line in told.splitlines()]
    for row in (["answers,", "left", "out", "17"], ["epochs", "29"], ["max", "tokens", "192"]):
        assert row in rows
    assert ["temperature", "0.6"] in rows
    assert ["dtype", "bfloat16"] in rows


def test_two_are_compared_by_domain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = draft(tmp_path / "a", 2.5, 1.4), draft(tmp_path / "b", 3.0, 1.75)
    assert drafts(["compare", str(first), str(second)]) == 0
    told = capsys.readouterr().out
    assert "1.20" in told
    assert "1.25" in told


@pytest.mark.parametrize(
    ("unlike", "told"),
    [
        ({"digest": "sha256:two"}, "are for different models"),
        ({"domain": "json"}, "measured on support and json: compare drafts of one kind"),
    ],
)
def test_drafts_of_different_models_or_prompts_are_not_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], unlike: dict[str, str], told: str
) -> None:
    first, second = draft(tmp_path / "a", 2.5, 1.4), draft(tmp_path / "b", 3.0, 1.75, **unlike)
    assert drafts(["compare", str(first), str(second)]) == 1
    assert told in capsys.readouterr().err


def test_a_line_is_not_broken_where_a_program_reads_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "a-draft-with-a-name-that-is-as-long-as-names-are-that-people-give-to-drafts"
    draft(tmp_path / name, 2.5, 1.4)
    assert drafts(["list", str(tmp_path)]) == 0
    assert f" {name}-1 " in capsys.readouterr().out


@pytest.mark.parametrize("weights", [None, b"cut", b"\x40\0\0\0\0\0\0\0{}"])
@pytest.mark.parametrize("verb", ["show", "manifest", "list"])
def test_a_draft_without_its_weights_is_no_draft(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str, weights: bytes | None
) -> None:
    draft(tmp_path / "good", 2.5, 1.4)
    file = draft(tmp_path / "a", 2.5, 1.4) / "heads.safetensors"
    file.unlink() if weights is None else file.write_bytes(weights)
    given = {"show": [str(file.parent)], "list": [str(tmp_path)]}
    given["manifest"] = [str(file.parent), "--claim", "drafts"]
    assert drafts([verb, *given[verb]]) == (0 if verb == "list" else 1)
    told = capsys.readouterr()
    assert told.err.count("\n") == 1
    assert "heads.safetensors holds no weights: " in told.err
    assert ("good-1" in told.out) == (verb == "list")


@pytest.mark.parametrize("other", ["sha256:1", "sha256:2"])
def test_a_comparison_says_whether_both_were_measured_on_the_same_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], other: str
) -> None:
    made = [draft(tmp_path / name, 2.5, 1.4) for name in "ab"]
    for folder, digest in zip(made, ("sha256:1", other), strict=True):
        evaluation = json.loads((folder / "evaluation.json").read_text())
        evaluation["domains"]["support"]["measured_on"] = digest
        (folder / "evaluation.json").write_text(json.dumps(evaluation))
    assert drafts(["compare", *map(str, made)]) == 0
    unlike = "Of support they were measured on unlike answers" in capsys.readouterr().out
    assert unlike == (other != "sha256:1")


def test_a_comparison_tells_what_memory_alone_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = draft(tmp_path / "a", 2.5, 1.4), draft(tmp_path / "b", 3.0, 1.75)
    assert drafts(["compare", str(first), str(second)]) == 0
    (told,) = (line for line in capsys.readouterr().out.splitlines() if "memory alone, 1 at" in line)
    assert told.split()[-3:] == ["1.07", "1.07", "1.00"]


def begun(folder: Path) -> Path:
    """What a distillation has left that was killed."""
    (folder / "work").mkdir(parents=True)
    (folder / "work" / "request.json").write_text("{}")
    return folder


@pytest.mark.parametrize("verb", ["show", "manifest"])
def test_one_that_is_not_done_is_told_as_that(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    folder = begun(tmp_path / "a")
    assert drafts([verb, str(folder), *(["--claim", "drafts"] if verb == "manifest" else [])]) == 1
    assert f"{folder} is not done" in capsys.readouterr().err


@pytest.mark.parametrize("beside", [False, True])
def test_those_that_are_not_done_are_listed_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], beside: bool
) -> None:
    folder = begun(tmp_path / "a")
    if beside:
        draft(tmp_path / "b", 2.5, 1.4)
    assert drafts(["list", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert f"{folder} is not done" in told
    assert ("b-1" in told) == beside
    assert drafts(["list", str(folder)]) == 0
    assert f"{folder} is not done" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["list", "show"])
def test_where_there_is_none_a_sentence_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    assert drafts([verb, str(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert told.startswith("turbo drafts: ")
    assert told.count("\n") == 1


@pytest.mark.parametrize("domains", [[], 7, {"a": 7}, {"a": {"unseen": {}, "speedups": [{}]}}])
def test_an_evaluation_by_somebody_else_is_refused_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], domains: object
) -> None:
    folder = draft(tmp_path / "a", 2.5, 1.4)
    (folder / "evaluation.json").write_text(json.dumps({"domains": domains}))
    assert drafts(["show", str(folder)]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_one_without_an_evaluation_is_told_without_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = draft(tmp_path / "a", 2.5, 1.4)
    (folder / "evaluation.json").unlink()
    assert drafts(["show", str(folder)]) == 0
    assert "2.50" not in capsys.readouterr().out


def test_the_manifest_of_a_draft_is_a_turbodraft(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = draft(tmp_path / "Support.1", 2.5, 1.4)
    given = ["--claim", "drafts", "--path", "/chat/support-1/", "--deployment", "smollm2"]
    assert drafts(["manifest", str(folder), *given]) == 0
    made = parse_draft(json.loads(capsys.readouterr().out))
    assert (made.metadata.name, made.spec.version) == ("support-1-1", "Support.1-1")
    assert made.spec.deployment_name == "smollm2"
    assert (made.spec.location.claim_name, made.spec.location.path) == ("drafts", "chat/support-1")
    assert (made.spec.digest, made.spec.target_digest) == (checkpoint_digest(folder), "sha256:one")
    (found,) = made.spec.evaluation or ()
    assert (found.domain, str(found.acceptance_length)) == ("support", "2.500")
    first = (found.speedups or ())[0]
    assert (first.batch_size, str(first.suffix_only), str(first.with_draft)) == (1, "1.070", "1.400")


def test_of_an_eagle3_layer_it_is_said_which_pods_draft_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = draft(tmp_path / "a", 2.5, 1.4)
    ours = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"speculators_model_type": "eagle3", "turbo": ours}))
    (folder / "heads.safetensors").rename(folder / "model.safetensors")
    assert drafts(["manifest", str(folder), "--claim", "drafts"]) == 0
    told = capsys.readouterr()
    assert parse_draft(json.loads(told.out)).spec.method == "EAGLE3"
    assert f"{folder} holds an EAGLE-3 layer, which pods of engine Turbo use if" in told.err
