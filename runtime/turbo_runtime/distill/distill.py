"""The order of the work: each stage finds what an earlier run has left, and goes on from there."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import re
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from turbo_runtime.command.client import Server
from turbo_runtime.distill.answers import Asked, Said, answer_all
from turbo_runtime.distill.eagle3.method import Eagle3Method
from turbo_runtime.distill.endpoint import Endpoint
from turbo_runtime.distill.errors import DamagedError, DistillError, MayPassError
from turbo_runtime.distill.evaluate import Evaluation, evaluate
from turbo_runtime.distill.gain import BATCHES, ROUNDS, Gain, gain_of, runs, ways
from turbo_runtime.distill.heads import HeadsMethod
from turbo_runtime.distill.kept import Kept, write_kept
from turbo_runtime.distill.method import Method, Student
from turbo_runtime.distill.pilot import Pilot, best, pilot, settings
from turbo_runtime.distill.progress import Progress
from turbo_runtime.distill.recipe import AUTO, HEADS, HELD_OUT, JUDGES, TRAINED, TRAINING, Recipe
from turbo_runtime.distill.record import DomainRecord, Record
from turbo_runtime.distill.report import write_report
from turbo_runtime.distill.served import Served
from turbo_runtime.distill.shards import JUDGES_SHARE, Reader, Shards, fitting
from turbo_runtime.distill.train import Training, read_state
from turbo_runtime.distill.vocabulary import choose_vocabulary, counted
from turbo_runtime.distill.work import Work
from turbo_runtime.drafters.heads.module import Heads
from turbo_runtime.engine.request import SamplingParams
from turbo_runtime.prompts import Prompt, PromptsError
from turbo_runtime.whole import write_whole, write_whole_by

CHECKPOINT, PILOT = "training.pt", "pilot.json"
_NO_NAME = re.compile(r"[^A-Za-z0-9._-]+")
SAVE_SECONDS, SAVE_SHARE = 2.0, 0.05  # of training that a kill loses at most, and of it that saving may take
MEASURED = 64  # prompts of a domain at most that gains are measured on
KNOWN = 64  # answers at most that are in the memory when gains are measured


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
        served: Served,
        model: str,
        active_parameters: int,
        parts: Mapping[str, Sequence[Prompt]],
        kept: Kept,
        recipe: Recipe,
        work: Work,
        options: Options,
        progress: Progress,
    ) -> None:
        """`model`: its name for people; `active_parameters`: those that a token passes; `kept`: answers to be
        learnt from where `parts` has no prompt. Raises PromptsError for prompts that cannot be asked,
        DistillError for kept answers that the model cannot read again.
        """
        self._served, self._model, self._recipe = served, model, recipe
        self._work, self._options, self._progress = work, options, progress
        self._asked, self._kept = self._ask(parts), kept
        kept.check(len(served.target.embedding), served.ready.max_model_len)
        self._active = active_parameters
        self._captured = sorted(
            prompt.captured_at for some in parts.values() for prompt in some if prompt.captured_at is not None
        )
        self._pilots: dict[str, Any] = {}
        if recipe.method != AUTO:
            self._take(recipe)

    def run(self) -> Record:
        """Do all that is left to do. Raises DistillError."""
        self._work.begin()
        self._check_machine()
        parts, left_out = self._answers()
        for name, said in parts.items():
            if not said:
                asked = len(self._asked) or len(self._kept.said)
                raise DistillError(
                    f"no answer is left for the part '{name}' of the prompts: {left_out} of {asked} say one "
                    "thing over and over or end at once; give more prompts, or a higher --temperature"
                )
        if self._recipe.method == AUTO:
            self._take(self._piloted(parts))
        training = self._train(parts)
        student, course = training.student, training.course
        learnt = {one.tokens for one in parts[TRAINING]}
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

    def _piloted(self, parts: Mapping[str, Sequence[Said]]) -> Recipe:
        """The recipe of the method that a pilot says to pay; an earlier run's pilot counts."""
        words, judges = len(self._served.target.embedding), list(parts[JUDGES])
        file = self._work.folder / PILOT
        if not file.is_file():
            found = {}
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
                    found[name] = pilot(method, learnt, judges, recipe, rows, words, self._active, advance)
            write_whole(file, json.dumps({name: dataclasses.asdict(one) for name, one in found.items()}))
        self._pilots = json.loads(file.read_text(encoding="utf-8"))
        chosen = best({name: Pilot(**one) for name, one in self._pilots.items()})
        self._progress.say(f"a pilot says that {chosen} pays most")
        return settings(self._recipe, chosen)

    def _ask(self, parts: Mapping[str, Sequence[Prompt]]) -> list[Asked]:
        recipe = self._recipe
        asked, long = [], []
        room = self._served.ready.max_model_len - recipe.max_tokens
        for part, prompts in parts.items():
            for prompt in prompts:
                ids = self._served.encode(prompt)
                if not ids:
                    raise PromptsError(f"prompt {prompt.name} has no token; leave it out")
                if len(ids) > room:
                    long.append(prompt.name)
                choices = 1 + (recipe.variants if part == TRAINING else 0)
                asked += [Asked(part, prompt.domain, ids, choice) for choice in range(choices)]
        if room < 1:
            raise PromptsError(
                f"an answer of {recipe.max_tokens} tokens leaves no room for a prompt, of "
                f"{self._served.ready.max_model_len} together: lower --max-tokens or raise --max-model-len"
            )
        if long:
            names = f"{', '.join(long[:3])}{f' and {len(long) - 3} more' if len(long) > 3 else ''}"
            raise PromptsError(
                f"beside an answer of {recipe.max_tokens} there is room for prompts of {room} tokens, and "
                f"{names} are longer: leave them out, lower --max-tokens or raise --max-model-len"
            )
        return asked

    def _check_machine(self) -> None:
        """Other arithmetic in the middle would give other bits."""
        ready = self._served.ready
        here: dict[str, Any] = {"guarantee": ready.guarantee}
        if ready.guarantee == "law":
            here["kv_blocks"] = ready.kv_blocks  # who is answered together depends on it
        begun = self._work.first("machine.json", here)
        if begun != here:
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

    def _answers(self) -> tuple[dict[str, list[Said]], int]:
        """By part those that can be learnt from, and how many cannot."""
        said = self._kept.said or self._answered()
        parts: dict[str, list[Said]] = {HELD_OUT: [], JUDGES: [], TRAINING: []}
        left_out = 0
        for one in said:
            if one.looping or len(one.tokens) < 2:
                left_out += 1
            else:
                parts[one.asked.part].append(one)
        return parts, left_out

    def _answered(self) -> list[Said]:
        """Asks what no earlier run has an answer to."""
        recipe = self._recipe
        params = self._params(recipe.temperature)
        again = self._params(max(recipe.temperature, recipe.variant_temperature))
        rows = [(one.part, one.domain, one.prompt, one.choice) for one in self._asked]
        # as they were asked first: a chat template may write the day
        asked = [
            Asked(part, domain, tuple(prompt), choice)
            for part, domain, prompt, choice in self._work.first("asked.json", rows)
        ]
        answering: Served | Endpoint = self._served
        if self._options.endpoint:
            server = Server.at(self._options.endpoint)
            answering = Endpoint(server, server.model(), self._served.tokenizer.encode_written)
        with self._work.stage(self._progress, "answers", len(asked), "prompts") as advance:
            return answer_all(
                asked,
                self._work.folder / "answers",
                lambda group, answered: answering.answer(group, params, again, answered),
                lambda count, known: advance(count, known=known),
            )

    @property
    def _taught(self) -> SamplingParams:
        """The law that is told beside the words."""
        recipe = self._recipe
        params = self._params(recipe.taught_temperature)
        return params if recipe.temperature else dataclasses.replace(params, top_p=1.0, top_k=0)

    def _train(self, parts: Mapping[str, Sequence[Said]]) -> Training[Any, Any]:
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
        self, student: Student[Any, Any], held_out: Sequence[Said], learnt: Collection[tuple[int, ...]]
    ) -> dict[str, DomainRecord]:
        recipe = self._recipe
        taken: dict[str, list[tuple[Said, list[int]]]] = {}
        with self._work.stage(self._progress, "evaluation", len(held_out), "answers") as advance:
            for one, found in self._method.taken(student, held_out):
                taken.setdefault(one.asked.domain, []).append((one, found))
                advance()
        records = {}
        for domain, pairs in taken.items():
            unseen = [pair for pair in pairs if pair[0].tokens not in learnt]
            records[domain] = DomainRecord(_evaluated(unseen, recipe), _evaluated(pairs, recipe))
        return records

    def _gains(
        self,
        heads: Heads,
        parts: Mapping[str, Sequence[Said]],
        records: dict[str, DomainRecord],
        learnt: Collection[tuple[int, ...]],
    ) -> None:
        """Add to each record what drafts bring to the answers of its domain that were not learnt from."""
        params, of_each = self._params(self._recipe.temperature), ways(heads)
        wanted = []
        for domain in records:
            held = [one for one in parts[HELD_OUT] if one.asked.domain == domain]
            asked = [one for one in held if one.tokens not in learnt][:MEASURED]
            known = [one for one in parts[TRAINING] if one.asked.domain == domain][:KNOWN]
            wanted += [(domain, batch, asked, known) for batch in BATCHES if len(asked) >= batch]
        with self._work.stage(self._progress, "gain", len(wanted) * ROUNDS * len(of_each), "runs") as advance:
            for number, (domain, batch, asked, known) in enumerate(wanted):
                file = self._work.folder / "gain" / f"{number:03}.json"
                if file.is_file():
                    gain = Gain(**json.loads(file.read_text(encoding="utf-8")))
                    advance(ROUNDS * len(of_each), known=True)
                else:
                    found = []
                    for run in runs(self._served, of_each, asked, known, params, batch):
                        found.append(run)
                        advance()
                    gain = gain_of(batch, found)
                    write_whole(file, json.dumps(dataclasses.asdict(gain)))
                before = records[domain]
                records[domain] = dataclasses.replace(before, gains=(*before.gains, gain))

    def _save(
        self, student: Student[Any, Any], learnt: Sequence[Said], counts: Mapping[str, int], left_out: int
    ) -> None:
        """The configuration comes last: without it the folder is no artefact yet."""
        request = self._work.request
        answers = json.dumps(sorted((one.asked.prompt, one.tokens) for one in learnt))
        training: dict[str, Any] = {
            "request": request.document(),
            "answers": counts,
            "answers_digest": f"sha256:{hashlib.sha256(answers.encode()).hexdigest()}",
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
        version = f"{_NO_NAME.sub('-', request.domain)}-{self._method.digest(student)[:8]}"
        self._method.save(self._work.out, student, version, request.domain, training)


def _instant(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


def _evaluated(pairs: Sequence[tuple[Said, list[int]]], recipe: Recipe) -> Evaluation:
    return evaluate([said for said, _ in pairs], [taken for _, taken in pairs], recipe.depth)
