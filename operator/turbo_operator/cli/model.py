"""The shape of a TurboDeployment's model, where no inspect Job has read it."""

from __future__ import annotations

import difflib
from pathlib import Path

from turbo_operator import api
from turbo_operator.catalog import UnknownShapeError, shapes
from turbo_operator.cli.errors import BadInputError
from turbo_runtime.contract.model import ModelShape

CONFIG = "config.json"


def shape_of(td: api.TurboDeployment) -> ModelShape:
    """Return the shipped shape of the URI. Raises BadInputError."""
    shape = shapes.shipped(td.spec.model.hub_id) if td.spec.model.on_hub else None
    if shape is None:
        hint = _nearest(td.spec.model.hub_id) if td.spec.model.on_hub else ""
        raise BadInputError(
            f"spec.model.uri: the shape of {td.spec.model.uri} is not known without a cluster: give "
            f"--model with its config.json or with what `turbo inspect MODEL` prints.{hint}"
        )
    return shape


def _nearest(hub_id: str) -> str:
    """Suggest the shipped shape that may be meant, or nothing."""
    near = difflib.get_close_matches(hub_id.lower(), shapes.names(), n=1, cutoff=0.8)
    return f" Did you mean {near[0]}?" if near else ""


def given_shape(model: str) -> ModelShape:
    """Read the shape of `--model`. Raises BadInputError."""
    if not model:
        raise BadInputError("--model: write a folder, a config.json or a hub id.")
    path = Path(model)
    if path.is_dir() and not (path / CONFIG).exists():
        raise BadInputError(
            f"--model {model}: there is no {CONFIG} in this folder; what `turbo inspect {model}` prints says "
            "the shape of weights."
        )
    path = path / CONFIG if path.is_dir() else path
    if not path.exists():
        if shape := shapes.shipped(model):
            return shape
        raise BadInputError(
            f"--model {model}: there is no such file, and no shipped shape of that name.{_nearest(model)}"
        )
    try:
        return shapes.from_document(path.read_text(encoding="utf-8"), str(path))
    except UnknownShapeError as error:
        raise BadInputError(f"--model {error}") from error
    except UnicodeDecodeError as error:
        raise BadInputError(
            f"--model {path} is no text; what `turbo inspect {path}` prints says the shape of weights."
        ) from error
    except OSError as error:
        raise BadInputError(f"--model {path}: {error.strerror}.") from error
