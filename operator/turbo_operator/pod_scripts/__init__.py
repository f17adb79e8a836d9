"""Programs that pods run in images that are not Turbo's, brought as files of ConfigMaps."""

from __future__ import annotations

from importlib.resources import files


def read(name: str) -> str:
    """Return the text of one of them."""
    return files(__name__).joinpath(name).read_text(encoding="utf-8")
