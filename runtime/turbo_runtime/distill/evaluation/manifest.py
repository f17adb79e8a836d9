"""What is told of a draft that is done, read from its folder."""

from __future__ import annotations

import json
from pathlib import Path

from turbo_runtime.checkpoint_digest import artefact_digest
from turbo_runtime.contract.training import MOST_DOMAINS, DomainEvaluation, DraftManifest, MeasuredGain
from turbo_runtime.distill.recipe import EAGLE3, HEADS
from turbo_runtime.distill.workspace import CONFIG_FILE, EVALUATION_FILE

_DIGITS = 4  # behind the point: the whole must fit a termination message


def draft_facts(folder: Path) -> DraftManifest:
    """Of an artefact that `turbo distill` made."""
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    facts, method = (config["turbo"], EAGLE3) if "turbo" in config else (config, HEADS)
    evaluation = json.loads((folder / EVALUATION_FILE).read_text(encoding="utf-8"))
    return DraftManifest(
        method=method,
        version=facts["version"],
        digest=artefact_digest(folder),
        target_digest=facts["target_digest"],
        domain=facts["domain"],
        captured=facts["training"].get("capture", {}).get("prompts", 0),
        worth=tuple(
            DomainEvaluation(
                domain,
                _short(found["unseen"]["acceptance_length"]),
                tuple(round(share, _DIGITS) for share in found["unseen"]["acceptance_per_position"]),
                tuple(
                    MeasuredGain(gain["batch"], round(gain["before"], _DIGITS), round(gain["after"], _DIGITS))
                    for gain in found["gains"]
                ),
            )
            for domain, found in list(evaluation["domains"].items())[:MOST_DOMAINS]
        ),
    )


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, _DIGITS)
