"""Models of a folder served as the Hugging Face hub serves them, as far as its client asks: on loopback for a
test, or as a process inside the sandbox, where pods reach it.

Below the folder lie ORGANIZATION/NAME with the files of one commit. Every answer is written to a log.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

LARGE_BYTES = 100_000  # from which on a file is one of LFS, named by its sha256
_BLOCK = 1 << 18
_API = re.compile(
    r"/api/models/(?P<model>[^/]+/[^/]+?)(?:/(?P<what>revision|tree)/(?P<revision>[^/]+)(?P<below>/.+)?)?"
)
_FILE = re.compile(r"/(?P<model>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>.+)")


class Hub(ThreadingHTTPServer):
    """Serves models; `log` gets a line of JSON for each answer."""

    daemon_threads = True

    def __init__(self, folder: Path, log: Path, host: str = "127.0.0.1", port: int = 0) -> None:
        super().__init__((host, port), _Handler)
        self.folder, self.log = folder, log
        self.bytes_per_second: float | None = None  # of each connection; None: as fast as it goes
        self.gated: set[str] = set()  # models that nobody may read
        self.corrupt: set[str] = set()  # files that go out as zeros
        self.checksum: str | None = None  # of every file, instead of its own
        self.is_closed = False
        self.odd_file: str | None = None  # a name that is listed in addition
        self.writing = threading.Lock()

    @property
    def url(self) -> str:
        """What HF_ENDPOINT is to be."""
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}"

    def answers(self) -> list[dict[str, Any]]:
        """All answers so far: `method`, `path`, `bytes` that went out and the `start` of a range."""
        return read_log(self.log)

    def downloaded(self) -> int:
        """Bytes of weights that went out so far."""
        return sum(each["bytes"] for each in self.answers() if each["path"].endswith(".safetensors"))


def read_log(log: Path) -> list[dict[str, Any]]:
    """Read the answers that a log has."""
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


@contextmanager
def serve(folder: Path, log: Path) -> Iterator[Hub]:
    """Serve on loopback."""
    with Hub(folder, log) as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            hub.is_closed = True
            thread.join()


@cache
def _entry(path: Path, name: str) -> dict[str, Any]:
    """Describe a file as the hub's tree does."""
    content = path.read_bytes()
    git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    entry: dict[str, Any] = {"type": "file", "path": name, "size": len(content), "oid": git}
    if len(content) >= LARGE_BYTES:
        sha = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": sha, "size": len(content), "pointerSize": 134}
    return entry


def tree(folder: Path) -> list[dict[str, Any]]:
    """List the files of a model."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [_entry(path, path.relative_to(folder).as_posix()) for path in files]


def commit(folder: Path) -> str:
    """Return the commit of a model: another one where a file is another."""
    return hashlib.sha1(json.dumps(tree(folder)).encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        if self.server.is_closed:  # a connection that was kept open
            self.close_connection = True
            return
        path = urlsplit(self.path).path
        found = _API.fullmatch(path) or _FILE.fullmatch(path)
        folder = self.server.folder / found["model"] if found else None
        if found is None or folder is None or not folder.is_dir():
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            return
        revision = found["revision"]
        if revision not in (None, "main", commit(folder)):
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            return
        if found.groupdict().get("below"):  # no model has folders that anybody lists
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
            return
        if "name" in found.groupdict():
            self._send_file(folder, found["model"], found["name"])
            return
        listed: Any = tree(folder)
        if found["what"] != "tree":
            names = [{"rfilename": entry["path"]} for entry in listed]
            listed = {"id": found["model"], "sha": commit(folder), "siblings": names, "private": False}
        elif self.server.checksum is not None:
            checksum = self.server.checksum
            listed = [{**entry, "oid": checksum, "lfs": None} for entry in listed]
        elif self.server.odd_file is not None:
            listed = [*listed, {"type": "file", "path": self.server.odd_file, "size": 1, "oid": "0" * 40}]
        self._send(200, json.dumps(listed).encode(), {"Content-Type": "application/json"})

    def _send_file(self, folder: Path, model: str, name: str) -> None:
        if model in self.server.gated:
            self._send(403, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "restricted"})
            return
        if not (folder / name).is_file():
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit(folder)})
            return
        entry, size = _entry(folder / name, name), (folder / name).stat().st_size
        etag = entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit(folder), "Accept-Ranges": "bytes"}
        asked, start, end = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")), 0, size
        if asked:
            start, end = int(asked[1]), min(int(asked[2] or size) + 1, size)
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        with (folder / name).open("rb") as file:
            file.seek(start)
            content: IO[bytes] = file
            if name in self.server.corrupt:
                content = io.BytesIO(bytes(end - start))
            self._send(206 if asked else 200, content, headers, start, end - start)

    def _send(
        self, status: int, body: bytes | IO[bytes], headers: dict[str, str], start: int = 0, size: int = 0
    ) -> None:
        size, stream = (len(body), io.BytesIO(body)) if isinstance(body, bytes) else (size, body)
        self.send_response(status)
        for name, value in ({"Content-Length": str(size)} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        sent = 0
        try:
            while self.command == "GET" and sent < size:
                self.wfile.write(block := stream.read(min(_BLOCK, size - sent)))
                sent += len(block)
                if self.server.bytes_per_second:
                    time.sleep(_BLOCK / self.server.bytes_per_second)
        except OSError:  # whoever asked is gone
            self.close_connection = True
        line = {"method": self.command, "path": self.path, "status": status, "bytes": sent, "start": start}
        with self.server.writing, self.server.log.open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")

    def log_message(self, *_: object) -> None:
        """Leave standard error alone."""


def main() -> None:
    """`python -m turbo_dev.hub FOLDER LOG HOST PORT [BYTES_PER_SECOND]`: serve until killed."""
    folder, log, host, port, *speed = sys.argv[1:]
    with Hub(Path(folder), Path(log), host, int(port)) as hub:
        hub.bytes_per_second = float(speed[0]) if speed else None
        hub.serve_forever()


if __name__ == "__main__":
    main()
