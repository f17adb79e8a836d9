"""`turbo fetch` and `turbo inspect` of a model in a bucket, against a real S3 server."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import save_file

from turbo_dev import object_store
from turbo_dev.binaries import GoMissingError
from turbo_dev.controlplane import free_port
from turbo_dev.object_store import ObjectStore
from turbo_dev.server_process import PATIENCE
from turbo_runtime.contract.documents import PROGRESS_PATH, JobProgress, ModelInfo
from turbo_runtime.model_files import s3
from turbo_runtime.model_files.source import ModelError

CONFIG = {
    "architectures": ["MistralForCausalLM"],
    "num_attention_heads": 2,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "vocab_size": 10,
    "max_position_embeddings": 256,
}
COMMANDS = "import sys\nfrom turbo_runtime.cli import {0}\nsys.exit({0}.{1}(sys.argv[1:]))"
BUCKET, PREFIX = "models", "acme/tiny"
MODEL = f"s3://{BUCKET}/{PREFIX}"
AWAY = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    (folder / "original").mkdir()
    (folder / "templates").mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "templates" / "tools.jinja").write_text("{{ messages }}")
    (folder / "empty.txt").touch()
    save_file({"w": np.random.default_rng(0).random(3_000_000, np.float32)}, folder / WEIGHTS)
    (folder / "pytorch_model.bin").write_bytes(b"the same weights again")
    (folder / "original" / "params.json").write_text("{}")
    return folder


class Machine:
    """A store, and a folder of copies that is empty at first."""

    def __init__(self, store: ObjectStore, model: Path, folder: Path) -> None:
        self.store, self.model, self.root = store, model, folder / "s3"
        self.client = store.client()
        aws = {name for name in os.environ if name.startswith("AWS_")}
        self.environment = {name: value for name, value in os.environ.items() if name not in aws}
        self.environment |= store.environment | {"TURBO_S3_CACHE": str(self.root), "HF_HUB_OFFLINE": "1"}

    def start(self, command: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        module = "serve" if command == "inspect" else command
        program = [sys.executable, "-c", COMMANDS.format(module, command), *arguments]
        pipe = subprocess.PIPE
        own = {name: value for name, value in (self.environment | environment).items() if value}
        return subprocess.Popen(program, env=own, stdout=pipe, stderr=pipe, text=True)

    def run(self, command: str, *arguments: str, **environment: str) -> tuple[int, str]:
        """Exit status and last line."""
        with self.start(command, *arguments, **environment) as process:
            out, err = process.communicate()
        return process.returncode, (out if process.returncode == 0 else err).splitlines()[-1]

    def inspect(self, **environment: str) -> ModelInfo:
        status, output = self.run("inspect", MODEL, **environment)
        assert status == 0, output
        return ModelInfo.from_json(output)

    def put(self, name: str, content: bytes, prefix: str = PREFIX) -> None:
        self.client.put_object(Bucket=BUCKET, Key=f"{prefix}/{name}", Body=content)

    def folder(self, revision: str | None) -> Path:
        return self.root / BUCKET / PREFIX / str(revision)

    def files(self, revision: str | None) -> set[str]:
        folder = self.folder(revision)
        return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def machine(model: Path, tmp_path: Path) -> Iterator[Machine]:
    try:
        with object_store.serve(tmp_path / "store") as store:
            object_store.upload(store, BUCKET, PREFIX, model)
            yield Machine(store, model, tmp_path)
    except GoMissingError as missing:
        pytest.skip(f"no S3 server: {missing}")


def test_a_second_fetch_downloads_nothing_and_then_neither_it_nor_an_inspection_needs_the_store(
    machine: Machine,
) -> None:
    before = machine.inspect()
    assert machine.store.downloaded < 100_000, "heads alone are read"
    status, output = machine.run("fetch", MODEL, f"--commit={before.revision}")
    assert (status, f"is in {machine.folder(before.revision)}." in output) == (0, True)
    used = {"config.json", "tokenizer.json", "templates/tools.jinja", "empty.txt", WEIGHTS}
    assert machine.files(before.revision) == used
    for name in used:
        assert (machine.folder(before.revision) / name).read_bytes() == (machine.model / name).read_bytes()
    read = machine.store.downloaded
    assert machine.run("fetch", MODEL)[1].startswith("Downloaded 0 bytes")
    assert machine.store.downloaded - read < 100_000
    for arguments in ([MODEL], [MODEL, f"--commit={before.revision}"]):
        assert machine.run("fetch", *arguments, **AWAY)[0] == 0
    assert machine.inspect(**AWAY) == before
    status, output = machine.run("inspect", str(machine.folder(before.revision)))
    assert ModelInfo.from_json(output).digest == before.digest


def test_of_a_copy_that_is_whole_nothing_is_written(machine: Machine) -> None:
    assert machine.run("fetch", MODEL)[0] == 0
    before = stamps(machine.root)
    assert machine.run("fetch", MODEL)[0] == 0
    assert stamps(machine.root) == before


def stamps(folder: Path) -> dict[str, int]:
    return {str(path): path.lstat().st_mtime_ns for path in (folder, *folder.rglob("*"))}


def test_a_fetch_that_was_killed_goes_on_within_the_file_where_it_was(machine: Machine) -> None:
    machine.store.bytes_per_second = 4e6
    port = free_port("127.0.0.1")
    process = machine.start("fetch", MODEL, f"--progress-port={port}")
    part = None
    with process:
        while part is None or part.stat().st_size < 1 << 20:
            part = next(iter(machine.root.rglob(f"{WEIGHTS}.*.incomplete")), None)
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        output = JobProgress.from_json(httpx.get(f"http://127.0.0.1:{port}{PROGRESS_PATH}").text)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 128 + signal.SIGTERM
    assert 0 < output.done < output.total
    assert machine.run("fetch", MODEL, **AWAY)[0] == 1, "what is there is not whole"
    kept = part.stat().st_size
    machine.store.bytes_per_second = None
    before = machine.store.downloaded
    status, said = machine.run("fetch", MODEL)
    small = sum((machine.model / name).stat().st_size for name in ("tokenizer.json", "templates/tools.jinja"))
    assert (status, f"{kept + small} were there" in said) == (0, True), said
    left = (machine.model / WEIGHTS).stat().st_size - kept
    assert left <= machine.store.downloaded - before < left + 100_000
    assert (part.parent / WEIGHTS).read_bytes() == (machine.model / WEIGHTS).read_bytes()


def test_a_connection_that_is_cut_is_made_again_where_it_was(machine: Machine) -> None:
    machine.store.cut_after = 6_000_000
    assert machine.run("fetch", MODEL)[0] == 0
    assert machine.store.cut_after is None
    assert machine.store.downloaded < 14_000_000


def test_two_that_fetch_at_once_download_once(machine: Machine) -> None:
    machine.store.bytes_per_second = 10e6
    both = [machine.start("fetch", MODEL) for _ in range(2)]
    outputs = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert machine.store.downloaded < 14_000_000


@pytest.mark.parametrize("how", ["one part", "several parts", "with a sha256"])
def test_what_has_another_checksum_is_not_kept(machine: Machine, how: str) -> None:
    content, key = (machine.model / WEIGHTS).read_bytes(), f"{PREFIX}/{WEIGHTS}"
    if how == "several parts":
        object_store.upload_in_parts(machine.client, BUCKET, key, cut(content, 5 << 20, 10 << 20))
    elif how == "with a sha256":
        machine.client.put_object(Bucket=BUCKET, Key=key, Body=content, ChecksumAlgorithm="SHA256")
    stored = machine.store.folder / BUCKET / key
    with stored.open("r+b") as file:  # a disk that forgets
        file.seek(7_000_000)
        file.write(b"\0" * 64)
    status, output = machine.run("fetch", MODEL)
    assert (status, WEIGHTS in output, "checksum" in output) == (1, True, True), output
    assert not list(machine.root.rglob("*.incomplete"))
    stored.write_bytes(content)
    assert machine.run("fetch", MODEL)[0] == 0


def cut(content: bytes, *places: int) -> list[bytes]:
    return [content[start:end] for start, end in zip((0, *places), (*places, len(content)), strict=True)]


def test_parts_of_unlike_sizes_give_no_checksum_and_are_fetched(machine: Machine) -> None:
    content, key = (machine.model / WEIGHTS).read_bytes(), f"{PREFIX}/{WEIGHTS}"
    object_store.upload_in_parts(machine.client, BUCKET, key, cut(content, 6_000_000, 11_500_000))
    status, output = machine.run("fetch", MODEL)
    assert status == 0, output


REFUSALS = [
    (
        MODEL,
        {"AWS_SECRET_ACCESS_KEY": "wrong"},
        "denies access (SignatureDoesNotMatch): set AWS_ACCESS_KEY_ID",
    ),
    (MODEL, {"AWS_ACCESS_KEY_ID": "nobody"}, "No user exists with the provided access key"),
    (MODEL, {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "denies access (AccessDenied): set AWS_"),
    ("s3://nobody-has-it/tiny", {}, "there is no bucket nobody-has-it"),
    (f"s3://{BUCKET}/acme/tin", {}, f"bucket {BUCKET} has nothing below acme/tin/"),
    (f"s3://{BUCKET}/acme", {}, "there is no config.json"),
    (MODEL, {"AWS_ENDPOINT_URL": "nowhere"}, "Invalid endpoint: nowhere: correct AWS_ENDPOINT_URL"),
]


@pytest.mark.parametrize("command", ["fetch", "inspect"])
def test_what_the_store_refuses_is_a_sentence_and_permanent(machine: Machine, command: str) -> None:
    message = machine.root.parent / "message"
    for uri, environment, sentence in REFUSALS:
        status, output = machine.run(command, uri, f"--termination-message={message}", **environment)
        assert (status, sentence in output) == (3, True), output
        assert message.read_text() == output
    assert not list(machine.root.rglob("config.json"))


def test_a_store_that_does_not_answer_may_do_so_later(machine: Machine) -> None:
    for command in ("fetch", "inspect"):
        status, output = machine.run(command, MODEL, **AWAY)
        assert (status, "AWS_ENDPOINT_URL" in output) == (1, True), output


def test_a_bucket_that_has_changed_has_another_revision_and_leaves_the_first_as_it_is(
    machine: Machine,
) -> None:
    first = machine.inspect().revision
    assert machine.run("fetch", MODEL, f"--commit={first}")[0] == 0
    before = {name: (machine.folder(first) / name).read_bytes() for name in machine.files(first)}
    machine.put("tokenizer.json", b'{"version": "2"}')
    second = machine.inspect().revision
    assert second != first
    assert machine.run("fetch", MODEL, f"--commit={first}")[0] == 0, "what is there is not asked for"
    assert machine.run("fetch", MODEL, f"--commit={second}")[0] == 0
    assert machine.run("fetch", MODEL, f"--commit={first}")[0] == 0
    assert (machine.folder(first).parent / ".revision").read_text() == first, "what was fetched last"
    assert {name: (machine.folder(first) / name).read_bytes() for name in machine.files(first)} == before
    assert (machine.folder(second) / "tokenizer.json").read_bytes() == b'{"version": "2"}'
    status, output = machine.run("inspect", MODEL, f"--revision={first}")
    assert ModelInfo.from_json(output).revision == first, "as where adapters of it change"
    shutil.rmtree(machine.folder(first))
    status, output = machine.run("inspect", MODEL, f"--revision={first}")
    assert (status, f"its revision was {first}, and is {second}" in output) == (3, True), output
    machine.put("tokenizer.json", b"{}3")
    third = machine.inspect().revision
    machine.put("tokenizer.json", b"{}45")
    status, output = machine.run("fetch", MODEL, f"--commit={third}")
    assert (status, f"its revision was {third}, and is " in output) == (3, True), output


def test_what_changes_while_it_is_fetched_is_not_mixed(machine: Machine) -> None:
    machine.put("model-2.safetensors", (machine.model / WEIGHTS).read_bytes())
    revision = machine.inspect().revision
    machine.store.bytes_per_second = 4e6
    with machine.start("fetch", MODEL) as process:
        while not list(machine.root.rglob(f"{WEIGHTS}.*.incomplete")):
            assert process.poll() is None
            time.sleep(0.05)
        for name in (WEIGHTS, "model-2.safetensors"):
            machine.put(name, os.urandom(12_000_000))
        machine.store.cut_after = 1
        _, output = process.communicate()
    assert (process.returncode, "has changed since the bucket was listed" in output) == (1, True), output
    assert "config.json" not in machine.files(revision)


def test_a_listing_of_more_than_a_page_is_read_whole(machine: Machine) -> None:
    many = machine.root.parent / "many"
    (many / "shards").mkdir(parents=True)
    for number in range(1_001):
        (many / "shards" / f"{number:04}.txt").write_text(str(number))
    (many / "config.json").write_text(json.dumps(CONFIG))
    object_store.upload(machine.store, "many", "a/b", many)
    status, output = machine.run("fetch", "s3://many/a/b/")
    assert status == 0, output
    assert len(list((machine.root / "many" / "a" / "b").rglob("*.txt"))) == 1_001


@pytest.mark.parametrize("name", ["../escaped", "a/../../b", "a//b", "./a", "/a", "a\0b"])
def test_no_object_becomes_a_file_elsewhere(name: str) -> None:
    with pytest.raises(ModelError, match="no file can have"):
        s3.build_snapshot(MODEL, [(f"{PREFIX}/{name}", 1, '"e"')])


def test_a_prefix_of_many_models_is_refused() -> None:
    entries: Any = ((f"{PREFIX}/{number}", 1, '"e"') for number in range(s3.MAX_OBJECTS + 1))
    with pytest.raises(ModelError, match="name the folder of one model"):
        s3.build_snapshot(MODEL, entries)


def test_the_revision_is_that_of_names_sizes_and_tags_in_whatever_order() -> None:
    entries = [(f"{PREFIX}/{name}", 1, f'"{name}"') for name in ("a", "b", "c")]
    revision = s3.build_snapshot(MODEL, entries).revision
    assert s3.build_snapshot(MODEL, reversed([*entries, (f"{PREFIX}/", 0, '"d"')])).revision == revision
    for other in (("a", 1, '"x"'), ("a", 2, '"a"'), ("d", 1, '"a"')):
        changed = [(f"{PREFIX}/{other[0]}", *other[1:]), *entries[1:]]
        assert s3.build_snapshot(MODEL, changed).revision != revision
