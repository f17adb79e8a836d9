"""The order of the work: each stage finds what an earlier run has left, and goes on from there."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import re
import shutil
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from turbo_runtime.atomic_write import write_whole_by
from turbo_runtime.client.client import Server
from turbo_runtime.distill.data.prompt_set import ask
from turbo_runtime.distill.data.response_store import Kept, lot, write_kept
from turbo_runtime.distill.data.responses import (
    Completion,
    TokenizedPrompt,
    answer_all,
    read_asked,
    write_asked,
)
from turbo_runtime.distill.data.shards import JUDGES_SHARE, Reader, Shards, fitting
from turbo_runtime.distill.data.vocabulary import choose_vocabulary, counted
from turbo_runtime.distill.eagle3.method import Eagle3Method
from turbo_runtime.distill.endpoint import Endpoint
from turbo_runtime.distill.errors import DamagedError, DistillError, MayPassError
from turbo_runtime.distill.evaluation.acceptance import Evaluation, evaluate
from turbo_runtime.distill.evaluation.record import DomainRecord, Record
from turbo_runtime.distill.evaluation.report import write_report
from turbo_runtime.distill.evaluation.speedup_benchmark import (
    BATCHES,
    ROUNDS,
    WARM_UP,
    Gain,
    gain_of,
    runs,
    ways,
)
from turbo_runtime.distill.heads import HeadsMethod
from turbo_runtime.distill.method import Method, Student
from turbo_runtime.distill.pilot import Pilot, best, pilot, settings
from turbo_runtime.distill.progress import Progress
from turbo_runtime.distill.recipe import AUTO, HEADS, HELD_OUT, JUDGES, TRAINED, TRAINING, Recipe
from turbo_runtime.distill.target import TargetModel
from turbo_runtime.distill.trainer import Training, read_state
from turbo_runtime.distill.workspace import Workspace
from turbo_runtime.drafters.heads.module import Heads
from turbo_runtime.messages import SamplingParams
from turbo_runtime.prompts import Prompt

ASKED, ANSWERS, CHECKPOINT = "asked.jsonl", "answers", "training.pt"
MACHINE, PILOT = "machine.json", "pilot.json"
_NO_NAME = re.compile(r"[^A-Za-z0-9._-]+")
SAVE_SECONDS, SAVE_SHARE = 2.0, 0.05  # between two savings at least, and of the time that saving may take
MEASURED = 64  # prompts of a domain at most that gains are measured on


@dataclass(frozen=True, slots=True)
class Options:
    """How the work is done; changes nothing of the artefact."""

    gain: bool = True  # measure speeds too
    keep_answers: bool = False  # in a file beside the artefact
    endpoint: str = ""  # of a server that gives the answers; empty: the model in this process does


class Distillation:
    """One request, worked off."""

    def __init__(
        self,
        served: TargetModel,
        model: str,
        active_parameters: int,
        parts: Mapping[str, Sequence[Prompt]],
        kept: Kept,
        recipe: Recipe,
        work: Workspace,
        options: Options,
        progress: Progress,
    ) -> None:
        """`model`: its name for people; `active_parameters`: those that a token passes; `kept`: answers to be
        learnt from where `parts` has no prompt. Raises DistillError for some that the model cannot
        read again.
        """
        self._served, self._model, self._recipe = served, model, recipe
        self._work, self._options, self._progress = work, options, progress
        self._prompts, self._kept = parts, kept
        kept.check(len(served.target.embedding), served.ready.max_model_len)
        self._active = active_parameters
        self._captured = sorted(
            prompt.captured_at for some in parts.values() for prompt in some if prompt.captured_at is not None
        )
        self._pilots: dict[str, Any] = {}
        if recipe.method != AUTO:
            self._take(recipe)

    def run(self) -> Record:
        """Do all that is left to do. Raises PromptsError for prompts that cannot be asked, before anything is
        begun; DistillError.
        """
        # as they were asked first: a chat template may write the day
        before = read_asked(self._work.folder / ASKED)
        asked = self._ask() if before is None else before
        self._work.begin()
        self._check_machine()
        if before is None:
            shutil.rmtree(self._work.folder / ANSWERS, ignore_errors=True)  # to what, a disk has lost
            write_asked(self._work.folder / ASKED, asked)
        parts, left_out = self._answers(asked)
        for name, said in parts.items():
            if not said:
                count = left_out + sum(map(len, parts.values()))
                raise DistillError(
                    f"no answer is left for the part '{name}' of the prompts: {left_out} of {count} say one "
                    "thing over and over or end at once; give more prompts, or a higher --temperature"
                )
        if self._recipe.method == AUTO:
            self._take(self._piloted(parts))
        training = self._train(parts)
        student, course = training.student, training.course
        learnt = {one.tokens for name in (TRAINING, JUDGES) for one in parts[name]}
        domains = self._evaluate(student, parts[HELD_OUT], learnt)
        heads = self._method.heads(student)
        if self._options.gain and heads:
            self._gains(heads, parts, domains, learnt)
        counts = {name: len(said) for name, said in parts.items()}
        record = Record(
            self._recipe.method,
            domains,
            counts,
            left_out,
            tuple(course.losses),
            tuple(course.judged),
            course.best,
            self._work.seconds,
        )
        record.write(self._work.out)
        write_report(self._work.out, record, self._model)
        if self._options.keep_answers:
            write_kept(self._work.out, [one for said in parts.values() for one in said])
        self._save(student, parts[TRAINING], counts, left_out)
        self._work.remove()
        return record

    def _take(self, recipe: Recipe) -> None:
        """From here on this method is meant."""
        self._recipe, self._method = recipe, self._method_of(recipe)
        self._rows = self._rows_of(self._method)

    def _rows_of(self, method: Method[Any, Any]) -> int:
        """Rows of material that the memory holds."""
        memory = int(self._work.request.memory_gib * 2**30)
        return max(1, memory // (2 * method.row_bytes))  # twice: while they are joined

    def _method_of(self, recipe: Recipe) -> Method[Any, Any]:
        if recipe.method == HEADS:
            return HeadsMethod(self._served, recipe, self._taught)
        return Eagle3Method(self._served, self._model, recipe, self._taught)

    def _piloted(self, parts: Mapping[str, Sequence[Completion]]) -> Recipe:
        """The recipe of the method that a pilot says to pay; an earlier run's pilot counts."""
        words, judges = len(self._served.target.embedding), list(parts[JUDGES])
        pilots = self._work.read(PILOT)
        if pilots is None:
            pilots = {}
            with self._work.stage(self._progress, "pilot", len(TRAINED), "methods") as advance:
                for name in TRAINED:
                    recipe = settings(self._recipe, name)
                    try:
                        method = self._method_of(recipe)
                    except DistillError:  # the model has too few layers for it
                        advance()
                        continue
                    rows = self._rows_of(method)
                    learnt = parts[TRAINING]
                    found = pilot(method, learnt, judges, recipe, rows, words, self._active, advance)
                    pilots[name] = dataclasses.asdict(found)
            self._work.write(PILOT, pilots)
        self._pilots = pilots
        chosen = best({name: Pilot(**one) for name, one in pilots.items()})
        self._progress.say(f"a pilot says that {chosen} pays most")
        return settings(self._recipe, chosen)

    def _ask(self) -> list[TokenizedPrompt]:
        room = self._served.ready.max_model_len - self._recipe.max_tokens
        asked, left_out = ask(self._prompts, self._served.encode, self._recipe, room)
        if left_out:
            self._progress.say(f"{left_out} captured prompts of more than {room} tokens are left out")
        return asked

    def _check_machine(self) -> None:
        """Other arithmetic in the middle would give other bits."""
        ready = self._served.ready
        here: dict[str, Any] = {"guarantee": ready.guarantee}
        if ready.guarantee == "law":
            here["kv_blocks"] = ready.kv_blocks  # who is answered together depends on it
        begun = self._work.read(MACHINE)
        if begun is None:
            self._work.write(MACHINE, here)
        elif begun != here:
            raise MayPassError(
                f"the model computes otherwise than when this was begun: {here} and not {begun}; try again "
                f"when the machine is less busy, or remove {self._work.folder}"
            )

    def _params(self, temperature: float) -> SamplingParams:
        recipe = self._recipe
        return SamplingParams(
            temperature=temperature,
            top_p=recipe.top_p,
            top_k=recipe.top_k,
            seed=recipe.seed,
            max_tokens=recipe.max_tokens,
            stop_token_ids=self._served.stop_ids,
        )

    def _answers(self, asked: Sequence[TokenizedPrompt]) -> tuple[dict[str, list[Completion]], int]:
        """By part those that can be learnt from, and how many cannot."""
        said = self._kept.said or self._answered(asked)
        parts: dict[str, list[Completion]] = {HELD_OUT: [], JUDGES: [], TRAINING: []}
        left_out = 0
        for one in said:
            if one.looping or len(one.tokens) < 2:
                left_out += 1
            else:
                parts[one.asked.part].append(one)
        return parts, left_out

    def _answered(self, asked: Sequence[TokenizedPrompt]) -> list[Completion]:
        """Asks what no earlier run has an answer to."""
        recipe = self._recipe
        params, again = (self._params(recipe.drawn_at(choice)) for choice in (0, 1))
        answering: TargetModel | Endpoint = self._served
        if self._options.endpoint:
            server = Server.at(self._options.endpoint)
            answering = Endpoint(server, server.model(), self._served.tokenizer.encode_written)
        with self._work.stage(self._progress, "answers", len(asked), "prompts") as advance:
            return answer_all(
                asked,
                self._work.folder / ANSWERS,
                lambda group, answered: answering.answer(group, params, again, answered),
                lambda count, known: advance(count, known=known),
            )

    @property
    def _taught(self) -> SamplingParams:
        """The law that is told beside the words."""
        recipe = self._recipe
        params = self._params(recipe.taught_temperature)
        return params if recipe.temperature else dataclasses.replace(params, top_p=1.0, top_k=0)

    def _train(self, parts: Mapping[str, Sequence[Completion]]) -> Training[Any, Any]:
        recipe, method, words = self._recipe, self._method, len(self._served.target.embedding)
        shards = Shards.of(parts[TRAINING], method.rows, self._rows, recipe.seed)
        reader = Reader(shards, method.read)
        checkpoint = self._work.folder / CHECKPOINT
        state: dict[str, Any] = {}
        if checkpoint.is_file():
            try:
                state = read_state(checkpoint)
            except DamagedError as error:
                self._progress.say(f"{checkpoint} cannot be read ({error}): training begins anew")
        if state:
            vocabulary = state["vocabulary"]
        else:
            counts = counted([one.tokens for one in parts[TRAINING]], words)
            number = shards.order(0, recipe.seed)[0]
            with self._work.stage(self._progress, "states", 1, "part") as advance:
                first = reader.part(number)
                advance()
            vocabulary = choose_vocabulary(counts, first.places, recipe.vocabulary)
            del first  # else it would stay in memory beside the part that is learnt from
        judges = list(parts[JUDGES])
        random.Random(recipe.seed).shuffle(judges)  # noqa: S311  a shuffle, no secret
        some = fitting(judges, method.rows, self._rows // JUDGES_SHARE)
        student = method.student(vocabulary)
        training = Training(student, words, shards, reader, lambda: method.read(some), recipe)
        if state:
            training.load(state)
        steps, done_before = training.steps, training.course.step
        with self._work.stage(self._progress, "training", steps, "steps", done_before) as advance:
            due = time.monotonic() + SAVE_SECONDS

            def done(_: int) -> None:
                nonlocal due
                advance()
                began = time.monotonic()
                if began >= due:
                    write_whole_by(checkpoint, training.save)
                    saved = time.monotonic()
                    due = saved + max(SAVE_SECONDS, (saved - began) / SAVE_SHARE)

            training.run(done)
            write_whole_by(checkpoint, training.save)
        student.module.eval().requires_grad_(False)
        return training

    def _evaluate(
        self, student: Student[Any, Any], held_out: Sequence[Completion], learnt: Collection[tuple[int, ...]]
    ) -> dict[str, DomainRecord]:
        recipe = self._recipe
        taken: dict[str, list[tuple[Completion, list[int]]]] = {}
        with self._work.stage(self._progress, "evaluation", len(held_out), "answers") as advance:
            for one, found in self._method.taken(student, held_out):
                taken.setdefault(one.asked.domain, []).append((one, found))
                advance()
        records = {}
        for domain, pairs in taken.items():
            unseen = [pair for pair in pairs if pair[0].tokens not in learnt]
            measured_on = _digest([one for one, _ in unseen])
            records[domain] = DomainRecord(_evaluated(unseen, recipe), _evaluated(pairs, recipe), measured_on)
        return records

    def _gains(
        self,
        heads: Heads,
        parts: Mapping[str, Sequence[Completion]],
        records: dict[str, DomainRecord],
        learnt: Collection[tuple[int, ...]],
    ) -> None:
        """Add to each record what drafts bring to the answers of its domain that were not learnt from."""
        of_each, wanted = ways(heads), []
        for domain in records:
            held = sorted((one for one in parts[HELD_OUT] if one.asked.domain == domain), key=lot)
            asked = [one for one in held if one.tokens not in learnt][:MEASURED]
            learnt_from = sorted((one for one in parts[TRAINING] if one.asked.domain == domain), key=lot)
            known = [one for one in learnt_from if not one.asked.choice]  # as a server that has said them
            judges = sorted((one for one in parts[JUDGES] if one.asked.domain == domain), key=lot)[:WARM_UP]
            wanted += [(domain, batch, asked, known, judges) for batch in BATCHES if len(asked) >= batch]
        with self._work.stage(self._progress, "gain", len(wanted) * ROUNDS * len(of_each), "runs") as advance:
            for number, (domain, batch, asked, known, warm_up) in enumerate(wanted):
                name = f"gain/{number:03}.json"
                if (measured := self._work.read(name)) is not None:
                    gain = Gain(**measured)
                    advance(ROUNDS * len(of_each), known=True)
                else:
                    params = self._params(asked[0].asked.temperature)
                    found = []
                    for run in runs(self._served, of_each, asked, known, warm_up, params, batch):
                        found.append(run)
                        if len(found) % len(of_each) == 0:  # the ways of a round end one soon after another
                            advance(len(of_each))
                    gain = gain_of(batch, found)
                    self._work.write(name, dataclasses.asdict(gain))
                before = records[domain]
                records[domain] = dataclasses.replace(before, gains=(*before.gains, gain))

    def _save(
        self,
        student: Student[Any, Any],
        learnt: Sequence[Completion],
        counts: Mapping[str, int],
        left_out: int,
    ) -> None:
        """The configuration comes last: without it the folder is no artefact yet."""
        request = self._work.request
        training: dict[str, Any] = {
            "request": request.document(),
            "answers": counts,
            "answers_digest": _digest(learnt),
            "left_out": left_out,
        }
        if self._pilots:
            training["pilot"] = self._pilots
        captures = [*self._kept.captures]
        if self._captured:
            first, last = (_instant(self._captured[at]) for at in (0, -1))
            captures.append({"prompts": len(self._captured), "from": first, "until": last})
        if captures:
            training["capture"] = {
                "prompts": sum(one["prompts"] for one in captures),
                "from": min(one["from"] for one in captures),
                "until": max(one["until"] for one in captures),
            }
        name = _NO_NAME.sub("-", request.domain).strip("-._") or "draft"
        version = f"{name}-{self._method.digest(student)[:8]}"
        self._method.save(self._work.out, student, version, request.domain, training)


def _instant(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


def _digest(said: Iterable[Completion]) -> str:
    """Of prompts and answers, whatever their order."""
    answers = json.dumps(sorted((one.asked.prompt, one.tokens) for one in said))
    return f"sha256:{hashlib.sha256(answers.encode()).hexdigest()}"


def _evaluated(pairs: Sequence[tuple[Completion, list[int]]], recipe: Recipe) -> Evaluation:
    return evaluate([said for said, _ in pairs], [taken for _, taken in pairs], recipe.depth)
