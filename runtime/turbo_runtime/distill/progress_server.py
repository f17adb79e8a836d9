"""How far the work is, for whoever asks over HTTP: the operator, whose pods have no other way to tell."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from turbo_runtime.contract.endpoints import HEALTH_PATH
from turbo_runtime.contract.training import PROGRESS_PATH, TrainingProgress


@contextmanager
def told_on(port: int | None, now: Callable[[], TrainingProgress]) -> Iterator[int | None]:
    """Answer `PROGRESS_PATH` meanwhile, on the port that is yielded; 0 takes a free one, None tells nobody.

    Raises OSError where the port cannot be had.
    """
    if port is None:
        yield None
        return

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = now().to_json().encode()
            self.send_response(200 if self.path in (PROGRESS_PATH, HEALTH_PATH) else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nobody reads of each look."""

    server = ThreadingHTTPServer(("", port), Handler)
    thread = threading.Thread(target=server.serve_forever, name="progress", daemon=True)
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
