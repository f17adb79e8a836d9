"""`turbo fetch` against the hub's own client, and a server that answers as the hub does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from safetensors.numpy import save_file

from turbo_dev import hub
from turbo_dev.controlplane import free_port
from turbo_dev.server_process import PATIENCE
from turbo_runtime.contract.documents import PROGRESS_PATH, JobProgress, ModelInfo
from turbo_runtime.model_files import hub_cache
from turbo_runtime.model_files.hub_cache import ChecksumError

MODEL = "acme/tiny"
CONFIG = {
    "architectures": ["MistralForCausalLM"],
    "num_attention_heads": 2,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "vocab_size": 10,
    "max_position_embeddings": 256,
}
CONSOLIDATED, ADAPTER = "acme/consolidated", "acme/adapter"
OTHERS = {
    CONSOLIDATED: ("config.json", "consolidated.safetensors"),
    ADAPTER: ("adapter_config.json", "adapter_model.safetensors"),
}
COMMANDS = "import sys\nfrom turbo_runtime.cli import {0}\nsys.exit({0}.{1}(sys.argv[1:]))"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    model = folder / MODEL
    (model / "original").mkdir(parents=True)
    (model / "config.json").write_text(json.dumps(CONFIG))
    (model / "tokenizer.json").write_text("{}")
    save_file({"w": np.random.default_rng(0).random(8_000_000, np.float32)}, model / "model.safetensors")
    for again in ("pytorch_model.bin", "consolidated.safetensors"):
        (model / again).write_bytes(b"the same weights again")
    (model / "original" / "params.json").write_text("{}")
    for name, files in OTHERS.items():
        (folder / name).mkdir(parents=True)
        for file in files:
            (folder / name / file).write_text("{}")
    return folder


class Machine:
    """A hub, and a cache on disk that is empty at first."""

    def __init__(self, served: hub.Hub, folder: Path) -> None:
        self.hub, self.folder = served, folder
        self.root = folder / "hub" / "models--acme--tiny"
        self.environment = os.environ | {
            "HF_ENDPOINT": served.url,
            "HF_HUB_CACHE": str(folder / "hub"),
            "HF_HOME": str(folder / "home"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }

    def start(self, command: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        module = "serve" if command == "inspect" else command
        program = [sys.executable, "-c", COMMANDS.format(module, command), *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            program, env=self.environment | environment, stdout=pipe, stderr=pipe, text=True
        )

    def run(self, command: str, *arguments: str, **environment: str) -> tuple[int, str]:
        """Exit status and last line."""
        with self.start(command, *arguments, **environment) as process:
            out, err = process.communicate()
        return process.returncode, (out if process.returncode == 0 else err).splitlines()[-1]

    @property
    def commit(self) -> str:
        return hub.commit(self.hub.folder / MODEL)

    def snapshot(self, model: str = MODEL) -> Path:
        root = self.folder / "hub" / f"models--{model.replace('/', '--')}"
        return root / "snapshots" / hub.commit(self.hub.folder / model)

    def files(self, model: str = MODEL) -> set[str]:
        return {path.name for path in self.snapshot(model).iterdir()}


@pytest.fixture
def machine(models: Path, tmp_path: Path) -> Iterator[Machine]:
    with hub.serve(models, tmp_path / "log") as served:
        yield Machine(served, tmp_path)


AWAY = {"HF_ENDPOINT": "http://127.0.0.1:9"}


def test_a_second_fetch_downloads_nothing_and_then_neither_it_nor_an_inspection_needs_the_hub(
    machine: Machine,
) -> None:
    _, before = machine.run("inspect", MODEL)
    read = machine.hub.downloaded()
    assert read < 100_000  # heads and samples
    status, output = machine.run("fetch", MODEL)
    assert (status, "0 were there" in output) == (0, True)
    assert machine.files() == {"config.json", "tokenizer.json", "model.safetensors"}
    weights = (machine.hub.folder / MODEL / "model.safetensors").read_bytes()
    assert (machine.root / "snapshots" / machine.commit / "model.safetensors").read_bytes() == weights
    assert machine.hub.downloaded() - read == len(weights)
    assert machine.run("fetch", MODEL)[1].startswith("Downloaded 0 bytes")
    assert machine.hub.downloaded() - read == len(weights)
    for arguments in ([MODEL], [MODEL, f"--commit={machine.commit}"]):
        assert machine.run("fetch", *arguments, **AWAY)[0] == 0
    status, after = machine.run("inspect", MODEL, **AWAY)
    assert (status, ModelInfo.from_json(after)) == (0, ModelInfo.from_json(before))


def test_of_a_cache_that_is_whole_nothing_is_written(machine: Machine) -> None:
    assert machine.run("fetch", MODEL)[0] == 0
    before = stamps(machine.folder / "hub")
    assert machine.run("fetch", MODEL)[0] == 0
    assert stamps(machine.folder / "hub") == before


def stamps(folder: Path) -> dict[str, int]:
    return {str(path): path.lstat().st_mtime_ns for path in (folder, *folder.rglob("*"))}


def test_a_fetch_that_was_killed_goes_on_within_the_file_where_it_was(machine: Machine) -> None:
    machine.hub.bytes_per_second = 8e6
    port = free_port("127.0.0.1")
    process = machine.start("fetch", MODEL, f"--progress-port={port}")
    part = None
    with process:
        while part is None or part.stat().st_size == 0:
            part = next(iter(machine.root.rglob("*.incomplete")), None)
            assert process.poll() is None
            time.sleep(0.05)
        output = JobProgress.from_json(httpx.get(f"http://127.0.0.1:{port}{PROGRESS_PATH}").text)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 128 + signal.SIGTERM
    assert 0 < output.done < output.total
    assert machine.run("fetch", MODEL, **AWAY)[0] == 1, "what is there is not whole"
    kept = part.stat().st_size
    machine.hub.bytes_per_second = None
    before = machine.hub.downloaded()
    assert machine.run("fetch", MODEL)[0] == 0
    assert machine.hub.downloaded() - before == 32_000_080 - kept
    assert any(each["start"] == kept for each in machine.hub.answers())


def test_what_has_another_checksum_is_not_kept(machine: Machine) -> None:
    machine.hub.corrupt = {"model.safetensors"}
    status, output = machine.run("fetch", MODEL)
    assert (status, "model.safetensors" in output, "checksum" in output) == (1, True, True)
    assert not list(machine.root.rglob("*.incomplete"))
    machine.hub.corrupt = set()
    assert machine.run("fetch", MODEL)[0] == 0


@pytest.mark.parametrize("checksum", ["../../../escaped", "", "0" * 39, "G" * 40])
def test_what_the_hub_calls_a_checksum_is_a_name_of_no_other_file(machine: Machine, checksum: str) -> None:
    machine.hub.checksum = checksum
    status, output = machine.run("fetch", MODEL)
    assert (status != 0, "checksum" in output) == (True, True)
    assert not list(machine.folder.parent.rglob("*escaped*"))


@pytest.mark.parametrize("name", ["../../../escaped.safetensors", "/escaped.safetensors", "a/../../escaped"])
def test_what_the_hub_calls_a_file_is_a_path_below_its_folder(machine: Machine, name: str) -> None:
    machine.hub.odd_file = name
    status, output = machine.run("fetch", MODEL)
    assert (status, name in output) == (3, True)
    assert not list(machine.folder.rglob("*escaped*"))


@pytest.mark.parametrize("revision", ["../../../escaped", "a/../../../../escaped", "/escaped"])
def test_a_revision_is_no_path_out_of_the_folder_of_refs(machine: Machine, revision: str) -> None:
    assert machine.run("fetch", MODEL)[0] == 0
    pinned = [MODEL, f"--revision={revision}", f"--commit={machine.commit}"]
    for arguments in (pinned, [f"{MODEL}@{revision}"]):
        for environment in ({}, AWAY):
            status, output = machine.run("fetch", *arguments, **environment)
            assert (status, f"revision {revision}" in output) == (3, True)
    assert not list(machine.folder.parent.rglob("*escaped*"))


@pytest.mark.parametrize("is_linked", [True, False])
def test_a_file_of_another_size_is_downloaded_again(machine: Machine, is_linked: bool) -> None:
    assert machine.run("fetch", MODEL)[0] == 0
    file = machine.snapshot() / "model.safetensors"
    blob = file.resolve()
    content = blob.read_bytes()
    if is_linked:
        blob.write_bytes(content[:1000])
    else:  # as where links cannot be made
        file.unlink()
        blob.rename(file)
        file.write_bytes(content[:1000])
    assert machine.run("fetch", MODEL)[0] == 0
    assert file.read_bytes() == content


def test_a_configuration_without_weights_is_no_model_that_will_do(machine: Machine) -> None:
    assert machine.run("fetch", MODEL)[0] == 0
    (machine.snapshot() / "model.safetensors").unlink()
    for command in ("fetch", "inspect"):
        status, output = machine.run(command, MODEL, **AWAY)
        assert (status, "HF_ENDPOINT" in output) == (1, True)
    assert machine.run("fetch", MODEL)[0] == 0
    for command in ("fetch", "inspect"):
        assert machine.run(command, MODEL, **AWAY)[0] == 0


def test_a_file_that_was_lost_needs_the_hub_and_one_that_no_fetch_brings_does_not(machine: Machine) -> None:
    """Found in review: a fetch without the hub called the model whole, and pods did not find all of it."""
    assert machine.run("fetch", MODEL)[0] == 0
    (machine.snapshot() / "pytorch_model.bin").symlink_to(machine.folder / "nowhere")
    assert machine.run("fetch", MODEL, **AWAY)[0] == 0
    (machine.snapshot() / "tokenizer.json").resolve().unlink()
    status, output = machine.run("fetch", MODEL, **AWAY)
    assert (status, "the hub cannot be reached" in output) == (1, True), output
    assert machine.run("fetch", MODEL)[0] == 0
    assert machine.run("fetch", MODEL, **AWAY)[0] == 0


@pytest.mark.parametrize("index", ["{}", "[]", '{"weight_map": []}', '{"weight_map": {"w": 1}}', "{"])
def test_an_index_that_lists_no_files_is_of_no_model_that_will_do(machine: Machine, index: str) -> None:
    assert machine.run("fetch", MODEL)[0] == 0
    (machine.snapshot() / "model.safetensors.index.json").write_text(index)
    status, output = machine.run("fetch", MODEL, **AWAY)
    assert (status, "the hub cannot be reached" in output) == (1, True), output


def test_a_path_is_no_model_to_fetch(machine: Machine) -> None:
    """Found in review: of a folder that was there it said that there was no folder."""
    status, output = machine.run("fetch", str(machine.folder))
    assert (status, f"{machine.folder} is no hub id such as org/model" in output) == (3, True), output


def test_where_a_download_fails_the_others_end_and_none_begins() -> None:
    """Found in review: a fetch that had failed went on downloading until all other files were there.

    Later, workers took further files from the queue while it was being emptied.
    """
    begun, is_slow = list[int](), threading.Event()

    def download(number: int, count: Callable[[int], object]) -> None:
        begun.append(number)
        if number == 0:
            is_slow.wait(PATIENCE)
            raise ChecksumError("wrong")
        for _ in range(60_000):
            count(1)
            is_slow.set()
            time.sleep(0.001)

    start = time.monotonic()
    with pytest.raises(ChecksumError, match="wrong"):
        hub_cache.download_all(download, range(20_000), lambda _: None)
    assert time.monotonic() - start < 30
    assert len(begun) <= hub_cache.WORKERS


def test_consolidated_weights_are_left_out_only_beside_others(machine: Machine) -> None:
    assert machine.run("fetch", MODEL, CONSOLIDATED)[0] == 0
    assert "consolidated.safetensors" not in machine.files()
    assert machine.files(CONSOLIDATED) == set(OTHERS[CONSOLIDATED])


def test_an_adapter_comes_along_at_its_commit_and_then_needs_no_hub(machine: Machine) -> None:
    commit = hub.commit(machine.hub.folder / ADAPTER)
    arguments = [MODEL, f"{ADAPTER}@{commit}", f"--commit={machine.commit}"]
    assert machine.run("fetch", *arguments)[0] == 0
    assert machine.files(ADAPTER) == set(OTHERS[ADAPTER])
    assert machine.run("fetch", *arguments, **AWAY)[0] == 0
    (machine.snapshot(ADAPTER) / "adapter_model.safetensors").unlink()
    assert machine.run("fetch", *arguments, **AWAY)[0] == 1
    assert machine.run("fetch", f"{ADAPTER}@{'0' * 40}")[0] == 3, "a commit that the hub does not have"


def test_a_gated_model_is_a_sentence_that_names_the_token_and_permanent(
    machine: Machine, tmp_path: Path
) -> None:
    machine.hub.gated = {MODEL}
    message = tmp_path / "message"
    status, output = machine.run("fetch", MODEL, f"--termination-message={message}")
    assert (status, "HF_TOKEN" in output) == (3, True)
    assert message.read_text() == output


def test_a_volume_without_room_is_a_sentence_with_what_is_missing(machine: Machine) -> None:
    small = machine.folder / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a file system of its own needs root")
    try:
        status, output = machine.run("fetch", MODEL, HF_HUB_CACHE=str(small))
    finally:
        subprocess.run(["umount", str(small)], check=True)
    assert status == 1
    assert "0.0 GB are missing" not in output
    assert "enlarge it" in output


def test_where_nothing_is_kept_the_hub_is_needed(machine: Machine) -> None:
    status, output = machine.run("fetch", MODEL, **AWAY)
    assert (status, "HF_ENDPOINT" in output) == (1, True)
