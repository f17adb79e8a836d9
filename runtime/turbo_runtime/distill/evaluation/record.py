"""What a run records of its draft: how it was trained, and how fast it is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from turbo_runtime.contract.training import MOST_DOMAINS, DraftManifest
from turbo_runtime.distill.data.responses import Completion
from turbo_runtime.distill.evaluation.speedup_benchmark import Gain
from turbo_runtime.distill.recipe import EAGLE3, HEADS
from turbo_runtime.distill.workspace import CONFIG_FILE, EVALUATION_FILE
from turbo_runtime.files import checkpoint_digest, write_whole

_MIN_ANSWERS = 20  # that figures are to rest on
_MIN_RATIO = 0.98  # of the speed with memory alone: less is no accident of measuring
_DIGITS = 4  # behind the point: a manifest must fit a termination message


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Acceptance over some responses, of whose tokens the first and the last are never drafted."""

    answers: int
    tokens: int
    acceptance_per_position: tuple[float, ...]  # of a draft's token, all before it being right
    acceptance_length: float | None  # tokens of a verification of whole drafts, its own one included


@dataclass(frozen=True, slots=True)
class DomainRecord:
    """The evaluation on one domain's held-out prompts."""

    unseen: Evaluation  # without responses that stand word for word among the training data
    whole: Evaluation
    measured_on: str  # digest of the unseen responses and their prompts
    gains: tuple[Gain, ...] = ()  # measured on the unseen


@dataclass(frozen=True, slots=True)
class Record:
    """The outcome of one run."""

    method: str
    domains: Mapping[str, DomainRecord]
    answers: Mapping[str, int]  # by part of the prompts, looping ones left out
    left_out: int  # responses that loop or end at once
    losses: tuple[float, ...]  # by epoch
    judged: tuple[float, ...]  # acceptance length in validation, by epoch
    best: int  # epoch, from 0
    seconds: Mapping[str, float]  # by stage, but for what was lost with a run that was killed

    def write(self, folder: Path) -> None:
        """Write it into the folder of the checkpoint."""
        write_whole(folder / EVALUATION_FILE, json.dumps(asdict(self), indent=2, sort_keys=True) + "\n")

    def summary(self) -> list[str]:
        """Summarize for the terminal: a line for each domain."""
        lines = [f"{domain}: {'; '.join(_sentences(record))}" for domain, record in self.domains.items()]
        if self.left_out:
            total = self.left_out + sum(self.answers.values())
            loops = f"{self.left_out} of {total} answers say one thing over and over or end at once"
            lines.insert(0, f"{loops}: they are left out")
        return lines


def _sentences(record: DomainRecord) -> list[str]:
    length, count = record.unseen.acceptance_length, record.unseen.answers
    if not count:
        return ["every answer held out stands among those learnt from; give more prompts to measure it"]
    sentences = [f"acceptance length {length or 0:.2f} over {count} answers held out"]
    if record.gains:
        speedup = "{0.after:.2f} times as fast at {0.batch} ({0.before:.2f} from memory alone)"
        sentences.append(", ".join(speedup.format(gain) for gain in record.gains))
    slower = [str(gain.batch) for gain in record.gains if gain.after < _MIN_RATIO * gain.before]
    if slower:
        sentences.append(f"at {', '.join(slower)} memory alone is faster")
    if count < _MIN_ANSWERS:
        sentences.append(f"{count} are few to measure on: give more prompts")
    return sentences


def evaluate(pairs: Sequence[tuple[Completion, Sequence[int]]], heads: int) -> Evaluation:
    """Evaluate responses, each with the tokens accepted of a draft behind each of its tokens but the last."""
    reached, right = [0] * heads, [0] * heads
    verifications = committed = 0
    for _, counts in pairs:
        at = 0
        while at < len(counts):  # as decoding goes: the next draft begins behind what was accepted
            accepted, rest = counts[at], len(counts) - at  # of tokens that are still to come
            for position in range(min(heads, rest - 1, accepted + 1)):
                reached[position] += 1
                right[position] += position < accepted
            committed += accepted + 1
            verifications += 1
            at += accepted + 1
    return Evaluation(
        len(pairs),
        sum(len(completion.tokens) for completion, _ in pairs),
        tuple(r / n if n else 0.0 for r, n in zip(right, reached, strict=True)),
        committed / verifications if verifications else None,
    )


def read_manifest(folder: Path) -> DraftManifest:
    """Read what is reported of a finished draft from its folder."""
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    info, method = (config["turbo"], EAGLE3) if "turbo" in config else (config, HEADS)
    text = (folder / EVALUATION_FILE).read_text(encoding="utf-8")
    evaluation = json.loads(text, parse_float=lambda number: round(float(number), _DIGITS))
    domains = list(evaluation["domains"].items())[:MOST_DOMAINS]
    manifest = {
        **info,
        "method": method,
        "digest": checkpoint_digest(folder),
        "captured": info["training"].get("capture", {}).get("prompts", 0),
        "worth": [{**found["unseen"], "domain": name, "gains": found["gains"]} for name, found in domains],
    }
    return DraftManifest.from_json(json.dumps(manifest))
