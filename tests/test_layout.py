"""The rules of the repository that no other tool checks."""

from __future__ import annotations

import graphlib
import re
import subprocess
import sys
import tomllib
from collections import Counter
from importlib.metadata import entry_points
from pathlib import Path

import grimp

ROOT = Path(__file__).parent.parent
SOURCES = sorted(
    path
    for folder in ("operator", "runtime", "dev", "tests", "benchmarks")
    for path in (ROOT / folder).rglob("*.py")
)
MAX_LINES = 52_000  # 33,500 before there were a second engine, a router, gateways and buckets
SOURCE_ROOTS = ("operator", "runtime", "dev", "tests")


def test_source_roots_are_no_packages() -> None:
    """An `__init__.py` in `operator/` would shadow the standard library's module and break Python itself."""
    stray = [root for root in SOURCE_ROOTS if (ROOT / root / "__init__.py").exists()]
    stray += [str(path) for path in (ROOT / "tests").rglob("__init__.py")]
    assert stray == []


def test_no_file_is_longer_than_400_lines() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in SOURCES}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def test_both_packages_are_within_their_lines() -> None:
    """Raise it with the feature that needs it, in the same commit."""
    files = [path for path in SOURCES if path.relative_to(ROOT).parts[0] in ("operator", "runtime")]
    assert sum(len(path.read_text().splitlines()) for path in files) <= MAX_LINES


def test_no_two_files_of_tests_serve_at_the_same_address() -> None:
    """The runtime's port is one number, and files run beside each other, but for those of the cluster."""
    files = [path for path in (ROOT / "tests").rglob("test_*.py") if path.parent.name != "e2e"]
    taken = Counter(
        address for path in files for address in set(re.findall(r"127\.0\.0\.\d+", path.read_text()))
    )
    assert {address for address, count in taken.items() if count > 1} <= {"127.0.0.1"}


def test_no_module_is_called_utils_helpers_common_or_manager() -> None:
    assert [str(path) for path in SOURCES if re.search(r"utils|helpers|common|manager", path.name)] == []


def test_no_package_has_more_than_20_modules() -> None:
    modules = Counter(path.parent for path in SOURCES if path.is_relative_to(ROOT / "operator"))
    modules |= Counter(path.parent for path in SOURCES if path.is_relative_to(ROOT / "runtime"))
    assert {str(folder.relative_to(ROOT)): count for folder, count in modules.items() if count > 20} == {}


def test_no_two_modules_differ_in_tense_alone() -> None:
    for package in ("operator/turbo_operator", "runtime/turbo_runtime"):
        names = {path.stem for path in (ROOT / package).rglob("*.py")} | {
            path.name for path in (ROOT / package).rglob("*") if (path / "__init__.py").exists()
        }
        assert {name: names & tenses(name) for name in names if names & tenses(name)} == {}


def tenses(verb: str) -> set[str]:
    """Participles and gerunds of a verb, which may drop its last letter or double it."""
    stems = {verb, verb.removesuffix("e"), verb + verb[-1]}
    return {stem + ending for stem in stems for ending in ("ed", "ing")}


def test_no_modules_import_each_other_in_a_cycle() -> None:
    graph = grimp.build_graph("turbo_operator", "turbo_runtime", exclude_type_checking_imports=True)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    graphlib.TopologicalSorter(imports).prepare()  # CycleError names the modules


def run_python(code: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_the_operator_imports_where_torch_and_transformers_are_not_installed() -> None:
    assert (
        run_python(
            "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
            "import turbo_operator.controller.handlers, turbo_operator.cli.commands; print('ok')"
        )
        == "ok"
    )


def test_turbo_plan_imports_neither_kopf_nor_kubernetes_nor_scipy() -> None:
    loaded = run_python(
        "import sys, turbo_operator.cli.commands, turbo_cli\n"
        "print([m for m in ('kopf', 'kubernetes', 'scipy', 'torch', 'transformers') if m in sys.modules])"
    )
    assert loaded == "[]"


def test_importing_the_server_loads_no_torch() -> None:
    assert (
        run_python("import sys, turbo_runtime.server, turbo_runtime.cli.serve; print('torch' in sys.modules)")
        == "False"
    )


def test_matplotlib_is_loaded_where_a_picture_is_drawn_alone() -> None:
    """Not to read or list drafts, to which their records belong."""
    loaded = run_python(
        "import sys, turbo_runtime.cli.distill, turbo_runtime.cli.drafts\n"
        "import turbo_runtime.distill.evaluation.record, turbo_runtime.distill.pipeline\n"
        "print('matplotlib' in sys.modules)"
    )
    assert loaded == "False"


def test_every_sub_command_of_turbo_can_be_loaded() -> None:
    names = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["turbo.commands"]
    installed = {point.name: point.value for point in entry_points(group="turbo.commands")}
    assert installed == names
    for point in entry_points(group="turbo.commands"):
        assert callable(point.load())


def test_versions_agree() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    chart = (ROOT / "charts" / "turbo" / "Chart.yaml").read_text()
    assert f"version: {version}\n" in chart
    assert re.search(rf'appVersion: "?{re.escape(version)}"?\n', chart)


def test_make_help_lists_every_command_with_what_it_does() -> None:
    makefile = (ROOT / "Makefile").read_text()
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    listed = dict(re.findall(r"^  make ([a-z-]+) +(\S.*)$", shown, re.MULTILINE))
    targets = set(re.findall(r"^\.PHONY: (.+)$", makefile, re.MULTILINE))
    assert listed.keys() == {name for names in targets for name in names.split()} - {"announce"}


def test_a_stranger_finds_licence_rules_and_changes_where_a_host_looks_for_them() -> None:
    for name in (
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "CODE_OF_CONDUCT.md",
        "SECURITY.md",
        "ROADMAP.md",
    ):
        assert (ROOT / name).read_text().startswith("# "), name
    licence = (ROOT / "LICENSE").read_text()
    assert "Apache License" in licence
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license"] == "Apache-2.0"
