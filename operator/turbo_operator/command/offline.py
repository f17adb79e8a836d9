"""The inputs of `turbo plan`: a file, and where given a catalogue and a model's shape."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from turbo_operator import api
from turbo_operator.catalog import catalogue
from turbo_operator.command import files
from turbo_operator.command.errors import BadInputError
from turbo_operator.command.model import shape_of
from turbo_operator.command.question import Answer, Question, ask
from turbo_operator.observed import Accelerator, Observed


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the command line names."""

    file: str  # TurboDeployments, and TurboAccelerators that go with them
    catalogue: str | None  # TurboAccelerators in place of shipped ones, or beside them
    model: str | None  # where the shape is read from


def answers(inputs: Inputs, what_if: Sequence[str] = ()) -> list[Answer]:
    """The plan of each TurboDeployment in the file; BadInputError names what is wrong with what was given."""
    given = list(files.objects(inputs.file))
    deployments = [found for found in given if found.body.get("kind") == api.TURBODEPLOYMENT]
    if not deployments:
        raise BadInputError(f"{inputs.file}: there is no object of kind {api.TURBODEPLOYMENT} in it.")
    overlay = [*(files.objects(inputs.catalogue) if inputs.catalogue else ()), *given]
    accelerators = catalogue(
        files.accelerator(found) for found in overlay if found.body.get("kind") == api.TURBOACCELERATOR
    )
    return [ask(_question(found, inputs.model, accelerators), what_if) for found in deployments]


def _question(found: files.Found, model: str | None, accelerators: Mapping[str, Accelerator]) -> Question:
    td = files.deployment(found)
    return Question(
        document=files.as_written(found.body),
        td=td,
        model=model or td.spec.model.uri,
        shape=shape_of(td, model),
        observed=Observed(accelerators),
        now=time.time(),
    )
