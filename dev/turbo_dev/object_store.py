"""An S3 server (versitygw over a folder), behind a connection that can be slowed and cut and counts bytes."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer
from typing import Any

from . import binaries
from .controlplane import free_port
from .processes import ProcessGroup

ACCESS_KEY, SECRET_KEY, REGION = "turbo", "turbo-secret", "us-east-1"
_HOST, _BLOCK, _START_SECONDS = "127.0.0.1", 1 << 16, 30.0


def credentials(secret: str = SECRET_KEY) -> dict[str, str]:
    """Return the variables of who may do all."""
    return {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": secret}


class ObjectStore(ThreadingTCPServer):
    """A server on loopback that hands all to versitygw and back."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__((_HOST, 0), _Connection)
        self.folder = folder / "buckets"  # BUCKET/KEY are its files
        self.folder.mkdir(parents=True)
        self.bytes_per_second: float | None = None  # of each connection; None: as fast as it goes
        self.cut_after: int | None = None  # bytes of answers after which one connection is cut
        self.downloaded = 0  # bytes of answers so far, their heads included
        self.counting = threading.Lock()
        self.target = (_HOST, free_port(_HOST))
        self._processes = ProcessGroup(folder / "logs")
        own = ("--access", ACCESS_KEY, "--secret", SECRET_KEY, "--region", REGION, "--quiet")
        address = ("--port", f"{_HOST}:{self.target[1]}")
        posix = ("posix", "--sidecar", folder / "metadata", self.folder)
        (folder / "metadata").mkdir()
        (program,) = binaries.ensure(binaries.OBJECT_STORE).values()
        self._processes.start("versitygw", [program, *own, *address, *posix])

    @property
    def url(self) -> str:
        """What AWS_ENDPOINT_URL is to be."""
        return f"http://{_HOST}:{self.server_address[1]}"

    @property
    def environment(self) -> dict[str, str]:
        """Variables of a client that may do all, and that asks nobody else for credentials."""
        nobody = dict.fromkeys(("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"), os.devnull)
        nobody |= {"AWS_EC2_METADATA_DISABLED": "true"}
        return nobody | credentials() | {"AWS_ENDPOINT_URL": self.url, "AWS_REGION": REGION}

    def client(self) -> Any:
        """Return a client that may do all."""
        import botocore.session

        keys = {"aws_access_key_id": ACCESS_KEY, "aws_secret_access_key": SECRET_KEY}
        session = botocore.session.Session()
        return session.create_client("s3", endpoint_url=self.url, region_name=REGION, **keys)

    def wait(self) -> None:
        """Wait until it answers."""
        self._processes.wait_until(lambda: _listens(self.target), "versitygw listens", _START_SECONDS)

    def stop(self) -> None:
        """End it: who asks it then finds nobody."""
        self.shutdown()
        self.server_close()
        self._processes.stop()


@contextmanager
def serve(folder: Path) -> Iterator[ObjectStore]:
    """Serve buckets on loopback."""
    store = ObjectStore(folder)
    thread = threading.Thread(target=store.serve_forever, daemon=True)
    thread.start()
    try:
        store.wait()
        yield store
    finally:
        store.stop()
        thread.join()


def upload(store: ObjectStore, bucket: str, prefix: str, folder: Path) -> None:
    """Put the files of a folder below a prefix of a new bucket."""
    client = store.client()
    client.create_bucket(Bucket=bucket)
    files = [path for path in folder.rglob("*") if path.is_file()]

    def put(path: Path) -> None:
        client.put_object(
            Bucket=bucket, Key=f"{prefix}/{path.relative_to(folder).as_posix()}", Body=path.read_bytes()
        )

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, files))


def upload_in_parts(client: Any, bucket: str, key: str, parts: Sequence[bytes]) -> None:
    """Put an object as most tools put a large one: its ETag is no MD5 of it then."""
    place = {"Bucket": bucket, "Key": key}
    upload = place | {"UploadId": client.create_multipart_upload(**place)["UploadId"]}
    tags = [
        {"PartNumber": number, "ETag": client.upload_part(**upload, PartNumber=number, Body=part)["ETag"]}
        for number, part in enumerate(parts, start=1)
    ]
    client.complete_multipart_upload(**upload, MultipartUpload={"Parts": tags})


def _listens(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, 5).close()
    except OSError:
        return False
    return True


class _Connection(BaseRequestHandler):
    """One connection of a client, and the one to the store that it goes on in."""

    server: ObjectStore

    def handle(self) -> None:
        with suppress(OSError), socket.create_connection(self.server.target) as store:
            back = threading.Thread(target=self._answer, args=(store,), daemon=True)
            back.start()
            with suppress(OSError):
                while block := self.request.recv(_BLOCK):
                    store.sendall(block)
                store.shutdown(socket.SHUT_WR)
            back.join()

    def _answer(self, store: socket.socket) -> None:
        with suppress(OSError):
            while block := store.recv(_BLOCK):
                with self.server.counting:
                    self.server.downloaded += len(block)
                    left = self.server.cut_after
                    is_cut = left is not None and left <= len(block)
                    if left is not None:
                        self.server.cut_after = None if is_cut else left - len(block)
                if is_cut:
                    break
                self.request.sendall(block)
                if self.server.bytes_per_second:
                    time.sleep(len(block) / self.server.bytes_per_second)
        with suppress(OSError):
            self.request.shutdown(socket.SHUT_RDWR)
