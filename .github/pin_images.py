"""Write the published images into a chart's values.

    pin_images.py VALUES REGISTRY TAG operator=sha256:... runtime=sha256:...

Line by line, so that the comments of the values survive: each image is three keys below its name.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path


def pin(text: str, registry: str, tag: str, image: str, digest: str) -> str:
    """`text` with the image's repository, tag and digest set; raises ValueError where the values lack one."""
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        raise ValueError(f"{image}: {digest!r} is no sha256 digest")
    block = re.search(rf"^  {image}:\n(?:    .*\n)+", text, re.M)
    if block is None:
        raise ValueError(f"the values have no image.{image}")
    pinned = block.group()
    for key, value in (
        ("repository", f"{registry}/turbo-{image}"),
        ("tag", f'"{tag}"'),
        ("digest", f'"{digest}"'),
    ):
        pinned, found = re.subn(rf"^(    {key}:).*$", rf"\1 {value}", pinned, flags=re.M)
        if found != 1:
            raise ValueError(f"image.{image} has no {key}")
    return text.replace(block.group(), pinned)


if __name__ == "__main__":
    values, registry, tag, *images = sys.argv[1:]
    path = Path(values)
    text = path.read_text()
    for image in images:
        text = pin(text, registry, tag, *image.split("=", 1))
    path.write_text(text)
