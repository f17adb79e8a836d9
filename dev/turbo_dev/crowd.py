"""Clients that ask, wait for the whole answer, and ask again: python3 -c SOURCE URL MODEL NUMBER.

Runs inside a pod, as the source that `clients` hands to the interpreter there, so that it needs the standard
library alone. Prints its tally as a line of JSON every second; SIGTERM lets the answers under way end, and
the last line is then `done`.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
import urllib.error
import urllib.request

TALLY_SECONDS = 1.0
PATIENCE_SECONDS = 300.0  # for one answer
MAX_TOKENS = 16
QUESTION = "Name five things that a traveller should not forget."


class Crowd:
    """So many clients of one model, each a thread, each request a connection of its own."""

    def __init__(self, url: str, model: str, number: int) -> None:
        message = {"role": "user", "content": QUESTION}
        body = {"model": model, "messages": [message], "max_tokens": MAX_TOKENS}
        self._url = f"{url}/chat/completions"
        self._body = json.dumps(body).encode()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._client) for _ in range(number)]
        self.answered = self.failed = 0
        self.error: str | None = None

    def run(self) -> None:
        """Ask until SIGTERM, then wait for what is under way."""
        signal.signal(signal.SIGTERM, lambda *_: self._stop.set())
        for thread in self._threads:
            thread.start()
        while any(thread.is_alive() for thread in self._threads):
            self.tell()
            time.sleep(TALLY_SECONDS)
        self.tell(done=True)

    def tell(self, done: bool = False) -> None:
        """Print the tally."""
        with self._lock:
            tally = {"answered": self.answered, "failed": self.failed, "error": self.error, "done": done}
        print(json.dumps(tally), flush=True)

    def _client(self) -> None:
        while not self._stop.is_set():
            error = self._ask()
            with self._lock:
                if error is None:
                    self.answered += 1
                else:
                    self.failed += 1
                    self.error = error
            if error is not None:
                self._stop.wait(1.0)  # what fails at once should not be asked for without end

    def _ask(self) -> str | None:
        """One question; why it has no whole answer, or None."""
        request = urllib.request.Request(self._url, self._body, {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as reply:
                ended = json.load(reply)["choices"][0]["finish_reason"]
        except urllib.error.HTTPError as refused:
            return f"status {refused.code}: {refused.read(500).decode(errors='replace')}"
        except (OSError, ValueError, LookupError) as error:
            return repr(error)
        return None if ended in ("stop", "length") else f"the answer ended with {ended!r}"


if __name__ == "__main__":
    Crowd(sys.argv[1], sys.argv[2], int(sys.argv[3])).run()
