"""A model below a prefix of an S3 bucket, and its copies on disk.

A store names no commit: the revision is a hash of names, sizes and ETags of all objects. Each revision has a
folder of its own (`contract.endpoints.s3_folder`), where a file gets its name once it is whole. config.json
is the last, so a folder that has it has all. botocore finds credentials, region and endpoint as AWS's tools
do, and signs.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from turbo_runtime.contract.endpoints import S3_CACHE_VARIABLE, S3_SCHEME, s3_folder
from turbo_runtime.model_files.hub_cache import (
    CONFIG,
    WORKERS,
    ChecksumError,
    CountedWriter,
    check_room,
    download_all,
    is_whole,
    used_names,
)
from turbo_runtime.model_files.source import ModelError, first_line

MAX_OBJECTS = 10_000  # of one model
_BLOCK = 1 << 20  # bytes
_MD5 = re.compile(r'"?([0-9a-f]{32})(?:-(\d+))?"?')
_PASSING = (408, 429)  # besides all of 5xx: statuses that the same request may not meet again
_DENIED = (401, 403)
_DENIED_CODES = ("ExpiredToken", "InvalidToken")  # of status 400
_GONE_CODES = ("NoSuchKey", "404")  # the second where there is no body that says it
_LATEST = ".revision"  # beside the folders of revisions: the one that was fetched last
_DENIED_REMEDY = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a role, of somebody who may list and read"
)
_AWAY_REMEDY = "AWS_ENDPOINT_URL is where it is, if not at AWS"


class StoreUnreachableError(OSError):
    """The store did not answer, or could not just now: the same model may be served later."""


class ObjectChangedError(OSError):
    """An object is not what the listing says: another try lists anew."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """An object below the prefix."""

    name: str  # its key, without the prefix
    size: int  # in bytes
    etag: str  # as the store writes it, another one for another content


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a prefix has, or had when it was fetched."""

    model: str  # s3://BUCKET/PREFIX
    revision: str
    files: tuple[StoredFile, ...] = ()  # that serve to load the model; none of one that is on disk

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(file.size for file in self.files)

    @property
    def present(self) -> int:
        """Bytes that need not be downloaded any more."""
        return sum(self._present(file) for file in self.files)

    @property
    def folder(self) -> Path:
        """Where its files are kept."""
        return _root() / s3_folder(self.model, self.revision)

    def part(self, file: StoredFile) -> Path:
        """Return where a file is kept while it is downloaded."""
        return self.folder / f"{file.name}.turbo.incomplete"

    def open(self, name: str) -> ObjectReader:
        """Open one of its files in the store."""
        return ObjectReader(self, next(file for file in self.files if file.name == name))

    def _present(self, file: StoredFile) -> int:
        for path in (self.folder / file.name, self.part(file)):
            if path.exists():
                return min(file.size, path.stat().st_size)
        return 0


def is_bucket(model: str) -> bool:
    """Whether MODEL is a prefix of a bucket."""
    return model.startswith(S3_SCHEME)


def cached_snapshot(model: str, revision: str | None) -> Path | None:
    """Return the folder of a revision, or of the one fetched last; None where it is not whole."""
    if revision is None:
        latest = _root() / s3_folder(model, _LATEST)
        if not latest.is_file():
            return None
        revision = latest.read_text(encoding="ascii").strip()
    folder = _root() / s3_folder(model, revision)
    return folder if is_whole(folder) else None


def list_snapshot(model: str, revision: str | None) -> Snapshot:
    """Ask the store for what a prefix has; of a `revision` that is on disk it is not asked.

    Raises ModelError, also where it has another revision now, or StoreUnreachableError.
    """
    if revision is not None and cached_snapshot(model, revision) is not None:
        return Snapshot(model, revision)
    bucket, prefix = _split(model)
    with _store_errors(model):
        pages = _client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        entries = ((it["Key"], it["Size"], it["ETag"]) for page in pages for it in page.get("Contents", ()))
        snapshot = build_snapshot(model, entries)
    if revision not in (None, snapshot.revision):
        raise ModelError(f"it has changed: its revision was {revision}, and is {snapshot.revision}")
    return snapshot


def build_snapshot(model: str, entries: Iterable[tuple[str, int, str]]) -> Snapshot:
    """Build it from the key, size and ETag of each object. Raises ModelError."""
    bucket, prefix = _split(model)
    files = list[StoredFile]()
    for key, size, etag in entries:
        name = key.removeprefix(prefix)
        if not name or name.endswith("/"):  # what some tools make of a folder
            continue
        if len(files) == MAX_OBJECTS:
            raise ModelError(f"it has more than {MAX_OBJECTS} objects: name the folder of one model")
        if any(part in ("", ".", "..") for part in name.split("/")) or "\0" in name:
            raise ModelError(f"the object {name!r} has a name that no file can have: remove or rename it")
        files.append(StoredFile(name, size, etag))
    if not files:
        raise ModelError(f"bucket {bucket} has nothing below {prefix or '/'}: name the folder of a model")
    files.sort(key=lambda file: file.name)
    lines = (f"{file.name}\0{file.size}\0{file.etag}\n" for file in files)
    used = used_names(file.name for file in files)
    revision = hashlib.sha256("".join(lines).encode()).hexdigest()[:40]
    return Snapshot(model, revision, tuple(file for file in files if file.name in used))


def fetch(snapshot: Snapshot, _revision: str | None, advance: Callable[[int], object]) -> None:
    """Bring a snapshot to disk; `advance` is called with the bytes.

    Raises ModelError, NoSpaceError, ChecksumError, StoreUnreachableError or another OSError: the next call
    goes on from there.
    """
    missing = [file for file in snapshot.files if not (snapshot.folder / file.name).exists()]
    if missing:
        _bring(snapshot, missing, advance)
    latest = snapshot.folder.with_name(_LATEST)
    is_known = latest.is_file() and latest.read_text(encoding="ascii").strip() == snapshot.revision
    # All may be there on a claim that can be read alone.
    if not is_known and (missing or os.access(latest if latest.exists() else latest.parent, os.W_OK)):
        latest.write_text(snapshot.revision, encoding="ascii")


def _bring(snapshot: Snapshot, missing: list[StoredFile], advance: Callable[[int], object]) -> None:
    """Download what is missing, config.json last."""
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    if all(file.name != CONFIG for file in snapshot.files):
        raise ModelError("there is no config.json")
    snapshot.folder.mkdir(parents=True, exist_ok=True)
    check_room(snapshot.folder, snapshot.size - snapshot.present)
    with _store_errors(snapshot.model), WeakFileLock(snapshot.folder.with_name(".lock")):
        client = _client()
        for files in (
            [it for it in missing if it.name != CONFIG],
            [it for it in missing if it.name == CONFIG],
        ):
            download_all(lambda file, count: _download(client, snapshot, file, count), files, advance)


def _download(client: Any, snapshot: Snapshot, file: StoredFile, advance: Callable[[int], object]) -> None:
    """Download a file, from where an earlier try ended."""
    path, part = snapshot.folder / file.name, snapshot.part(file)
    if path.exists():
        return
    part.parent.mkdir(parents=True, exist_ok=True)
    if part.exists() and part.stat().st_size > file.size:
        part.unlink()
    with CountedWriter(part, advance) as stream:
        while (start := stream.tell()) < file.size:
            try:
                for block in _get(client, snapshot, file, start, file.size).iter_chunks(_BLOCK):
                    stream.write(block)
            except _interruptions():
                if stream.tell() == start:
                    raise
        stream.flush()
        os.fsync(stream.fileno())
    if (checksum := _checksum(client, snapshot, file)) and checksum.of(part) != checksum.value:
        part.unlink()
        raise ChecksumError(f"{file.name} was not downloaded as the store has it: its checksum is another")
    part.replace(path)


class ObjectReader:
    """Reads ranges of an object; others than those are not downloaded."""

    def __init__(self, snapshot: Snapshot, file: StoredFile) -> None:
        self._snapshot, self._file, self._start = snapshot, file, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is open between reads."""

    def seek(self, start: int) -> None:
        """Go to a byte."""
        self._start = start

    def read(self, count: int) -> bytes:
        """Read `count` bytes, or what there is. Raises ModelError or OSError."""
        end = min(self._start + count, self._file.size)
        if self._start >= end:
            return b""
        with _store_errors(self._snapshot.model):
            body = _get(_client(), self._snapshot, self._file, self._start, end)
            return bytes(body.read())


def _get(client: Any, snapshot: Snapshot, file: StoredFile, start: int, end: int) -> Any:
    """Return the stream of a range. Raises ObjectChangedError where the object is not that of the listing."""
    bucket, prefix = _split(snapshot.model)
    answer = client.get_object(Bucket=bucket, Key=prefix + file.name, Range=f"bytes={start}-{end - 1}")
    if answer["ETag"] != file.etag or answer["ContentLength"] != end - start:
        answer["Body"].close()
        raise ObjectChangedError(f"{file.name} has changed since the bucket was listed")
    return answer["Body"]


@dataclass(frozen=True, slots=True)
class _Checksum:
    """What a store says of an object's content."""

    value: str
    is_sha256: bool = False
    part_size: int = 0  # of an object that was uploaded in parts: the MD5 of the MD5s of all parts

    def of(self, path: Path) -> str:
        """Compute that of a file."""
        with path.open("rb") as content:
            if self.is_sha256:
                return base64.b64encode(hashlib.file_digest(content, "sha256").digest()).decode()
            size = path.stat().st_size
            if not self.part_size:
                return _md5(content, size).hex()
            parts = b"".join(_md5(content, self.part_size) for _ in range(0, size, self.part_size))
        return hashlib.md5(parts, usedforsecurity=False).hexdigest()


def _md5(content: BinaryIO, count: int) -> bytes:
    """Compute the MD5 of the next `count` bytes, or of what there is."""
    digest = hashlib.md5(usedforsecurity=False)
    while block := content.read(min(_BLOCK, count)):
        digest.update(block)
        count -= len(block)
    return digest.digest()


def _checksum(client: Any, snapshot: Snapshot, file: StoredFile) -> _Checksum | None:
    """Ask for a checksum of a file's content; None where the store gives none that can be computed."""
    from botocore.exceptions import ClientError

    bucket, prefix = _split(snapshot.model)
    place = {"Bucket": bucket, "Key": prefix + file.name}
    head = client.head_object(**place, ChecksumMode="ENABLED")
    if head["ETag"] != file.etag:
        raise ObjectChangedError(f"{file.name} has changed since the bucket was listed")
    sha256, tag = head.get("ChecksumSHA256", "-"), _MD5.fullmatch(file.etag)
    if "-" not in sha256:  # which is one of parts, too
        return _Checksum(sha256, is_sha256=True)
    by_key = head.get("ServerSideEncryption", "AES256") != "AES256" or "SSECustomerAlgorithm" in head
    if tag is None or by_key:  # then an ETag is no MD5
        return None
    if tag[2] is None:
        return _Checksum(tag[1])
    number = int(tag[2])
    try:
        first, last = (client.head_object(**place, PartNumber=it)["ContentLength"] for it in (1, number))
    except ClientError:  # not every store knows parts later on
        return None
    is_even = first > 0 and first * (number - 1) + last == file.size
    return _Checksum(tag[1], part_size=first) if is_even else None


def _root() -> Path:
    found = os.environ.get(S3_CACHE_VARIABLE)
    return Path(found) if found else Path.home() / ".cache" / "turbo" / "s3"


def _split(model: str) -> tuple[str, str]:
    """Return the bucket, and the prefix with a slash at its end; empty is all of the bucket."""
    bucket, _, prefix = model.removeprefix(S3_SCHEME).partition("/")
    prefix = prefix.strip("/")
    return bucket, f"{prefix}/" if prefix else ""


@functools.cache
def _client() -> Any:
    import botocore.session
    from botocore import UNSIGNED
    from botocore.config import Config

    session = botocore.session.get_session()
    config = Config(
        signature_version=UNSIGNED if session.get_credentials() is None else None,  # a public bucket
        response_checksum_validation="when_required",  # of whole objects alone, and ranges are read
        retries={"mode": "standard", "total_max_attempts": 5},
        connect_timeout=10,
        max_pool_connections=WORKERS,
    )
    try:
        return session.create_client("s3", region_name=os.environ.get("AWS_REGION"), config=config)
    except ValueError as error:  # of an address or a region that is none
        raise ModelError(f"{first_line(error)}: correct AWS_ENDPOINT_URL or AWS_REGION") from error


def _interruptions() -> tuple[type[Exception], ...]:
    from botocore import exceptions

    return exceptions.ConnectionError, exceptions.HTTPClientError, exceptions.IncompleteReadError


@contextmanager
def _store_errors(model: str) -> Iterator[None]:
    """Raise StoreUnreachableError where another try may help, and ModelError for what the store refuses."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        status, code = error.response["ResponseMetadata"]["HTTPStatusCode"], error.response["Error"]["Code"]
        message = error.response["Error"].get("Message", "").rstrip(".")
        if status >= 500 or status in _PASSING:
            raise StoreUnreachableError(f"the store answered with status {status}") from error
        if code == "NoSuchBucket":
            raise ModelError(f"there is no bucket {_split(model)[0]}") from error
        if status in _DENIED or code in _DENIED_CODES:
            raise ModelError(f"the store denies access ({code}): {_DENIED_REMEDY}") from error
        if code in _GONE_CODES:
            raise ObjectChangedError("an object is gone since the bucket was listed") from error
        raise ModelError(f"the store refused it ({code}): {message}") from error
    except _interruptions() as error:
        why = f"the store cannot be reached ({first_line(error).rstrip('.')}): {_AWAY_REMEDY}"
        raise StoreUnreachableError(why) from error
    except BotoCoreError as error:  # of what it was configured with, such as credentials
        raise ModelError(first_line(error).rstrip(".")) from error
