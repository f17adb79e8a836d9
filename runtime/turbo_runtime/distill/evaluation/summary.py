"""What has come of a distillation, in a line for each domain."""

from __future__ import annotations

from turbo_runtime.distill.evaluation.record import DomainRecord, Record

_FEW = 20  # answers that figures are of
_NO_LOSS = 0.98  # of the speed from memory alone: less is no accident of measuring


def summary(record: Record) -> list[str]:
    """For the terminal."""
    lines = [f"{domain}: {'; '.join(_parts(found))}" for domain, found in record.domains.items()]
    if record.left_out:
        answers = record.left_out + sum(record.answers.values())
        told = f"{record.left_out} of {answers} answers say one thing over and over or end at once"
        lines.insert(0, f"{told}: they are left out")
    return lines


def _parts(found: DomainRecord) -> list[str]:
    length, count = found.unseen.acceptance_length, found.unseen.answers
    if not count:
        return ["every answer held out stands among those learnt from; give more prompts to measure it"]
    parts = [f"acceptance length {length or 0:.2f} over {count} answers held out"]
    if found.gains:
        told = "{0.after:.2f} times as fast at {0.batch} ({0.before:.2f} from memory alone)"
        parts.append(", ".join(told.format(gain) for gain in found.gains))
    slower = [str(gain.batch) for gain in found.gains if gain.after < _NO_LOSS * gain.before]
    if slower:
        parts.append(f"at {', '.join(slower)} memory alone is faster")
    if count < _FEW:
        parts.append(f"{count} are few to measure on: give more prompts")
    return parts
