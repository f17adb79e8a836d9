"""`turbo plan`: the exit status says what happened, the sentence says where; no cluster client is loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from turbo_operator import cli

EXAMPLES = Path(__file__).parents[2] / "examples"
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


def written(folder: Path, *documents: dict[str, Any]) -> str:
    path = folder / "td.yaml"
    path.write_text(yaml.safe_dump_all(documents))
    return str(path)


def deployment(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "serving.turbo.dev/v1alpha1",
        "kind": "TurboDeployment",
        "metadata": {"name": "chat"},
        "spec": {"model": {"uri": f"hf://{MODEL}"}, **spec},
    }


def accelerator(name: str, price: str) -> dict[str, Any]:
    return {
        "apiVersion": "serving.turbo.dev/v1alpha1",
        "kind": "TurboAccelerator",
        "metadata": {"name": name, "resourceVersion": "7"},
        "spec": {
            "resourceName": "nvidia.com/gpu",
            "memoryGiB": 24,
            "pricing": {"perAcceleratorHour": {"onDemand": price}},
        },
    }


def answer(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)[0]


def test_a_feasible_plan_ends_with_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.plan(["-f", written(tmp_path, deployment()), "-o", "json"]) == 0
    found = answer(capsys)
    assert (found["feasible"], found["choice"]["accelerator"], found["choice"]["costPerHour"]) == (
        True,
        "l4",
        "0.8048",
    )
    assert {row["reason"] for row in found["rejected"]} == {"Dearer", "PriceUnknown", "NotPreferred"}


def test_an_infeasible_plan_ends_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.plan(["-f", written(tmp_path, deployment(cost={"maxPerHour": "0.10"})), "-o", "json"]) == 2
    found = answer(capsys)
    assert (found["choice"], found["reason"]) == (None, "OverBudget")


def test_the_example_of_the_readme_is_planned(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.plan(["-f", str(EXAMPLES / "smollm2.yaml"), "--model", MODEL]) == 0
    shown = capsys.readouterr().out
    assert "cpu" in shown
    assert "set in examples/smollm2.yaml" in shown


def test_the_catalogue_file_overlays_the_shipped_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = {
        "apiVersion": "v1",
        "kind": "List",
        "items": [accelerator("l4", "9.00"), accelerator("mine", "0.30")],
    }
    overlay = tmp_path / "catalogue.yaml"
    overlay.write_text(yaml.safe_dump(listed))
    assert cli.plan(["-f", written(tmp_path, deployment()), "--catalogue", str(overlay), "-o", "yaml"]) == 0
    (found,) = yaml.safe_load(capsys.readouterr().out)
    assert found["choice"]["accelerator"] == "mine"


def test_the_model_may_be_a_folder_or_what_inspect_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "vocab_size": 1000,
        "max_position_embeddings": 512,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    file = written(tmp_path, deployment(model={"uri": "pvc://claim/model"}))
    assert cli.plan(["-f", file, "--model", str(tmp_path), "-o", "json"]) == 0
    assert answer(capsys)["choice"]["maxModelLen"] == 512


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"replicas": -1}, "spec.replicas"),
        ({"modle": {}}, "spec.modle"),
        ({"model": {"uri": "ftp://x"}}, "spec.model.uri"),
        ({"cost": {"maxPerHour": 3}}, "spec.cost.maxPerHour"),
        ({"model": {"uri": "pvc://claim/model"}}, "--model"),
    ],
)
def test_bad_input_ends_with_1_and_names_the_field(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], spec: dict[str, Any], said: str
) -> None:
    assert cli.plan(["-f", written(tmp_path, deployment(**spec))]) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "is no YAML"),
        ("kind: ConfigMap", "no object of kind TurboDeployment"),
        ("- 1", "expected an object"),
        ("{kind: List, items: [1]}", "item 1: expected an object"),
        ("", "no object of kind TurboDeployment"),
    ],
)
def test_a_file_without_a_deployment_is_bad_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    assert cli.plan(["-f", str(path)]) == 1
    assert said in capsys.readouterr().err


def test_a_missing_file_and_binary_weights_are_bad_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.plan(["-f", str(tmp_path / "none.yaml")]) == 1
    assert "none.yaml: No such file or directory." in capsys.readouterr().err
    weights = tmp_path / "model.gguf"
    weights.write_bytes(b"GGUF\xff\xfe\x00")
    assert cli.plan(["-f", written(tmp_path, deployment()), "--model", str(weights)]) == 1
    assert "turbo inspect" in capsys.readouterr().err


def test_a_wrong_flag_is_bad_input_and_not_infeasible(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.plan(["--nonsense"]) == 1
    assert cli.plan(["--help"]) == 0


def test_no_client_of_a_cluster_and_no_torch_is_loaded(tmp_path: Path) -> None:
    file = written(tmp_path, deployment())
    code = (
        "import sys; from turbo_operator.cli import plan; status = plan(sys.argv[1:]);"
        "heavy = {'kopf', 'kubernetes', 'aiohttp', 'scipy', 'torch', 'transformers'} & set(sys.modules);"
        "sys.exit(f'loaded: {heavy}' if heavy else status)"
    )
    path = [entry for entry in sys.path if entry.endswith(("/operator", "/runtime"))]
    done = subprocess.run(
        [sys.executable, "-c", code, "-f", file],
        env={"PYTHONPATH": ":".join(path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_operator_says_which_setting_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TURBO_RUNTIME_IMAGE", "x")
    monkeypatch.setenv("TURBO_TYPO", "1")
    assert cli.operator([]) == 1
    assert "TURBO_TYPO" in capsys.readouterr().err
