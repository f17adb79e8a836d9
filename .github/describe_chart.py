"""Write the addresses of the repository into the chart that is published: home, sources, icon and links.

    describe_chart.py CHART_YAML URL TAG

A line of Chart.yaml says where they belong. The file in the repository has none of them, because a copy of
the repository would send its users to another one.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

PLACE = re.compile(r"^# A release adds .*\nannotations:\n", re.M)


def describe(text: str, url: str, tag: str) -> str:
    """`text` with the addresses; raises ValueError where they are wrong or have no place."""
    if not re.fullmatch(r"https://[-\w.]+(/[-\w.]+)+", url):
        raise ValueError(f"{url!r} is no https address of a repository")
    if not re.fullmatch(r"[-\w.]+", tag):
        raise ValueError(f"{tag!r} is no tag")
    added = (
        f"home: {url}\n"
        f"sources: [{url}]\n"
        f"icon: {url}/raw/{tag}/charts/turbo/icon.svg\n"
        "annotations:\n"
        "  artifacthub.io/links: |\n"
        f"    - name: Documentation\n      url: {url}/blob/{tag}/docs/index.md\n"
        f"    - name: Support\n      url: {url}/issues\n"
    )
    described, found = PLACE.subn(lambda _: added, text)
    if found != 1:
        raise ValueError("Chart.yaml has no line that says where a release adds its addresses")
    return described


if __name__ == "__main__":
    chart, url, tag = sys.argv[1:]
    path = Path(chart)
    path.write_text(describe(path.read_text(encoding="utf-8"), url, tag), encoding="utf-8")
