"""`turbo distill --method eagle3` writes the format of `speculators`."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from turbo_dev.tiny_engine import network, write
from turbo_runtime.cli import distill
from turbo_runtime.cli.drafts import drafts
from turbo_runtime.contract.config import RuntimeConfig
from turbo_runtime.contract.endpoints import PERMANENT_ERROR
from turbo_runtime.distill import recipe
from turbo_runtime.distill.data.responses import Completion, TokenizedPrompt
from turbo_runtime.distill.target import TargetModel
from turbo_runtime.drafters.draft_memory import MEMORY_FILE
from turbo_runtime.files import checkpoint_digest
from turbo_runtime.messages import SamplingParams

LAYERS, WIDTH = 8, 32
FLAGS = ["--method", "eagle3", "--completions", "--max-tokens", "24", "--temperature", "0.8", "--domain", "d"]
FLAGS += ["--epochs", "2", "--depth", "3", "--threads", "1", "--device", "cpu", "--dtype", "float32"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("eagle3")
    write(made / "model", layers=LAYERS)
    write(made / "shallow")
    lots = random.Random(5)
    words = ["".join(lots.choice("abcdef{}:\n") for _ in range(lots.randint(3, 30))) for _ in range(60)]
    (made / "prompts.jsonl").write_text("".join(json.dumps({"prompt": word}) + "\n" for word in words))
    return made


def run(folder: Path, out: str, model: str = "model", *flags: str) -> int:
    prompts = str(folder / "prompts.jsonl")
    return distill.distill(
        [str(folder / model), "--prompts", prompts, "--out", str(folder / out), *FLAGS, *flags]
    )


@pytest.fixture(scope="module")
def made(folder: Path) -> Path:
    assert run(folder, "draft") == 0
    return folder / "draft"


def test_its_speedup_is_measured_in_the_engine_that_serves_it(made: Path) -> None:
    (domain,) = json.loads((made / "evaluation.json").read_text())["domains"].values()
    assert domain["speedups"]
    for speedup in domain["speedups"]:
        assert speedup["differing"] == 0
        assert speedup["after"] > 0


def test_the_artefact_has_the_tensors_and_the_configuration_of_speculators(made: Path) -> None:
    config = json.loads((made / "config.json").read_text())
    tensors = load_file(made / "model.safetensors")
    size = config["draft_vocab_size"]
    assert config["speculators_model_type"] == "eagle3"
    assert config["eagle_aux_hidden_state_layer_ids"] == [2, 4, 5]
    assert config["transformer_layer_config"]["model_type"] == "llama"
    assert config["speculators_config"]["proposal_methods"][0]["speculative_tokens"] == 3
    assert tensors["fc.weight"].shape == (WIDTH, 3 * WIDTH)
    assert tensors["layers.0.self_attn.q_proj.weight"].shape[1] == 2 * WIDTH
    assert tensors["lm_head.weight"].shape == (size, WIDTH)
    ids = torch.arange(size) + tensors["d2t"]
    assert torch.equal(tensors["t2d"].nonzero().squeeze(1), ids)
    head = network("eager", layers=LAYERS).get_output_embeddings().weight
    assert torch.equal(tensors["lm_head.weight"], head[ids])


def test_a_second_run_comes_to_the_same_digest_and_a_finished_one_says_so(
    folder: Path, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder, "again") == 0
    assert checkpoint_digest(folder / "again") == checkpoint_digest(made)
    capsys.readouterr()
    assert run(folder, "draft") == 0
    assert "is done already" in capsys.readouterr().err


def test_drafts_tells_of_it(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert drafts(["show", str(made)]) == 0
    told = capsys.readouterr().out
    for part in ("eagle3", "d-", "answers, training", "for all tenants", "accepted by position"):
        assert part in told
    assert [file.name for file in made.glob("*.safetensors")] == ["model.safetensors"]  # as vLLM looks
    assert (made / MEMORY_FILE).is_file()


def test_a_model_of_too_few_layers_is_refused_in_a_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder, "none", "shallow") == PERMANENT_ERROR
    told = capsys.readouterr().err
    assert "eagle3 needs a model of 7 layers or more, and this one has 2; train heads instead" in told


def test_auto_trains_nothing_where_its_pilot_says_that_no_draft_pays(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Random weights say nothing that could be guessed."""
    assert run(folder, "vain", "model", "--method", "auto", "--no-speedup") == PERMANENT_ERROR
    assert "a pilot says that no draft pays here (heads 1." in capsys.readouterr().err
    assert not (folder / "vain" / "config.json").exists()


def test_auto_trains_what_its_pilot_says_to_pay_and_keeps_what_it_found(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe, "MIN_SPEEDUP", 0.0)
    flags = ("--method", "auto", "--no-speedup")
    assert run(folder, "auto", "model", *flags) == 0
    told = capsys.readouterr().err
    draft = json.loads((folder / "auto" / "config.json").read_text())
    training = (draft.get("turbo") or draft)["training"]
    expected = {name: one["acceptance_length"] / (1 + one["cost"]) for name, one in training["pilot"].items()}
    assert set(expected) == {"heads", "eagle3"}
    chosen = max(expected, key=lambda name: expected[name])
    assert f"a pilot says that {chosen} pays most" in told
    assert ("turbo" in draft) == (chosen == "eagle3")
    assert run(folder, "auto", "model", *flags) == 0
    assert "is done already" in capsys.readouterr().err


def test_the_streams_are_those_that_transformers_feeds_to_the_layers(folder: Path) -> None:
    served = TargetModel(
        RuntimeConfig(
            str(folder / "model"),
            device="cpu",
            dtype="float32",
            threads=1,
            max_num_seqs=8,
            max_num_batched_tokens=64,
        )
    )
    said = [
        Completion(TokenizedPrompt("training", "d", tuple(range(5, 5 + length))), (7, 9, 11, 200, 3))
        for length in (4, 30, 90)
    ]
    layers = (2, 4, 5)
    reference = network("eager", layers=LAYERS)
    for one, text in zip(said, served.texts(said, SamplingParams(temperature=1.0), layers), strict=True):
        tokens = torch.tensor([[*one.request.prompt, *one.tokens]])
        found = reference(tokens[:, :-1], output_hidden_states=True).hidden_states
        wanted = torch.cat([found[layer][0] for layer in layers], 1)
        torch.testing.assert_close(text.streams, wanted, atol=1e-3, rtol=1e-3)
        assert torch.equal(text.tokens, tokens[0, 1:])
        assert torch.equal(text.answer.hidden, text.streams[-len(one.tokens) :])
        assert text.answer.tokens.tolist() == list(one.tokens)
