"""Diagrams drawn as SVG from YAML in docs/diagrams.

A source has a `title`, a grid (`cell`: width and height of a cell), `boxes` by name (`at`: column and row;
`text`; optional `size` and `style`), `groups` (`text`, `from` and `to`: corner cells; `label: bottom`) and
`arrows` (`[from, to, text]`). Text that does not fit its box is an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import yaml

from turbo_dev.paths import REPOSITORY

SOURCES = REPOSITORY / "docs" / "diagrams"
IMAGES = REPOSITORY / "docs" / "images"
_MARGIN, _FONT, _LINE, _CHARACTER = 24, 13, 17, 7.2
_STYLES = {  # fill and line
    "plain": ("#ffffff", "#5c6b8a"),
    "turbo": ("#e8eefc", "#3557b7"),
    "pure": ("#e9f6ec", "#2f7d4a"),
    "store": ("#fdf4e3", "#a46a13"),
}
_Rectangle = tuple[float, float, float, float]  # left, top, width, height


class DoesNotFitError(ValueError):
    """A text is wider or higher than its box."""


def images() -> dict[Path, str]:
    """Every diagram by the path of its image."""
    return {IMAGES / f"{path.stem}.svg": draw(path) for path in sorted(SOURCES.glob("*.yaml"))}


def draw(path: Path) -> str:
    """Return the SVG of one source."""
    source = yaml.safe_load(path.read_text("utf-8"))
    cell = tuple(map(float, source["cell"]))
    boxes = {name: _rectangle(box, cell) for name, box in source["boxes"].items()}
    groups = [_enclosing(group, cell) for group in source.get("groups", ())]
    right = max(left + width for left, _, width, _ in [*boxes.values(), *groups]) + _MARGIN
    bottom = max(top + height for _, top, _, height in [*boxes.values(), *groups]) + _MARGIN
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {right:.0f} {bottom:.0f}" '
            f'width="{right:.0f}" height="{bottom:.0f}" font-family="Helvetica, Arial, sans-serif" '
            f'font-size="{_FONT}" role="img">'
        ),
        f"<title>{escape(source['title'])}</title>",
        (
            '<defs><marker id="arrow" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
            'orient="auto-start-reverse"><path d="M0 0 10 5 0 10z" fill="#444c5c"/></marker></defs>'
        ),
        f'<rect width="{right:.0f}" height="{bottom:.0f}" rx="8" fill="#f7f8fb"/>',
    ]
    for group, rectangle in zip(source.get("groups", ()), groups, strict=True):
        parts += _group(group, rectangle)
    labels: list[str] = []
    for start, end, *text in source.get("arrows", ()):
        line, label = _arrow(boxes[start], boxes[end], text[0] if text else "")
        parts.append(line)
        labels += label
    for name, box in source["boxes"].items():
        parts += _box(f"{path.name}: {name}", box, boxes[name])
    return "\n".join([*parts, *labels, "</svg>", ""])


def _rectangle(box: Mapping[str, Any], cell: Sequence[float]) -> _Rectangle:
    width, height = box.get("size", (cell[0] - 50, cell[1] - 36))
    column, row = box["at"]
    left = _MARGIN + column * cell[0] + (cell[0] - width) / 2
    return left, _MARGIN + row * cell[1] + (cell[1] - height) / 2, width, height


def _enclosing(group: Mapping[str, Any], cell: Sequence[float]) -> _Rectangle:
    (left, top), (right, bottom) = group["from"], group["to"]
    return (
        _MARGIN + left * cell[0] + 4,
        _MARGIN + top * cell[1] - 10,
        (right - left + 1) * cell[0] - 8,
        (bottom - top + 1) * cell[1] + 6,
    )


def _group(group: Mapping[str, Any], rectangle: _Rectangle) -> Iterable[str]:
    left, top, width, height = rectangle
    baseline = top + height - 8 if group.get("label") == "bottom" else top + 18
    yield (
        f'<rect x="{left:.0f}" y="{top:.0f}" width="{width:.0f}" height="{height:.0f}" rx="10" '
        'fill="#eef0f5" stroke="#b9c1d1" stroke-dasharray="5 4"/>'
    )
    yield (
        f'<text x="{left + 12:.0f}" y="{baseline:.0f}" fill="#5c6b8a" font-weight="bold">'
        f"{escape(group['text'])}</text>"
    )


def _box(where: str, box: Mapping[str, Any], rectangle: _Rectangle) -> Iterable[str]:
    left, top, width, height = rectangle
    fill, stroke = _STYLES[box.get("style", "plain")]
    lines = box["text"].split("\n")
    if max(map(len, lines)) * _CHARACTER > width - 8 or len(lines) * _LINE > height - 4:
        raise DoesNotFitError(f"{where}: the text does not fit {width:.0f} x {height:.0f}")
    yield (
        f'<rect x="{left:.0f}" y="{top:.0f}" width="{width:.0f}" height="{height:.0f}" rx="6" '
        f'fill="{fill}" stroke="{stroke}" stroke-width="1.4"/>'
    )
    first = top + height / 2 - (len(lines) - 1) * _LINE / 2 + _FONT * 0.36
    for index, line in enumerate(lines):
        weight = ' font-weight="bold"' if index == 0 and len(lines) > 1 else ""
        yield (
            f'<text x="{left + width / 2:.0f}" y="{first + index * _LINE:.0f}" text-anchor="middle" '
            f'fill="#1d2433"{weight}>{escape(line)}</text>'
        )


def _arrow(start: _Rectangle, end: _Rectangle, text: str) -> tuple[str, list[str]]:
    (x1, y1), (x2, y2) = _border(start, end), _border(end, start)
    line = (
        f'<line x1="{x1:.0f}" y1="{y1:.0f}" x2="{x2:.0f}" y2="{y2:.0f}" stroke="#444c5c" '
        'stroke-width="1.4" marker-end="url(#arrow)"/>'
    )
    if not text:
        return line, []
    lines = text.split("\n")
    middle, label = (y1 + y2) / 2 - (len(lines) - 1) * _LINE / 2 + 4, []
    width = max(map(len, lines)) * 6.4 + 6
    x, y = (x1 + x2) / 2, middle - 13
    label.append(
        f'<rect x="{x - width / 2:.0f}" y="{y:.0f}" width="{width:.0f}" height="{len(lines) * _LINE:.0f}" '
        'rx="3" fill="#f7f8fb" fill-opacity="0.92"/>'
    )
    label += [
        f'<text x="{x:.0f}" y="{middle + index * _LINE:.0f}" text-anchor="middle" font-size="12" '
        f'fill="#444c5c">{escape(words)}</text>'
        for index, words in enumerate(lines)
    ]
    return line, label


def _border(start: _Rectangle, end: _Rectangle) -> tuple[float, float]:
    """Return where the line between the centers leaves the first box."""
    left, top, width, height = start
    center_x, center_y = left + width / 2, top + height / 2
    other_x, other_y = end[0] + end[2] / 2, end[1] + end[3] / 2
    dx, dy = other_x - center_x, other_y - center_y
    scale = min(width / 2 / abs(dx) if dx else float("inf"), height / 2 / abs(dy) if dy else float("inf"))
    return center_x + dx * scale, center_y + dy * scale
