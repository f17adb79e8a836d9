"""The stages of a run: each reads what an earlier run has left, and continues from there."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from torch import Tensor

from turbo_runtime.client.client import Server
from turbo_runtime.distill.data import responses
from turbo_runtime.distill.data.responses import Completion, Kept, TokenizedPrompt
from turbo_runtime.distill.eagle3 import Eagle3Method
from turbo_runtime.distill.evaluation import speedup_benchmark as benchmark
from turbo_runtime.distill.evaluation.record import DomainRecord, Record, evaluate
from turbo_runtime.distill.heads import HeadsMethod
from turbo_runtime.distill.recipe import (
    AUTO,
    HEADS,
    PARTS,
    TEST,
    TRAINED,
    TRAINING,
    VALIDATION,
    DistillError,
    Pilot,
    Recipe,
    TransientError,
    UnsupportedModelError,
    choose_method,
)
from turbo_runtime.distill.target import Endpoint, TargetModel
from turbo_runtime.distill.trainer import Method, Shards, TrainingState, prepare_training, read_state
from turbo_runtime.distill.workspace import REQUEST_FILE, Workspace
from turbo_runtime.drafters.draft_memory import write_memory
from turbo_runtime.drafters.heads import tensors_digest
from turbo_runtime.drafters.loader import ActiveDrafts, DraftLoader
from turbo_runtime.files import write_whole, write_whole_by
from turbo_runtime.messages import SamplingParams
from turbo_runtime.prompts import Prompt

REQUESTS, ANSWERS, CHECKPOINT = "asked.jsonl", "answers", "training.pt"
_SELECTION = "drafts.json"
MACHINE, PILOT = "machine.json", "pilot.json"
_NO_NAME = re.compile(r"[^A-Za-z0-9._-]+")
MIN_SAVE_SECONDS, MAX_SAVE_FRACTION = 2.0, 0.05  # between two saves, and of the time that they take
PILOT_ANSWERS, PILOT_EPOCHS = 96, 2  # responses that each method learns from in a pilot, and how often
MAX_MEASURED = 64  # prompts of a domain that speedups are measured on

Parts = Mapping[str, Sequence[Completion]]


@dataclass
class Distillation:
    """One run. Raises DistillError for kept responses that the model cannot read."""

    served: TargetModel
    model: str  # its name for people
    active_parameters: int  # those that a token passes
    prompts: Mapping[str, Sequence[Prompt]]  # by part
    kept: Kept  # responses to learn from instead
    work: Workspace
    speedup: bool  # measure speedups too
    keep_answers: bool
    endpoint: str  # URL of a server that responds instead

    def __post_init__(self) -> None:
        self.kept.check(len(self.served.target.embedding), self.served.ready.max_model_len)
        self._recipe, self._pilots = self.work.request.recipe, dict[str, Any]()
        if self._recipe.method != AUTO:
            self._method = self._create_method(self._recipe)

    def run(self) -> Record:
        """Do all that remains. Raises DistillError, and PromptsError before anything is written."""
        # as tokenized at first: a chat template may write the date
        existing = responses.read_requests(self.work.folder / REQUESTS)
        tokenized = self._tokenize() if existing is None else existing
        self.work.write(REQUEST_FILE, asdict(self.work.request))
        self._check_machine()
        if existing is None:
            shutil.rmtree(self.work.folder / ANSWERS, ignore_errors=True)  # to unknown prompts
            responses.write_requests(self.work.folder / REQUESTS, tokenized)
        parts, left_out = self._select(self.kept.completions or self._respond(tokenized))
        if self._recipe.method == AUTO:
            self._recipe = self._compare_methods(parts)
            self._method = self._create_method(self._recipe)
        result = self._train(parts)
        learnt = {completion.tokens for name in (TRAINING, VALIDATION) for completion in parts[name]}
        domains = self._evaluate(parts[TEST], learnt)
        if self.speedup:
            unseen = [completion for completion in parts[TEST] if completion.tokens not in learnt]
            self._measure_speedups({**parts, TEST: unseen}, domains)
        record = Record(
            self._recipe.method,
            domains,
            {name: len(completions) for name, completions in parts.items()},
            left_out,
            tuple(result.losses),
            tuple(result.judged),
            result.best,
            self.work.seconds,
        )
        record.write(self.work.out, self.model)
        if self.keep_answers:
            responses.write_kept(self.work.out, chain.from_iterable(parts.values()))
        self._save(parts[TRAINING], record)
        self.work.remove()
        return record

    def _create_method(self, recipe: Recipe) -> Method:
        params = self._params(recipe.learned_temperature)
        if not recipe.temperature:
            params = replace(params, top_p=1.0, top_k=0)
        if recipe.method == HEADS:
            return HeadsMethod(self.served, recipe, params)
        return Eagle3Method(self.served, self.model, recipe, params)

    def _deal(self, method: Method, completions: Sequence[Completion]) -> Shards:
        """Deal them into parts that the memory holds."""
        memory = int(self.work.request.memory_gib * 2**30)
        max_rows = max(1, memory // (2 * method.row_bytes))  # twice: while they are concatenated
        return Shards(method, completions, max_rows, self._recipe.seed)

    def _compare_methods(self, parts: Parts) -> Recipe:
        """Return the recipe of the method that pays most in a pilot; an earlier run's pilot counts."""
        if (existing := self.work.read(PILOT)) is not None:
            self._pilots = existing
        else:
            with self.work.stage("pilot", len(TRAINED), "methods") as advance:
                for name in TRAINED:
                    with suppress(UnsupportedModelError):
                        self._pilots[name] = asdict(self._run_pilot(self._recipe.for_method(name), parts))
                    advance()
            self.work.write(PILOT, self._pilots)
        chosen = choose_method({name: Pilot(**fields) for name, fields in self._pilots.items()})
        self.work.progress.say(f"a pilot says that {chosen} pays most")
        return self._recipe.for_method(chosen)

    def _run_pilot(self, recipe: Recipe, parts: Parts) -> Pilot:
        method = self._create_method(recipe)
        shards = self._deal(method, responses.shuffled(parts[TRAINING], recipe.seed)[:PILOT_ANSWERS])
        short = replace(recipe, epochs=PILOT_EPOCHS)
        training = prepare_training(method, short, shards, 0, parts[VALIDATION], {})
        training.run(lambda _: None)
        weights = sum(map(Tensor.numel, method.student.guessers)) + method.student.module.output.numel()
        cost = method.student.passes * weights / self.active_parameters
        return Pilot(recipe.method, max(training.progress.judged), cost)

    def _tokenize(self) -> list[TokenizedPrompt]:
        max_tokens = self.served.ready.max_model_len - self._recipe.max_tokens
        prompts, left_out = responses.tokenize(self.prompts, self.served.encode, self._recipe, max_tokens)
        if left_out:
            long = f"{left_out} captured prompts of more than {max_tokens} tokens"
            self.work.progress.say(f"{long} are left out")
        return prompts

    def _check_machine(self) -> None:
        """Other arithmetic in the middle would give other bits."""
        ready = self.served.ready
        machine: dict[str, Any] = {"guarantee": ready.guarantee}
        if ready.guarantee == "distribution":
            machine["kv_blocks"] = ready.kv_blocks  # which prompts are computed together depends on it
        before = self.work.read(MACHINE)
        if before is None:
            self.work.write(MACHINE, machine)
        elif before != machine:
            raise TransientError(
                f"the model computes otherwise than when this was begun: {machine} and not {before}; try "
                f"again when the machine is less busy, or remove {self.work.folder}"
            )

    def _params(self, temperature: float) -> SamplingParams:
        recipe = self._recipe
        return SamplingParams(
            temperature=temperature,
            top_p=recipe.top_p,
            top_k=recipe.top_k,
            seed=recipe.seed,
            max_tokens=recipe.max_tokens,
            stop_token_ids=self.served.stop_ids,
        )

    def _respond(self, prompts: Sequence[TokenizedPrompt]) -> list[Completion]:
        params = self._params(self._recipe.temperature)
        target: TargetModel | Endpoint = self.served
        if self.endpoint:
            server = Server.at(self.endpoint)
            target = Endpoint(server, server.model(), self.served.tokenizer.encode_written)
        with self.work.stage("answers", len(prompts), "prompts") as advance:
            return responses.answer_all(
                prompts,
                self.work.folder / ANSWERS,
                lambda group, answered: target.answer(group, params, answered),
                advance,
            )

    def _select(self, completions: Sequence[Completion]) -> tuple[dict[str, list[Completion]], int]:
        """Return by part those that can be learnt from, and how many cannot."""
        usable = [c for c in completions if len(c.tokens) >= 2 and not responses.is_looping(c.tokens)]
        left_out = len(completions) - len(usable)
        parts = {name: [c for c in usable if c.request.part == name] for name in PARTS}
        if empty := [name for name, part in parts.items() if not part]:
            raise DistillError(
                f"no answer is left for the part '{empty[0]}' of the prompts: {left_out} of "
                f"{len(completions)} say one thing over and over or end at once; give more prompts, or a "
                "higher --temperature"
            )
        return parts, left_out

    def _train(self, parts: Parts) -> TrainingState:
        recipe, method = self._recipe, self._method
        shards = self._deal(method, parts[TRAINING])
        checkpoint = self.work.folder / CHECKPOINT
        state: dict[str, Any] = {}
        if checkpoint.is_file():
            try:
                state = read_state(checkpoint)
            except DistillError as error:
                self.work.progress.say(f"{checkpoint} cannot be read ({error}): training begins anew")
        first = shards.order(0, recipe.seed)[0]
        if not state:
            with self.work.stage("states", 1, "part") as advance:
                shards.material(first)
                advance()
        validation = responses.shuffled(parts[VALIDATION], recipe.seed)
        training = prepare_training(method, recipe, shards, first, validation, state)
        with self.work.stage("training", training.steps, "steps", training.progress.step) as advance:
            due = time.monotonic() + MIN_SAVE_SECONDS

            def done(_: int) -> None:
                nonlocal due
                advance()
                start_time = time.monotonic()
                if start_time >= due:
                    write_whole_by(checkpoint, training.save)
                    end_time = time.monotonic()
                    due = end_time + max(MIN_SAVE_SECONDS, (end_time - start_time) / MAX_SAVE_FRACTION)

            training.run(done)
            write_whole_by(checkpoint, training.save)
        method.student.module.eval().requires_grad_(False)
        return training.progress

    def _evaluate(
        self, held_out: Sequence[Completion], learnt: Collection[tuple[int, ...]]
    ) -> dict[str, DomainRecord]:
        by_domain: dict[str, list[tuple[Completion, list[int]]]] = {}
        with self.work.stage("evaluation", len(held_out), "answers") as advance:
            for completion, counts in self._method.accepted_counts(held_out):
                by_domain.setdefault(completion.request.domain, []).append((completion, counts))
                advance()
        records = {}
        for domain, pairs in by_domain.items():
            unseen = [pair for pair in pairs if pair[0].tokens not in learnt]
            depth, measured_on = self._recipe.depth, _digest(completion for completion, _ in unseen)
            records[domain] = DomainRecord(evaluate(unseen, depth), evaluate(pairs, depth), measured_on)
        return records

    def _measure_speedups(self, parts: Parts, records: dict[str, DomainRecord]) -> None:
        """Add to each record the speedups of the held-out responses of its domain."""
        measurements = []
        for domain in records:
            held_out, validation, training = (
                sorted((c for c in parts[part] if c.request.domain == domain), key=lambda c: c.shuffle_key)
                for part in (TEST, VALIDATION, TRAINING)
            )
            known = [completion for completion in training if not completion.request.choice]  # as in service
            groups = held_out[:MAX_MEASURED], known, validation[: benchmark.WARM_UP]
            measurements += [(domain, size, groups) for size in benchmark.BATCHES if len(groups[0]) >= size]
        num_runs = benchmark.ROUNDS * 3  # of one measurement
        with (
            tempfile.TemporaryDirectory() as scratch,
            self.work.stage("speedup", len(measurements) * num_runs, "runs") as advance,
        ):
            self._method.save(Path(scratch), "", "", {})
            compared = benchmark.ways(partial(self._load, Path(scratch)))
            for number, (domain, batch, groups) in enumerate(measurements):
                name = f"speedup/{number:03}.json"
                if (existing := self.work.read(name)) is not None:
                    speedup = benchmark.Speedup(**existing)
                    advance(num_runs, known=True)
                else:
                    params = self._params(groups[0][0].request.temperature)
                    results = []
                    for run in benchmark.runs(self.served, compared, *groups, params, batch):
                        results.append(run)
                        if len(results) % len(compared) == 0:  # those of a round end about together
                            advance(len(compared))
                    speedup = benchmark.compute_speedup(batch, results)
                    self.work.write(name, asdict(speedup))
                record = records[domain]
                records[domain] = replace(record, speedups=(*record.speedups, speedup))

    def _load(self, folder: Path) -> ActiveDrafts:
        """Load the draft in `folder` as a server does, without what it brings to the memory."""
        selection = folder / _SELECTION
        write_whole(selection, json.dumps({self._recipe.method: str(folder.absolute())}))
        active = DraftLoader(self.served.target, self.served.noise).load(selection)
        if active.problem:
            raise DistillError(f"the engine cannot draft with it: {active.problem}; add --no-speedup")
        return active

    def _save(self, learnt: Sequence[Completion], record: Record) -> None:
        """Write the configuration last: without it the folder is no checkpoint yet."""
        request = self.work.request
        training: dict[str, Any] = {
            "request": asdict(request),
            "answers": record.answers,
            "answers_digest": _digest(learnt),
            "left_out": record.left_out,
        }
        if self._pilots:
            training["pilot"] = self._pilots
        memory = responses.remember(learnt, self._recipe.draft_memory_mib)
        if memory.answers:
            write_memory(self.work.out, memory, request.target_digest)
            training["memory"] = memory.summary()
        captures = list(self.kept.captures)
        for prompt in chain.from_iterable(self.prompts.values()):
            if prompt.captured_at is not None:
                at = datetime.fromtimestamp(prompt.captured_at, UTC).isoformat(timespec="seconds")
                captures.append({"prompts": 1, "from": at, "until": at})
        if captures:
            training["capture"] = {
                "prompts": sum(capture["prompts"] for capture in captures),
                "from": min(capture["from"] for capture in captures),
                "until": max(capture["until"] for capture in captures),
            }
        name = _NO_NAME.sub("-", request.domain).strip("-._") or "draft"
        student = self._method.student
        version = f"{name}-{tensors_digest(student.module, student.vocabulary)[:8]}"
        self._method.save(self.work.out, version, request.domain, training)


def _digest(completions: Iterable[Completion]) -> str:
    """Digest prompts and responses, whatever their order."""
    text = json.dumps(sorted((completion.request.prompt, completion.tokens) for completion in completions))
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
