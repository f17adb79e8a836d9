"""The site: generated files are current, links and anchors exist, every page is in the navigation."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml

from turbo_dev.documentation import __main__ as generators
from turbo_dev.documentation import diagrams, figures
from turbo_operator.api import TurboAccelerator, TurboDeployment, TurboDraft
from turbo_operator.catalog import shipped_objects

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *PAGES]
RECORDS = {record.__name__: record for record in (TurboAccelerator, TurboDeployment, TurboDraft)}
README_LINES = 150


@pytest.mark.parametrize("name", generators.GENERATORS)
def test_generated_documentation_is_current(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert generators.main([name, "--check"]) == 0, capsys.readouterr().err


def test_a_stale_file_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stale = ROOT / "docs" / "images" / "no-such-image.svg"
    monkeypatch.setitem(generators.GENERATORS, "diagrams", lambda: {stale: "new"})
    assert generators.main(["diagrams", "--check"]) == 1
    assert not stale.exists()


def test_every_diagram_has_a_source_and_fits_its_boxes(tmp_path: Path) -> None:
    assert {path.stem for path in diagrams.images()} >= {"system", "request", "reconcile", "draft"}
    source = tmp_path / "wide.yaml"
    source.write_text("title: t\ncell: [100, 60]\nboxes:\n  a: {at: [0, 0], text: far too wide a text}\n")
    with pytest.raises(diagrams.DoesNotFitError, match=r"wide\.yaml: a"):
        diagrams.draw(source)


def test_every_figure_is_of_a_result_with_machine_and_date() -> None:
    for name, _ in figures.FIGURES.values():
        result = yaml.safe_load((figures.RESULTS / f"{name}.json").read_text())
        assert name in (result["benchmark"], f"{result['benchmark']}_other_engines")
        assert result["machine"]["cpu"]
        assert re.match(r"\d{4}-\d{2}-\d{2}", result["date"])
        assert result["commit"] or result["source"]


def slug(heading: str) -> str:
    """The anchor of a heading, as mkdocs and GitHub make it."""
    text = re.sub(r"[`*]|\[([^]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", text.lower()).strip())


def anchors(path: Path) -> set[str]:
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.M | re.S)
    return {slug(match) for match in re.findall(r"^#+ (.+)$", text, re.M)}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_anchor_exists(document: Path) -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]*)#([^)]+)\)", document.read_text())
    missing = [
        f"{target}#{anchor}"
        for target, anchor in links
        if anchor not in anchors((document.parent / target) if target else document)
    ]
    assert missing == []


@pytest.mark.parametrize("document", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_pages_link_only_within_the_site(document: Path) -> None:
    targets = re.findall(r"\]\((?!https?://)([^)#]+)", document.read_text())
    assert [target for target in targets if DOCS not in (document.parent / target).resolve().parents] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_picture_has_a_text_for_those_who_do_not_see_it(document: Path) -> None:
    assert [match for match in re.findall(r"!\[(.*?)\]\(", document.read_text()) if len(match) < 10] == []


def test_every_page_is_in_the_navigation_and_no_other() -> None:
    text = re.sub(r"!!python\S+", "", (ROOT / "mkdocs.yml").read_text())

    def leaves(node: object) -> list[str]:
        if isinstance(node, str):
            return [node]
        values = node.values() if isinstance(node, dict) else node
        return [leaf for value in values for leaf in leaves(value)]

    nav = leaves(yaml.safe_load(text)["nav"])
    assert sorted(nav) == sorted(str(page.relative_to(DOCS)) for page in PAGES)


def test_every_image_is_shown_somewhere() -> None:
    shown = "".join(document.read_text() for document in DOCUMENTS)
    assert [path.name for path in (DOCS / "images").iterdir() if f"images/{path.name}" not in shown] == []


def test_every_example_is_named_in_a_page() -> None:
    shown = "".join(page.read_text() for page in PAGES)
    assert [path.name for path in (ROOT / "examples").iterdir() if f"examples/{path.name}" not in shown] == []


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_LINES


def test_every_object_of_ours_that_is_shown_is_valid() -> None:
    texts = [
        textwrap.dedent(match[1])
        for document in DOCUMENTS
        for match in re.finditer(r"^ *```yaml\n(.*?)^ *```", document.read_text(), re.M | re.S)
    ]
    texts += [path.read_text() for path in (ROOT / "examples").glob("*.yaml")]
    objects = [item for text in texts for item in yaml.safe_load_all(text) if item]
    ours = [item for item in objects if item["kind"] in RECORDS]
    assert len(ours) > 20
    for item in ours:
        RECORDS[item["kind"]].model_validate(item)


def test_issue_templates_have_what_github_asks_for() -> None:
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        template = yaml.safe_load(path.read_text())
        if path.name != "config.yml":
            assert {"name", "description", "body"} <= set(template)


@pytest.mark.skipif(not importlib.util.find_spec("mkdocs"), reason="mkdocs comes with `make docs`")
def test_the_site_builds(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr


def test_the_labels_of_gpu_nodes_are_the_catalogs() -> None:
    page = (DOCS / "gpu.md").read_text()
    accelerators = {item["metadata"]["name"]: item["spec"] for item in shipped_objects()}
    for name in ("l4", "h100"):
        spec = accelerators[name]
        ((label, value),) = spec["nodeSelector"].items()
        assert f"| `{name}` | `{label}: {value}` | {spec['memory']} |" in page
