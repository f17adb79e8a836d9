"""`turbo plan` says what a training of the draft would run on and cost."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from turbo_dev.plan_files import accelerator, answer, deployment, node, nodes_file, pod, written
from turbo_dev.trainings import FACTS, NOW, draft, seen, td
from turbo_operator import api
from turbo_operator.cli import commands
from turbo_operator.cli.plan_query import Question, ask
from turbo_operator.snapshot import Snapshot


def speculation(**training: Any) -> dict[str, Any]:
    wanted = {
        "persistentVolumeClaim": {"claimName": "drafts"},
        "prompts": {"type": "ConfigMap", "configMap": {"name": "prompts"}},
    }
    return {"training": wanted | training}


def told(tmp_path: Path, capsys: pytest.CaptureFixture[str], **training: Any) -> tuple[Any, str]:
    file = written(tmp_path, deployment(speculation=speculation(**training)))
    status = commands.plan(["-f", file, "-o", "json"])
    document = answer(capsys).get("training")
    assert commands.plan(["-f", file]) == status
    return document, capsys.readouterr().out


def test_it_names_the_cheapest_that_fits_its_price_and_the_time_that_the_money_buys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document, shown = told(tmp_path, capsys, maxCost="2.00")
    assert (document["accelerator"], document["costPerHour"]) == ("l4", "0.8048")
    assert document["message"] == "A draft is trained on l4 for 0.8048 $/h, for 2.00 $ or 2.49 h at most."
    assert document["message"] in shown
    document, _ = told(tmp_path, capsys)
    assert document["message"] == "A draft is trained on l4 for 0.8048 $/h."


def test_heads_to_be_trained_are_served_with_suffix_drafts_until_the_first_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for mode in ("Auto", "Required"):
        wanted = {**speculation(), "method": "TurboHeads", "mode": mode}
        file = written(tmp_path, deployment(speculation=wanted))
        assert commands.plan(["-f", file, "-o", "json"]) == 0
        document = answer(capsys)
        assert document["choice"]["method"] == "Suffix"
        assert document["training"]["accelerator"] is not None
        assert commands.plan(["-f", file]) == 0
        shown = capsys.readouterr().out
        assert "with Suffix drafts of up to 32 tokens" in shown
        assert "TurboHeads is not supported" not in shown


def test_an_accelerator_of_no_such_name_is_told_with_its_field(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document, shown = told(tmp_path, capsys, acceleratorName="h1000")
    assert document["accelerator"] is None
    assert document["message"] == (
        "There is no TurboAccelerator h1000: create it, or correct spec.speculation.training.acceleratorName."
    )
    assert document["message"] in shown


def test_nothing_is_told_where_none_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document, shown = told(tmp_path, capsys, suspend=True)
    assert document is None
    assert "trained" not in shown


def test_it_needs_room_on_the_nodes_of_a_file_beside_what_serves_and_says_what_lacks_in_the_planners_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = {"allowed": ["mine"]}
    wanted = deployment(accelerators=mine, speculation=speculation())
    file = written(tmp_path, accelerator("mine", "0.30"), wanted)
    serves = pod("serves", "a", 1)
    serves["metadata"] |= {"namespace": "default", "labels": {api.LABEL_DEPLOYMENT: "chat"}}
    for gpus, name in ((2, "mine"), (1, None)):
        nodes = nodes_file(tmp_path, node("a", gpus), serves)
        assert commands.plan(["-f", file, "--nodes", nodes, "-o", "json"]) == 0
        training = answer(capsys)["training"]
        assert training["accelerator"] == name
        assert training["message"].startswith("No accelerator can be had for a training. ") == (name is None)


def explained(it: api.TurboDeployment, observed: Snapshot) -> bool:
    """Whether a training is told of."""
    return ask(Question({}, it, "model", FACTS.shape, observed, NOW)).trainer is not None


def test_nothing_is_told_where_none_will_begin() -> None:
    done = seen(drafts=(draft(),))
    assert explained(td(), seen())
    assert explained(td(), seen(drafts=(draft(target="sha256:other"),)))
    assert not explained(td(), done)
    assert explained(td(trigger={"speedupBelow": "1.30"}), done)
    assert not explained(td(spec={"suspend": True}), seen())
    none = {name: dataclasses.replace(row, memory_bytes=1 << 20) for name, row in done.accelerators.items()}
    assert not explained(td(), seen(accelerators=none))  # nor any plan to serve it


@pytest.mark.parametrize(
    ("model", "able"),
    [
        ("nvidia/Llama-3.1-70B-Instruct-FP8", "whose weights are not quantized in this format"),
        ("mistralai/Mixtral-8x7B-v0.1", "of another architecture than MixtralForCausalLM"),
    ],
)
def test_a_model_that_the_trainer_does_not_read_is_told_with_what_helps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str, able: str
) -> None:
    wanted = deployment(
        model={"uri": f"hf://{model}", "maxModelLen": 8192},
        accelerators={"allowed": ["h200"]},
        speculation={**speculation(), "method": "EAGLE3"},
    )
    assert commands.plan(["-f", written(tmp_path, wanted), "-o", "json"]) == 0
    assert answer(capsys)["training"]["message"] == (
        f"EAGLE-3 drafts are trained for a model {able}: name a trained draft in speculation.draftRef or "
        "draftModel, or leave training out."
    )
