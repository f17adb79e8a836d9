"""`turbo distill`, as it is typed: a model's folder and prompts in, an artefact that the engine loads out."""

from __future__ import annotations

import json
import random
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from turbo_dev.server_process import PATIENCE
from turbo_dev.tiny_engine import VOCABULARY
from turbo_runtime.cli import distill
from turbo_runtime.contract.config import RuntimeConfig
from turbo_runtime.contract.documents import DraftManifest
from turbo_runtime.contract.endpoints import PERMANENT_ERROR, TERMINATION_MESSAGE_BYTES
from turbo_runtime.distill import heads, pipeline
from turbo_runtime.drafters.draft_memory import read_memory
from turbo_runtime.drafters.heads import read_config
from turbo_runtime.drafters.interface import DraftRequest
from turbo_runtime.engine.startup.builder import start_engine
from turbo_runtime.files import checkpoint_digest

FLAGS = ["--completions", "--max-tokens", "40", "--temperature", "0.8"]
FLAGS += ["--rows", "64", "--depth", "3", "--markov-rank", "8", "--epochs", "20"]
MACHINE = ["--threads", "1", "--device", "cpu", "--dtype", "float32"]
STAGES = ("answers", "states", "training", "evaluation", "speedup")


def arguments(folder: Path, out: str, *flags: str) -> list[str]:
    prompts = [str(folder / f"{domain}.jsonl") for domain in ("left", "right")]
    return [
        str(folder / "model"),
        "--prompts",
        *prompts,
        "--out",
        str(folder / out),
        *MACHINE,
        *FLAGS,
        *flags,
    ]


def command(arguments: list[str]) -> list[str]:
    return [sys.executable, "-m", "turbo_cli", "distill", *arguments]


def wait_for(file: Path) -> None:
    deadline = time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < deadline, f"{file.name} never came"
        time.sleep(0.05)


def typed(folder: Path, out: str, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(arguments(folder, out, *flags)), capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def done(folder: Path) -> tuple[Path, str]:
    """An undisturbed run, and what it said."""
    ran = typed(folder, "whole")
    assert ran.returncode == 0, ran.stderr
    return folder / "whole", ran.stderr


def test_every_stage_tells_what_it_does_and_the_result_is_told_by_domain(done: tuple[Path, str]) -> None:
    _, told = done
    for stage in STAGES:
        assert f"\n{stage} " in told
    for domain in ("left", "right"):
        assert f"\n{domain}: acceptance length " in told
        assert re.search(rf"\n{domain}: .* times as fast at 1 \([0-9.]+ from memory alone\)", told)
    assert "are few to measure on: give more prompts" in told


def test_the_folder_holds_the_artefact_its_evaluation_and_a_report(done: tuple[Path, str]) -> None:
    out, _ = done
    files = {"config.json", "heads.safetensors", "memory.st", "evaluation.json", "report.html"}
    assert {file.name for file in out.iterdir()} == files
    config = read_config(out)
    assert config.heads == 3
    assert config.training["request"]["recipe"]["epochs"] == 20
    found = json.loads((out / "evaluation.json").read_text())
    assert set(found["domains"]) == {"left", "right"}
    for domain in found["domains"].values():
        assert domain["unseen"]["acceptance_length"] >= 1
        assert [speedup["batch"] for speedup in domain["speedups"]] == [1, 8]  # ten prompts were held out
        assert all(speedup["differing"] == 0 for speedup in domain["speedups"])
    report = (out / "report.html").read_text()
    assert report.count("<svg") == 3
    assert "<script" not in report


def test_the_engine_loads_it(done: tuple[Path, str], folder: Path, tmp_path: Path) -> None:
    out, _ = done
    drafts = tmp_path / "drafts.json"
    drafts.write_text(json.dumps({"heads": str(out)}))
    config = RuntimeConfig(
        str(folder / "model"),
        device="cpu",
        threads=1,
        dtype="float32",
        draft_config=str(drafts),
        max_num_seqs=2,
    )
    engine, _ = start_engine(config, time.monotonic())
    assert engine.stats().draft_error == ""
    assert engine.stats().draft_version == read_config(out).version
    memory = read_memory(out, read_config(out).target_digest, VOCABULARY)
    assert memory is not None
    learnt, drafters = memory.answers[0].tokens, engine.speculation.drafters
    assert not drafters.waiting  # it is all read before the first request
    asked = DraftRequest("r", learnt[:-3], len(learnt) - 3, 1, "anybody", 0, 0.0, method="suffix")
    assert drafters.propose([asked])[0].tokens


def test_a_pod_leaves_what_it_made_and_a_failed_one_why(
    done: tuple[Path, str], folder: Path, tmp_path: Path
) -> None:
    left = tmp_path / "message"
    told = typed(folder, "whole", "--termination-message", str(left))
    assert told.returncode == 0, told.stderr
    facts = DraftManifest.from_json(left.read_text())
    assert (facts.digest, facts.version) == (checkpoint_digest(done[0]), read_config(done[0]).version)
    assert [worth.domain for worth in facts.worth] == ["left", "right"]
    assert [speedup.batch for speedup in facts.worth[0].speedups] == [1, 8]
    assert len(left.read_bytes()) < TERMINATION_MESSAGE_BYTES
    typed(folder, "whole", "--seed", "1", "--termination-message", str(left))
    assert "was made otherwise" in left.read_text()


def test_done_again_it_says_so_and_changes_nothing(done: tuple[Path, str], folder: Path) -> None:
    before = checkpoint_digest(done[0])
    again = typed(folder, "whole")
    assert (again.returncode, again.stderr) == (0, f"{done[0]} is done already\n")
    assert checkpoint_digest(done[0]) == before


def test_other_settings_for_the_same_folder_are_refused_by_name(done: tuple[Path, str], folder: Path) -> None:
    ran = typed(folder, "whole", "--seed", "1")
    assert ran.returncode == PERMANENT_ERROR
    assert ran.stderr.count("\n") == 1
    assert "was made otherwise: seed 0 and not 1; name another folder with --out" in ran.stderr


def test_killed_at_random_points_of_all_stages_the_artefact_has_the_same_digest(
    done: tuple[Path, str], folder: Path
) -> None:
    lots = random.Random(11)
    for stage in STAGES:
        process = subprocess.Popen(command(arguments(folder, "killed")), stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        reached = next((line for line in process.stderr if line.startswith(f"{stage} ")), "")
        if stage == "training":  # somewhere behind its first checkpoint
            wait_for(folder / "killed" / "work" / pipeline.CHECKPOINT)
        time.sleep(lots.uniform(0, 1.5))  # somewhere within the stage, or soon after it
        process.send_signal(signal.SIGKILL)
        process.stderr.close()
        assert process.wait(PATIENCE) == -signal.SIGKILL, f"it ended before it could be killed in {stage}"
        assert reached
    ran = typed(folder, "killed")
    assert ran.returncode == 0, ran.stderr
    assert checkpoint_digest(folder / "killed") == checkpoint_digest(done[0])


def test_ended_by_a_signal_it_says_how_to_go_on(folder: Path) -> None:
    process = subprocess.Popen(command(arguments(folder, "ended")), stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert next(line for line in process.stderr if line.startswith(f"{STAGES[0]} "))
    process.send_signal(signal.SIGTERM)
    told = process.stderr.read()
    process.stderr.close()
    assert process.wait(PATIENCE) == distill.TERMINATED
    assert f"turbo distill: stopped; the same command goes on with {folder / 'ended'}" in told


@pytest.mark.parametrize("last", ["record", "report", "save_heads", "remove"])
def test_killed_while_it_writes_the_result_it_comes_to_the_same(
    done: tuple[Path, str], folder: Path, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    out = f"killed-{last}"

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        where = {
            "record": (pipeline.Record, "write"),
            "report": ("turbo_runtime.distill.evaluation.record.render",),
        }
        where |= {"save_heads": (heads, "save_heads"), "remove": (pipeline.Workspace, "remove")}
        patched.setattr(*where[last], dies)
        with pytest.raises(KeyboardInterrupt):
            distill.distill(arguments(folder, out, "--no-speedup"))
    assert (folder / out / "config.json").is_file() == (last == "remove")
    assert distill.distill(arguments(folder, out, "--no-speedup")) == 0
    assert checkpoint_digest(folder / out) == checkpoint_digest(done[0])
    assert not (folder / out / "work").exists()


def test_two_at_a_time_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[int] = []

    def meanwhile(*_: object) -> None:
        seen.append(distill.distill(arguments(folder, "two", "--no-speedup")))
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(pipeline.responses, "answer_all", meanwhile)
        with pytest.raises(KeyboardInterrupt):
            distill.distill(arguments(folder, "two", "--no-speedup"))
    assert seen == [1]
    assert "another process works in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--temperature", "3"), "argument --temperature: must lie between 0 and 2, not 3"),
        (("--depth", "none"), "argument --depth: invalid"),
        (("--depth", "20"), "argument --depth: must lie between 1 and 8, not 20"),
        (("--epochs", "0"), "argument --epochs: must be at least 1, not 0"),
        (("--rows", "1.5"), "argument --rows: invalid whole number value: '1.5'"),
        (("--seed", "1" * 21), "argument --seed: must lie between 0 and 18446744073709551615, not 1111"),
    ],
)
def test_a_wrong_flag_is_named(
    folder: Path, flags: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        distill.distill(arguments(folder, "wrong", *flags))
    assert ended.value.code == 2
    assert told in capsys.readouterr().err
    assert not (folder / "wrong").exists()


def test_too_few_prompts_are_told_before_the_model_is_loaded(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = tmp_path / "few.jsonl"
    few.write_text('{"prompt": "a"}\n' * 4)
    assert (
        distill.distill(
            [str(folder / "model"), "--prompts", str(few), "--out", str(tmp_path / "out"), *FLAGS]
        )
        == PERMANENT_ERROR
    )
    told = "4 prompts, 1 of them unlike, leave none for the part 'test'; give more prompts"
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_prompts_that_are_too_long_are_named_and_the_advice_can_be_followed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = tmp_path / "long.jsonl"
    long.write_text(
        "".join(json.dumps({"prompt": "x" * 150 + str(n), "id": f"p{n}"}) + "\n" for n in range(9))
    )
    wanted = [str(folder / "model"), "--prompts", str(long), "--out", str(tmp_path / "out"), *MACHINE]
    wanted += ["--completions", "--epochs", "1", "--no-speedup"]
    assert distill.distill([*wanted, "--max-tokens", "200"]) == PERMANENT_ERROR
    told = capsys.readouterr().err
    assert "and 6 more are longer: leave them out, lower --max-tokens" in told
    mended = ["--max-tokens", "20", "--temperature", "0.9", "--domain", "letters"]
    assert distill.distill([*wanted, *mended]) == 0
    assert read_config(tmp_path / "out").domain == "letters"
    assert set(json.loads((tmp_path / "out" / "evaluation.json").read_text())["domains"]) == {"letters"}


def test_a_chat_that_nobody_can_ask_is_told_before_the_model_is_loaded(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "chats.jsonl"
    roles = ["user"] * 8 + ["bot"]
    file.write_text("".join(json.dumps({"messages": [{"role": r, "content": "a"}]}) + "\n" for r in roles))
    asked = [str(folder / "model"), "--prompts", str(file), "--out", str(tmp_path / "out")]
    assert distill.distill(asked) == PERMANENT_ERROR
    told = capsys.readouterr().err
    assert "prompt chats-9: Invalid 'messages[0].role'" in told
    assert "loaded" not in told


def test_what_was_saved_of_a_training_and_was_damaged_is_done_again_and_told(
    done: tuple[Path, str],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(pipeline.Distillation, "_evaluate", dies)
        with pytest.raises(KeyboardInterrupt):
            distill.distill(arguments(folder, "damaged", "--no-speedup"))
    work = folder / "damaged" / "work"
    assert stat.S_IMODE(work.stat().st_mode) == 0o700  # it tells prompts
    saved = work / pipeline.CHECKPOINT
    for file in (saved, work / pipeline.REQUESTS, work / pipeline.MACHINE, work / "seconds.json"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert distill.distill(arguments(folder, "damaged", "--no-speedup")) == 0
    assert re.search(rf"{saved} cannot be read \(.+\): training begins anew\n", capsys.readouterr().err)
    assert checkpoint_digest(folder / "damaged") == checkpoint_digest(done[0])


def test_answers_cannot_be_kept_of_what_is_done_without(
    done: tuple[Path, str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert distill.distill(arguments(folder, "whole", "--keep-answers")) == PERMANENT_ERROR
    assert "is done already and its answers were not kept; name another folder" in capsys.readouterr().err


def test_what_can_never_be_written_or_asked_is_told_in_one_sentence(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for flags, told in (
        (("--out", str(file)), f"{file} is a file; name a folder with --out"),
        (("--max-tokens", "99999"), "leaves no room for a prompt, of 256 together: lower --max-tokens"),
    ):
        assert distill.distill(arguments(folder, "never", *flags)) == PERMANENT_ERROR
        err = capsys.readouterr().err
        assert told in err, err


def test_weights_can_be_read_by_the_user_that_serves(done: tuple[Path, str]) -> None:
    modes = {file.name: oct(file.stat().st_mode & 0o777) for file in done[0].iterdir()}
    assert modes["heads.safetensors"] == modes["config.json"] == modes["evaluation.json"]


def test_a_free_port_for_progress_is_told(
    done: tuple[Path, str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert distill.distill(arguments(folder, "whole", "--progress-port", "0")) == 0
    assert "progress is told on port " in capsys.readouterr().err
