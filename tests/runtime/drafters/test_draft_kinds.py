"""What a folder drafts with is told by its own configuration; one that cannot is refused in a sentence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from turbo_dev.eagle3_draft import write as write_eagle3
from turbo_dev.fitting import write as write_heads
from turbo_dev.tiny_engine import VOCABULARY, network
from turbo_dev.tiny_engine import write as write_model
from turbo_runtime.drafters.heads import Heads
from turbo_runtime.drafters.loader import DraftLoader, draft_bytes, read_selection
from turbo_runtime.drafters.target import Target
from turbo_runtime.models.compiled.elementwise_kernel import compile_elementwise
from turbo_runtime.models.runner import ModelRunner
from turbo_runtime.sampling.draw_kernel import compile_draw
from turbo_runtime.sampling.noise import Noise

LAYER_BYTES = 2 * 2 * 8 * 4  # of a token: keys and values, 2 KV heads of 8 elements in float32


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    folder = tmp_path_factory.mktemp("served")
    write_model(folder)
    runner = ModelRunner(network(), blocks=20, max_length=64)
    decoder = runner.decoder
    return Target("sha256:x", decoder.embedding, decoder.output_rows, runner, folder / "tokenizer.json")


@pytest.fixture
def folder(target: Target, tmp_path: Path) -> Path:
    assert target.runner is not None
    write_eagle3(tmp_path / "eagle", target, target.runner, torch.arange(40), (0, 1, 1))
    write_model(tmp_path / "small", layers=1)
    return tmp_path


def load(folder: Path, target: Target, **selection: object) -> tuple[dict[str, str], str]:
    """Versions by method and name, and the problem."""
    (folder / "drafts.json").write_text(json.dumps(selection))
    active = DraftLoader(target, Noise(VOCABULARY)).load(folder / "drafts.json")
    found = {**active.own, **active.named}
    return {name: draft.version for name, draft in found.items()}, active.problem


def edit(folder: Path, **values: object) -> None:
    document = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(document | values))


def test_every_kind_can_be_the_deployments_own_or_be_named(folder: Path, target: Target) -> None:
    named = {"a": "eagle", "b": {"layers": 1}, "c": "small"}
    versions, problem = load(folder, target, eagle3="eagle", model="small", named=named)
    assert problem == ""
    assert versions == {
        "eagle3": "v1", "model": "small", "a": "v1", "b": "first-1-layers", "c": "small"
    }  # fmt: skip
    # each folder once; the first layers have no cache of their own
    config = read_selection(folder / "drafts.json")
    stored = {name: (folder / name / "model.safetensors").stat().st_size for name in ("eagle", "small")}
    every = draft_bytes(config, torch.float32, models_elsewhere=False)
    assert every == (2 * LAYER_BYTES, stored["eagle"] + stored["small"])
    assert draft_bytes(config, torch.bfloat16, models_elsewhere=True) == (LAYER_BYTES / 2, stored["eagle"])


def test_a_draft_model_on_the_host_is_loaded_with_its_code_for_which_no_step_waits(
    folder: Path, target: Target
) -> None:
    compilers = compile_draw, compile_elementwise
    for compiler in compilers:
        compiler.cache_clear()
    assert load(folder, target, model="small")[1] == ""
    assert [compiler.cache_info().currsize for compiler in compilers] == [1, 1]


def test_heads_take_what_they_have_on_disk_and_what_they_copy_of_the_model(tmp_path: Path) -> None:
    rows = torch.zeros(VOCABULARY, 32)
    words = torch.arange(20)
    made = Heads(rows, rows[words], words, heads=2, markov_rank=4)
    write_heads(tmp_path / "heads", made, Target("d", rows, lambda ids: rows[ids]), "1")
    (tmp_path / "drafts.json").write_text('{"heads": "heads", "named": {"a": "heads", "b": "gone"}}')
    stored = (tmp_path / "heads" / "heads.safetensors").stat().st_size
    found = draft_bytes(read_selection(tmp_path / "drafts.json"), torch.float32, models_elsewhere=False)
    assert found == (0, stored + (2 * 20 * 32 + VOCABULARY * 4) * 4)


def test_a_name_of_another_method_is_refused(folder: Path, target: Target) -> None:
    for method, kind in (("heads", "eagle"), ("model", "eagle"), ("eagle3", "small")):
        found = {"eagle": "eagle3", "small": "model"}[kind]
        problem = load(folder, target, **{method: kind})[1]
        assert problem == f"{folder / kind} is a draft of method {found}; name it as {found}"


@pytest.mark.parametrize("layers", [0, 2, 7])
def test_as_many_layers_as_the_model_has_are_no_draft(folder: Path, target: Target, layers: int) -> None:
    problem = load(folder, target, model={"layers": layers})[1]
    assert problem == f"layers is {layers} and the model has 2; draft with fewer, at least 1"


def test_a_model_with_another_tokenizer_is_refused(folder: Path, target: Target) -> None:
    tokenizer = json.loads((folder / "small" / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    words["a"], words["b"] = words["b"], words["a"]
    (folder / "small" / "tokenizer.json").write_text(json.dumps(tokenizer))
    problem = load(folder, target, model="small")[1]
    said = f"its tokenizer is not the served model's: the id of 'a' is {words['a']} and not {words['b']};"
    assert said in problem
    (folder / "small" / "tokenizer.json").unlink()
    assert "tokenizer.json cannot be read" in load(folder, target, model="small")[1]


@pytest.mark.parametrize("method", ["eagle3", "model"])
def test_a_cache_for_which_there_is_no_memory_is_refused(folder: Path, target: Target, method: str) -> None:
    source = {"eagle3": "eagle", "model": "small"}[method]
    full = replace(target, free_memory=lambda _: 320 * LAYER_BYTES - 1)
    problem = load(folder, full, **{method: source})[1]
    assert "its KV cache takes 0.0 GiB and 0.0 GiB are free on cpu; name it as the server starts" in problem
    assert load(folder, replace(full, free_memory=lambda _: 320 * LAYER_BYTES), **{method: source})[1] == ""


def test_an_eagle3_draft_of_another_model_is_refused_by_what_differs(folder: Path, target: Target) -> None:
    eagle = folder / "eagle"
    assert (
        "is served; name one that was trained for it"
        in load(folder, replace(target, digest="sha256:y"), eagle3="eagle")[1]
    )
    edit(eagle, eagle_aux_hidden_state_layer_ids=[0, 1, 2])
    assert "it reads the layers (0, 1, 2) and the model has 2" in load(folder, target, eagle3="eagle")[1]
    edit(eagle, eagle_aux_hidden_state_layer_ids=[0, 1])
    assert (
        "fc.weight is (32, 96) and its configuration wants (32, 64)"
        in load(folder, target, eagle3="eagle")[1]
    )
    edit(eagle, eagle_aux_hidden_state_layer_ids=[0, 1, 1])
    tensors = load_file(eagle / "model.safetensors")
    save_file(tensors | {"d2t": tensors["d2t"] + VOCABULARY}, eagle / "model.safetensors")
    assert "it drafts tokens that the model does not have" in load(folder, target, eagle3="eagle")[1]
    save_file(tensors | {"norm.weight": tensors["norm.weight"] * torch.nan}, eagle / "model.safetensors")
    assert "norm.weight has values that are no numbers" in load(folder, target, eagle3="eagle")[1]
    edit(eagle, speculators_model_type="dflash")
    assert "cannot draft with method dflash" in load(folder, target, eagle3="eagle")[1]


def test_an_older_folder_and_one_with_everything_of_its_own_are_read(folder: Path, target: Target) -> None:
    eagle = folder / "eagle"
    tensors = load_file(eagle / "model.safetensors")
    older = {name.replace("layers.0.", "midlayer."): value for name, value in tensors.items()}
    older |= {"embed_tokens.weight": target.embedding.clone(), "input_norm.weight": torch.ones(96)}
    older |= {f"fc_norm.{i}.weight": torch.ones(32) for i in range(3)}
    save_file(older, eagle / "model.safetensors")
    edit(eagle, norm_before_fc=True, fc_norm=True, norm_output=True, turbo=None)
    assert load(folder, target, eagle3="eagle") == ({"eagle3": "eagle"}, "")


def test_of_a_draft_on_its_own_device_no_start_sizes_the_cache(folder: Path, target: Target) -> None:
    elsewhere = replace(target, free_memory=lambda _: 0, draft_device=torch.device("meta"))
    problem = load(folder, elsewhere, model="small")[1]
    assert "0.0 GiB are free on meta; lower --kv-cache-gib" in problem
