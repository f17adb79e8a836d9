"""The ways to pods: straight, as a Service leads there, or through the router and the activator before it."""

from __future__ import annotations

import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx

BIN = Path(sys.executable).parent
PATIENCE_SECONDS = 60.0

Way = Callable[[], str]  # the URL that the next connection leads to


def service(pods: Sequence[str], seed: int = 0) -> Way:
    """What kube-proxy does with a Service: any pod, at random, for each connection."""
    dice = random.Random(seed)
    return lambda: dice.choice(pods)


@contextmanager
def router(pods: Sequence[str], *, with_activator: bool = True) -> Iterator[Way]:
    """The router as the operator starts it, with pods that it is given; without the activator for what that
    adds.
    """
    port, metrics, front, admin = _free_ports(4)
    command = [
        *(str(BIN / "vllm-router"), "--host=127.0.0.1", f"--port={port}", f"--prometheus-port={metrics}"),
        *("--log-level=error", "--health-check-interval-secs=10", "--health-success-threshold=1"),
        "--policy=sticky_least_loaded",
        *("--worker-urls", *pods),
    ]
    with ExitStack() as stack:
        stack.enter_context(process(command))
        url = f"http://127.0.0.1:{port}"
        wait_for(f"{url}/readiness")
        if with_activator:
            flags = (f"--router-url={url}", f"--port={front}", f"--admin-port={admin}", "--leave-seconds=0")
            stack.enter_context(process([sys.executable, "-m", "turbo_cli", "activator", *flags]))
            url = f"http://127.0.0.1:{front}"
            wait_for(f"{url}/health")
        yield lambda: url


@contextmanager
def process(command: Sequence[str], **options: object) -> Iterator[subprocess.Popen[str]]:
    """A process, ended with the context."""
    started = subprocess.Popen(
        command, text=True, **({"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL} | options)
    )  # type: ignore[call-overload]
    try:
        yield started
    finally:
        started.terminate()
        started.wait()


@contextmanager
def pods(speeds: Sequence[float], slots: int) -> Iterator[list[tuple[str, subprocess.Popen[str]]]]:
    """Emulated pods of these speeds: the URL and the process of each."""
    with ExitStack() as stack:
        started = []
        for speed in speeds:
            command = [sys.executable, "-m", "routing.pod", f"--speed={speed}", f"--slots={slots}"]
            pod = stack.enter_context(process(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1]))
            assert pod.stdout is not None
            started.append((f"http://127.0.0.1:{pod.stdout.readline().strip()}", pod))
        yield started


def wait_for(url: str) -> None:
    """Wait until it answers with 200."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            if httpx.get(url).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        if time.monotonic() > deadline:
            raise TimeoutError(f"{url} does not answer")
        time.sleep(0.05)


def _free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        taken = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(number)]
        return [each.getsockname()[1] for each in taken]
