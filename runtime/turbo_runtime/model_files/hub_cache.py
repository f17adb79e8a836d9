"""The hub's cache on disk (https://huggingface.co/docs/huggingface_hub/guides/manage-cache), filled ahead.

A file is a blob that is named by its checksum, and a link to it in the snapshot of a commit. huggingface_hub
throws away what it has of a blob when it ends early, and compares sizes alone: blobs are downloaded here, go
on where they were, and get their names once their checksums are right. Links are the library's.
"""

from __future__ import annotations

import fnmatch
import hashlib
import io
import json
import logging
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from turbo_runtime.contract.endpoints import CONSOLIDATED_FILES, UNUSED_FILES
from turbo_runtime.model_files.source import ModelError, hub_errors

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

log = logging.getLogger(__name__)

_File = TypeVar("_File")
INDEX = "model.safetensors.index.json"
_WEIGHTS = {"*.safetensors": INDEX, "*.bin": "pytorch_model.bin.index.json"}  # and what lists them, if any
_CHECKSUM = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_MAIN = "main"
CONFIG = "config.json"
_CONFIGS = ("adapter_config.json", CONFIG)  # linked last: where one is, the snapshot is whole
WORKERS = 8  # files that are downloaded at a time, as the library does


class ChecksumError(OSError):
    """What was downloaded is not what the hub has: it is deleted, and another try may get it right."""


class _StoppedError(Exception):
    """Another download has failed."""


class NoSpaceError(OSError):
    """The folder has no room for what is missing."""


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository."""

    name: str
    size: int  # in bytes
    checksum: str  # sha256 of a large file, else git's sha1 of the blob; also the name of its blob


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A commit of a repository, and which of its files serve to load the model."""

    model: str
    commit: str
    files: tuple[HubFile, ...]

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(file.size for file in self.files)

    @property
    def present(self) -> int:
        """Bytes that need not be downloaded any more."""
        return sum(self._present(file) for file in self.files)

    def blob(self, file: HubFile) -> Path:
        """Return where a file is kept."""
        return repository(self.model) / "blobs" / file.checksum

    def part(self, file: HubFile) -> Path:
        """Return where it is kept while it is downloaded."""
        return self.blob(file).with_name(f"{file.checksum}.turbo.incomplete")

    def link(self, file: HubFile) -> Path:
        """Return where an engine finds it; where links cannot be made, it is a file."""
        return repository(self.model) / "snapshots" / self.commit / file.name

    def has(self, file: HubFile) -> bool:
        """Whether it is there, as a blob or as a file of the snapshot alone, and of the right size."""
        sizes = [path.stat().st_size for path in (self.blob(file), self.link(file)) if path.exists()]
        return bool(sizes) and set(sizes) == {file.size}

    def discard(self, file: HubFile) -> None:
        """Remove what has another size, which the library would keep."""
        for path in (self.link(file), self.blob(file)):
            if path.exists() and path.stat().st_size != file.size:
                path.unlink()

    def _present(self, file: HubFile) -> int:
        if self.has(file):
            return file.size
        part = self.part(file)
        return min(file.size, part.stat().st_size) if part.exists() else 0


def repository(model: str) -> Path:
    """Return the folder of a repository in the cache."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=model, repo_type="model")


def cached_snapshot(model: str, revision: str | None) -> Path | None:
    """Return the snapshot of a revision, a commit or what it stood for last; None where it is not whole.

    Raises ModelError.
    """
    root, ref = repository(model), find_ref(model, revision)
    name = ref.read_text(encoding="ascii").strip() if ref.is_file() else revision or _MAIN
    folder = root / "snapshots" / name
    return folder if is_whole(folder) else None


def is_whole(folder: Path) -> bool:
    """Whether a folder that is filled in our order has all files of a model, or of an adapter. A link that
    leads nowhere is a file that was lost.
    """
    if not any((folder / config).is_file() for config in _CONFIGS):
        return False
    used = used_names(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    is_linked = all((folder / name).exists() for name in used)
    return is_linked and any(_has_weights(folder, pattern, index) for pattern, index in _WEIGHTS.items())


def _has_weights(folder: Path, pattern: str, index: str) -> bool:
    """Whether all weights that an index lists are there, or any where there is no index."""
    if not (folder / index).is_file():
        return any(path.is_file() for path in folder.glob(pattern))
    try:
        names = read_index(index, (folder / index).read_bytes())
    except ModelError:
        return False
    return all((folder / name).is_file() for name in names)


def read_index(name: str, content: bytes) -> list[str]:
    """List the files that an index of sharded weights names, sorted. Raises ModelError."""
    try:
        index = json.loads(content)
    except ValueError:
        index = None
    shards = index.get("weight_map") if isinstance(index, dict) else None
    files = list(shards.values()) if isinstance(shards, dict) else []
    if not files or not all(isinstance(file, str) for file in files):
        raise ModelError(
            f"{name} does not say in which files the weights are (weight_map): download it again, with them"
        )
    return sorted(set(files))


def find_ref(model: str, revision: str | None) -> Path:
    """Return the file that says which commit a revision stood for last. Raises ModelError."""
    name = revision or _MAIN
    if not _is_below(name):
        raise ModelError(f"revision {name} is no commit, tag or branch: it is a path to elsewhere")
    return repository(model) / "refs" / name


def _is_below(name: str) -> bool:
    """Whether a name is a path below the folder that it is put in."""
    return not name.startswith("/") and ".." not in name.split("/")


def list_snapshot(model: str, revision: str | None) -> Snapshot:
    """Ask the hub for the files of a revision. Raises ModelError."""
    with hub_errors():
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile

        api = HfApi()
        commit = api.model_info(model, revision=revision).sha
        if commit is None:
            raise ModelError(f"the hub names no commit of {model}")
        entries = api.list_repo_tree(model, revision=commit, recursive=True)
        files = [
            HubFile(entry.path, entry.size, entry.lfs.sha256 if entry.lfs else entry.blob_id)
            for entry in entries
            if isinstance(entry, RepoFile)
        ]
    for file in files:  # both become names of files
        if not _CHECKSUM.fullmatch(file.checksum):
            raise ModelError(f"the hub gives {file.name} of {model} no checksum")
        if not _is_below(file.name):
            raise ModelError(f"the hub has a file {file.name} in {model}, which is a path to elsewhere")
    names = used_names(file.name for file in files)
    used = (file for file in files if file.name in names)
    return Snapshot(model, commit, tuple(sorted(used, key=lambda file: (file.name in _CONFIGS, file.name))))


def used_names(names: Iterable[str]) -> set[str]:
    """Leave out the files that no engine of ours loads."""
    used = {name for name in names if not any(fnmatch.fnmatch(name, unused) for unused in UNUSED_FILES)}
    others = {name for name in used if not fnmatch.fnmatch(name, CONSOLIDATED_FILES)}
    if any(name.endswith(".safetensors") for name in others):
        used = others
    has_safetensors = any(name.endswith(".safetensors") for name in used)
    return {name for name in used if not (has_safetensors and name.endswith(".bin"))}


def fetch(snapshot: Snapshot, revision: str | None, advance: Callable[[int], object]) -> None:
    """Bring a snapshot into the cache, as what `revision` stands for; `advance` is called with the bytes.

    Raises ModelError, NoSpaceError, ChecksumError or another OSError: the next call goes on from there.
    """
    from huggingface_hub import constants, hf_hub_download

    root = repository(snapshot.model)
    find_ref(snapshot.model, revision)  # fails early
    root.mkdir(parents=True, exist_ok=True)
    check_room(root, snapshot.size - snapshot.present)
    for file in snapshot.files:
        snapshot.discard(file)
    own = [file for file in snapshot.files if file.size <= constants.MAX_HTTP_DOWNLOAD_SIZE]
    with hub_errors():
        download_all(lambda file, count: _download(snapshot, file, count), own, advance)
        for file in snapshot.files:  # what is larger than HTTP gives out is the library's to download
            hf_hub_download(snapshot.model, file.name, revision=snapshot.commit)
    write_ref(snapshot.model, revision, snapshot.commit)


def note_commit(model: str, revision: str | None, commit: str | None) -> None:
    """Note the commit that a loaded model's revision stood for, by which it is found while the hub is away:
    the library does so only where it resolved the revision itself. `commit`: None for a path.
    """
    try:
        if commit is not None:
            write_ref(model, revision, commit)
    except OSError as error:  # no reason not to serve it
        log.warning("%s will not be found in its cache without the hub: %s", model, error)


def write_ref(model: str, revision: str | None, commit: str) -> None:
    """Write which commit a revision stands for. Raises OSError."""
    ref = find_ref(model, revision)
    if revision != commit and not (ref.is_file() and ref.read_text("ascii") == commit):
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(commit, encoding="ascii")


def download_all(
    download: Callable[[_File, Callable[[int], object]], None],
    files: Iterable[_File],
    advance: Callable[[int], object],
) -> None:
    """Download files, several at a time. Where one fails, no other begins, and those that run end at their
    next block.
    """
    is_over = threading.Event()

    def count(size: int) -> None:
        if is_over.is_set():
            raise _StoppedError
        advance(size)

    def begin(file: _File) -> None:
        count(0)
        try:
            download(file, count)
        except BaseException:  # here, since this worker takes the next file before anybody hears of it
            is_over.set()
            raise

    with ThreadPoolExecutor(WORKERS) as pool:
        downloads = [pool.submit(begin, file) for file in files]
        try:
            for done in as_completed(downloads):
                if not isinstance(done.exception(), _StoppedError):  # the failure that stopped it comes, too
                    done.result()
        except BaseException:
            is_over.set()
            pool.shutdown(wait=False, cancel_futures=True)  # what has not begun
            raise


def check_room(folder: Path, missing: int) -> None:
    """Raise NoSpaceError where the volume of a folder has no room for so many bytes."""
    if missing > (free := shutil.disk_usage(folder).free):
        raise NoSpaceError(
            f"{_gb(missing)} are missing, and the volume has {_gb(free)} free: enlarge it, or remove from it"
        )


def _download(snapshot: Snapshot, file: HubFile, advance: Callable[[int], object]) -> None:
    """Download a blob, from where an earlier try ended."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import WeakFileLock, build_hf_headers  # type: ignore[attr-defined]

    root = repository(snapshot.model)
    blob, part = snapshot.blob(file), snapshot.part(file)
    if snapshot.has(file):  # nothing is written, as on a claim that can be read alone
        return
    lock = root.parent / ".locks" / root.name / f"{file.checksum}.lock"
    for folder in (blob.parent, lock.parent):
        folder.mkdir(parents=True, exist_ok=True)
    headers = build_hf_headers() | {"Accept-Encoding": "identity"}
    with WeakFileLock(lock):
        if blob.exists():
            return
        if part.exists() and part.stat().st_size > file.size:
            part.unlink()
        with CountedWriter(part, advance) as stream:
            url = hf_hub_url(snapshot.model, file.name, revision=snapshot.commit)
            http_get(url, stream, resume_size=stream.tell(), headers=headers, expected_size=file.size)
            stream.flush()
            os.fsync(stream.fileno())
        if _checksum(part, file) != file.checksum:
            part.unlink()
            raise ChecksumError(f"{file.name} was not downloaded as the hub has it: its checksum is another")
        part.replace(blob)


class CountedWriter(io.BufferedWriter):
    """A file that is appended to, and counts what was written."""

    def __init__(self, path: Path, advance: Callable[[int], object]) -> None:
        super().__init__(io.FileIO(path, "ab"))
        self._advance = advance

    def write(self, data: ReadableBuffer) -> int:
        """Append bytes, and count them."""
        count = super().write(data)
        self._advance(count)
        return count


def _checksum(path: Path, file: HubFile) -> str:
    """Compute the checksum of the kind that the hub names."""
    is_large = len(file.checksum) == hashlib.sha256().digest_size * 2
    # S324: git's own, of what the hub names by it
    digest = hashlib.sha256() if is_large else hashlib.sha1(f"blob {file.size}\0".encode())  # noqa: S324
    with path.open("rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _gb(size: int) -> str:
    return f"{size / 1e9:.3g} GB"
