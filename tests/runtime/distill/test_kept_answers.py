"""`turbo distill --answers`: what earlier drafts were learnt from is learnt from again."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from turbo_dev.tiny_engine import VOCABULARY, tokenizer
from turbo_runtime.cli import distill
from turbo_runtime.contract.endpoints import PERMANENT_ERROR
from turbo_runtime.distill.data.responses import ANSWERS_FILE, Completion, read_kept, write_kept
from turbo_runtime.distill.recipe import TRAINING
from turbo_runtime.drafters.draft_memory import PROMPT_TAIL, read_memory
from turbo_runtime.drafters.heads import read_config
from turbo_runtime.files import checkpoint_digest

DRAWN = ["--completions", "--max-tokens", "40", "--temperature", "0.8"]
SHORT = ["--rows", "64", "--depth", "3", "--markov-rank", "8", "--epochs", "2", "--no-speedup"]
CAPTURED = 1_790_000_000.0  # seconds since the epoch
MACHINE = ["--threads", "1", "--device", "cpu", "--dtype", "float32"]


@pytest.fixture(scope="module")
def kept(folder: Path) -> dict[str, Path]:
    """A draft of each domain, its answers kept; the prompts of one were captured."""
    made, captured = {}, folder / "captured"
    captured.mkdir()
    prompts = map(json.loads, (folder / "left.jsonl").read_text().splitlines())
    rows = [
        {"at": CAPTURED + n, "tenant": f"tenant-{n % 2}", "salted": n % 3 == 0, "text": each["prompt"]}
        for n, each in enumerate(prompts)
    ]
    (captured / "pod-1790000000000.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for domain, source in (("left", captured), ("right", folder / "right.jsonl")):
        given = ["--prompts", str(source), "--domain", domain, "--out"]
        made[domain] = folder / f"kept-{domain}"
        line = [str(folder / "model"), *given, str(made[domain]), *MACHINE, *DRAWN, *SHORT, "--keep-answers"]
        assert (
            subprocess.run([sys.executable, "-m", "turbo_cli", "distill", *line], timeout=300).returncode == 0
        )
    return made


def learnt(folder: Path, out: str, *flags: str) -> list[str]:
    return [str(folder / "model"), "--out", str(folder / out), *MACHINE, *SHORT, *flags]


def evaluated(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "evaluation.json").read_text())["domains"]
    return found


def test_answers_that_were_kept_make_one_draft_of_several_without_asking_again(
    kept: dict[str, Path], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from_both = ["--answers", *map(str, kept.values()), "--keep-answers"]
    assert distill.distill(learnt(folder, "both", *from_both)) == 0
    told = capsys.readouterr().err
    assert "\nstates " in told
    assert not [line for line in told.splitlines() if line.startswith("answers ")]
    rows = [set((out / ANSWERS_FILE).read_text().splitlines()) for out in (*kept.values(), folder / "both")]
    assert rows[0] | rows[1] == rows[2]
    both = evaluated(folder / "both")
    assert set(both) == set(kept)
    for domain, out in kept.items():  # so that the two can be compared
        assert both[domain]["measured_on"] == evaluated(out)[domain]["measured_on"]
    assert both["left"]["measured_on"] != both["right"]["measured_on"]
    turned = ["--answers", *map(str, reversed(kept.values())), "--keep-answers"]
    assert distill.distill(learnt(folder, "turned", *turned)) == 0
    assert checkpoint_digest(folder / "turned") == checkpoint_digest(folder / "both")


def test_a_draft_names_the_capture_that_it_comes_from_also_by_kept_answers(
    kept: dict[str, Path], folder: Path
) -> None:
    number = len((folder / "left.jsonl").read_text().splitlines())
    first, last = (datetime.fromtimestamp(CAPTURED + n, UTC).isoformat() for n in (0, number - 1))
    told = {"prompts": number, "from": first, "until": last}
    assert distill.distill(learnt(folder, "of-captured", "--answers", str(kept["left"]))) == 0
    for out in (kept["left"], folder / "of-captured"):
        assert json.loads((out / "config.json").read_text())["training"]["capture"] == told
    assert "capture" not in json.loads((kept["right"] / "config.json").read_text())["training"]


def test_a_draft_brings_what_it_learnt_from_to_whom_it_may_and_nothing_that_was_held_out(
    kept: dict[str, Path], folder: Path
) -> None:
    digest = read_config(kept["right"]).target_digest
    (segment,) = (folder / "captured").iterdir()
    rows = map(json.loads, segment.read_text().splitlines())
    whose = {row["text"]: row["tenant"] for row in rows if not row["salted"]}
    whose |= dict.fromkeys(
        json.loads(row)["prompt"] for row in (folder / "right.jsonl").read_text().splitlines()
    )
    for domain, source in kept.items():
        memory = read_memory(source, digest, VOCABULARY)
        assert memory is not None
        completions = [c for c in read_kept([source], digest).completions if c.request.part == TRAINING]
        learnt_from = {
            ((*c.request.prompt[-PROMPT_TAIL:], *c.tokens), whose[text])
            for c in completions
            if (text := tokenizer().decode(c.request.prompt)) in whose
        }
        assert set(memory.answers) == learnt_from
        assert (len(learnt_from) < len(completions)) == (domain == "left")
        tenants = {None} if domain == "right" else {"tenant-0", "tenant-1"}
        assert {answer.tenant for answer in memory.answers} == tenants
        assert json.loads((source / "config.json").read_text())["training"]["memory"] == memory.summary()


def beside(source: Path, tmp_path: Path) -> tuple[Path, Path, str, tuple[Completion, ...]]:
    """A draft, another one of the same model, that model, and what the first has kept."""
    digest = read_config(source).target_digest
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text((source / "config.json").read_text())
    return source, other, digest, read_kept([source], digest).completions


def test_a_prompt_that_one_of_them_held_out_is_never_learnt_from(
    kept: dict[str, Path], tmp_path: Path
) -> None:
    source, other, digest, said = beside(kept["left"], tmp_path)
    write_kept(other, [replace(one, request=replace(one.request, part=TRAINING)) for one in said])
    assert set(read_kept([other, source], digest).completions) == set(said)


def test_of_a_prompt_that_was_held_out_one_answer_counts_and_of_one_learnt_from_all(
    kept: dict[str, Path], tmp_path: Path
) -> None:
    source, other, digest, said = beside(kept["left"], tmp_path)
    again = [
        replace(one, request=replace(one.request, choice=1, temperature=1.5), tokens=(*one.tokens, 7))
        for one in said
    ]
    write_kept(other, again)
    both = read_kept([other, source], digest).completions
    assert {one for one in both if one.request.part != TRAINING} == {
        one for one in said if one.request.part != TRAINING
    }
    assert {one for one in both if one.request.part == TRAINING} == {
        one for one in (*said, *again) if one.request.part == TRAINING
    }


def test_an_answer_that_was_kept_says_what_it_was_drawn_with(kept: dict[str, Path]) -> None:
    said = read_kept([kept["left"]], read_config(kept["left"]).target_digest).completions
    assert {(one.request.temperature, one.request.seed) for one in said} == {(0.8, 0)}


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ("nothing", "holds no draft; name the folders of `turbo distill --keep-answers`"),
        ("no answers", "answers.jsonl is not there; distil with --keep-answers first"),
        ("a line", "answers.jsonl, line 2, is no answer that was kept; make it anew"),
        ("another model", "are those of another model: sha256:0 and not sha256:"),
    ],
)
def test_what_is_no_kept_answer_is_refused_by_name(
    kept: dict[str, Path],
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    broken: str,
    told: str,
) -> None:
    given = tmp_path / "given"
    given.mkdir()
    config = (kept["left"] / "config.json").read_text()
    answers = (kept["left"] / ANSWERS_FILE).read_text().splitlines()
    if broken == "another model":
        config = config.replace(read_config(kept["left"]).target_digest, "sha256:0")
    if broken != "nothing":
        (given / "config.json").write_text(config)
    if broken == "a line":
        (given / ANSWERS_FILE).write_text(f'{answers[0]}\n{{"part": "training"}}\n')
    assert distill.distill(learnt(folder, "refused", "--answers", str(given))) == PERMANENT_ERROR
    assert told in capsys.readouterr().err
    assert not (folder / "refused").exists()


def test_answers_are_either_kept_or_asked_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flags, told in (
        (["--answers", "a", "--from", "http://127.0.0.1:1"], "--from asks for new answers"),
        (["--answers", "a", "--prompts", "b"], "not allowed with argument"),
        (
            ["--answers", "a", "--test-fraction", "0.2", "--completions"],
            "leave out --test-fraction, --completions",
        ),
        ([], "one of the arguments --prompts --answers is required"),
    ):
        with pytest.raises(SystemExit) as ended:
            distill.distill(learnt(folder, "either", *flags))
        assert ended.value.code == 2
        assert told in capsys.readouterr().err


def test_answers_that_were_kept_are_learnt_from_as_they_were_drawn(
    kept: dict[str, Path], folder: Path, tmp_path: Path
) -> None:
    given = [str(folder / "model"), "--answers", *map(str, kept.values()), *MACHINE, *SHORT]
    assert distill.distill([*given, "--out", str(tmp_path / "as-drawn")]) == 0
    recipe = read_config(tmp_path / "as-drawn").training["request"]["recipe"]
    assert (recipe["temperature"], recipe["max_tokens"]) == (0.8, 40)
    assert distill.distill([*given, "--out", str(tmp_path / "typed"), "--temperature", "0.5"]) == 0
    assert read_config(tmp_path / "typed").training["request"]["recipe"]["temperature"] == 0.5


def test_a_token_that_the_model_has_not_is_refused_by_name(
    kept: dict[str, Path], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text((kept["left"] / "config.json").read_text())
    said = read_kept([kept["left"]], read_config(kept["left"]).target_digest).completions
    write_kept(tmp_path, [replace(one, tokens=(*one.tokens, 1 << 20)) for one in said])
    assert distill.distill(learnt(folder, "beyond", "--answers", str(tmp_path))) == PERMANENT_ERROR
    assert "an answer that was kept has a token that none of" in capsys.readouterr().err


def test_answers_that_say_one_thing_over_and_over_are_not_learnt_from_and_are_counted(
    kept: dict[str, Path], folder: Path, tmp_path: Path
) -> None:
    _, other, _, said = beside(kept["left"], tmp_path)
    training = [one for one in said if one.request.part == TRAINING]
    looping = {one.request: replace(one, tokens=(*one.tokens[:3], *(5, 6, 7) * 12)) for one in training[:2]}
    write_kept(other, [looping.get(one.request, one) for one in said])
    assert distill.distill(learnt(folder, "without-loops", "--answers", str(other))) == 0
    told = json.loads((folder / "without-loops" / "config.json").read_text())["training"]
    whole = json.loads((kept["left"] / "config.json").read_text())["training"]
    assert told["left_out"] == whole["left_out"] + len(looping)
    assert told["answers"][TRAINING] == whole["answers"][TRAINING] - len(looping)
