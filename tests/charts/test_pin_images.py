"""The release names the images by digest in the chart that it publishes."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
OPERATOR, RUNTIME = "sha256:" + "a" * 64, "sha256:" + "b" * 64


def pin(values: Path, *images: str) -> subprocess.CompletedProcess[str]:
    script = ROOT / ".github" / "pin_images.py"
    words = [sys.executable, str(script), str(values), "registry.example.com/turbo", "v1.2.3", *images]
    return subprocess.run(words, capture_output=True, text=True, check=False)


@pytest.fixture
def values(tmp_path: Path) -> Path:
    copy = tmp_path / "values.yaml"
    shutil.copy(ROOT / "charts" / "turbo" / "values.yaml", copy)
    return copy


def test_both_images_are_pinned_and_nothing_else_changes(values: Path) -> None:
    expected = yaml.safe_load(values.read_text())
    comments = [line for line in values.read_text().splitlines() if line.lstrip().startswith("#")]
    assert pin(values, f"operator={OPERATOR}", f"runtime={RUNTIME}").returncode == 0
    for image, digest in (("operator", OPERATOR), ("runtime", RUNTIME)):
        expected["image"][image] = {
            "repository": f"registry.example.com/turbo/turbo-{image}",
            "tag": "v1.2.3",
            "digest": digest,
        }
    assert yaml.safe_load(values.read_text()) == expected
    assert [line for line in values.read_text().splitlines() if line.lstrip().startswith("#")] == comments


@pytest.mark.parametrize(
    ("image", "problem"),
    [("operator=latest", "is no sha256 digest"), (f"router={OPERATOR}", "no image.router")],
)
def test_what_cannot_be_pinned_ends_the_release(values: Path, image: str, problem: str) -> None:
    before = values.read_text()
    asked = pin(values, image)
    assert asked.returncode != 0
    assert problem in asked.stderr
    assert values.read_text() == before


def test_chart_has_the_version_of_the_distribution() -> None:
    described = yaml.safe_load((ROOT / "charts" / "turbo" / "Chart.yaml").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert described["version"] == described["appVersion"] == project["version"]
