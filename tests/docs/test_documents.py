"""What README and docs show is true: YAML is accepted, commands exist, links lead somewhere."""

from __future__ import annotations

import ast
import html
import json
import re
import shlex
import subprocess
import sys
import textwrap
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path

import pytest
import yaml

from turbo_dev import binaries, transcripts
from turbo_dev.access import Access
from turbo_dev.shell import CommandError
from turbo_operator import api
from turbo_operator.api import conditions, crd
from turbo_runtime.capture.recorder import read_settings
from turbo_runtime.cli import distill
from turbo_runtime.contract.config import RuntimeConfig
from turbo_runtime.server import metrics as runtime_metrics

ROOT = Path(__file__).parent.parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))


def blocks(language: str) -> list[tuple[str, str]]:
    """(document, text) of every fenced block in that language."""
    return [
        (str(document.relative_to(ROOT)), textwrap.dedent(match.group(1)))
        for document in DOCUMENTS
        for match in re.finditer(rf"^ *```{language}\n(.*?)^ *```", document.read_text(), re.M | re.S)
    ]


def objects() -> list[tuple[str, dict[str, object]]]:
    """Every Kubernetes object that a document or an example shows."""
    texts = blocks("yaml") + [(str(path.relative_to(ROOT)), path.read_text()) for path in EXAMPLES]
    return [(where, item) for where, text in texts for item in yaml.safe_load_all(text) if item]


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("where", "item"), objects(), ids=lambda value: value if isinstance(value, str) else value["kind"]
)
def test_the_api_server_accepts_every_object_shown(
    where: str, item: dict[str, object], api_server: Access
) -> None:
    shown, ways = json.dumps(item), ExitStack()
    if str(item["apiVersion"]).startswith("gateway.networking.k8s.io/"):
        try:
            ways.enter_context(api_server.knowing(binaries.http_routes()))
        except binaries.GoMissingError as missing:
            pytest.skip(f"no HTTPRoutes: {missing}")
    with ways:
        assert "(server dry run)" in api_server.kubectl(
            "apply", "--dry-run=server", "--validate=strict", "-f", "-", input=shown
        ), where


def commands() -> list[tuple[str, list[str]]]:
    """Every command line of the `sh` blocks, and every `make ...` in inline code, split into words."""
    found = []
    for where, text in blocks("sh"):
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words:
                found.append((where, words))
    found += [
        (str(document.relative_to(ROOT)), shlex.split(match.group(1)))
        for document in DOCUMENTS
        for match in re.finditer(r"`(make [a-z-]+[^`]*)`", document.read_text())
    ]
    return found


MAKE = sorted({(words[1], tuple(words[2:])) for _, words in commands() if words[0] == "make"})


@pytest.mark.parametrize(("target", "arguments"), MAKE)
def test_every_make_command_shown_is_a_target(target: str, arguments: tuple[str, ...]) -> None:
    variables = [word for word in arguments if "=" in word]
    asked = subprocess.run(
        ["make", "--dry-run", target, *variables], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert asked.returncode == 0, asked.stderr
    for variable in variables:
        if variable.startswith("NAME="):
            assert (ROOT / "benchmarks" / f"{variable[5:]}.py").is_file()


PLANS = sorted({tuple(words) for _, words in commands() if words[:2] == ["turbo", "plan"]})


@pytest.mark.parametrize("words", PLANS, ids=" ".join)
def test_every_turbo_plan_shown_finds_a_plan(words: tuple[str, ...], tmp_path: Path) -> None:
    turbo = Path(sys.executable).parent / "turbo"
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    asked = subprocess.run(
        [str(turbo), *words[1:]], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert asked.returncode == 0, asked.stderr


def test_the_picture_of_a_plan_is_of_the_command_above_it() -> None:
    above = (ROOT / "README.md").read_text().partition("(docs/images/screen-plan.svg)")[0]
    picture = html.unescape((ROOT / "docs/images/screen-plan.svg").read_text()).replace(
        "\N{NO-BREAK SPACE}", " "
    )
    assert f"$ {re.findall(r'^turbo plan .*$', above, re.M)[-1]}</text>" in picture


DISTILLATIONS = [words[2:] for _, words in commands() if words[:2] == ["turbo", "distill"]]


def test_every_distillation_shown_is_one_that_the_command_takes() -> None:
    assert DISTILLATIONS
    for words in DISTILLATIONS:
        distill.parser().parse_args(words)


def test_every_server_shown_is_one_that_turbo_serve_takes() -> None:
    servers = [words[2:] for _, words in commands() if words[:2] == ["turbo", "serve"]]
    assert servers
    for words in servers:
        RuntimeConfig.from_argv(words)  # exits where it does not


def test_every_capture_setting_shown_is_one_that_the_server_takes(tmp_path: Path) -> None:
    shown = [text for where, text in blocks("json") if where == "docs/capture.md"]
    assert shown
    for text in shown:
        (tmp_path / "capture.json").write_text(text)
        assert read_settings(tmp_path / "capture.json").folder


def test_what_commands_are_shown_to_print_is_what_they_print(capsys: pytest.CaptureFixture[str]) -> None:
    assert transcripts.main(["--check"]) == 0, capsys.readouterr().err


def test_every_shown_command_is_run_by_some_test_or_target() -> None:
    """kubectl and helm lines run in the cluster tests, uv's in test_plan_tool; no others may be promised."""
    assert {words[0] for _, words in commands()} <= {"make", "helm", "kubectl", "turbo", "uv"}


@pytest.mark.parametrize(("where", "code"), blocks("python"))
def test_python_shown_is_python(where: str, code: str) -> None:
    ast.parse(code, filename=where)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\((?!https?://)([^)#]+)", document.read_text())
    assert [target for target in targets if not (document.parent / target).exists()] == []


def test_every_condition_and_reason_is_documented() -> None:
    text = "".join((ROOT / "docs" / name).read_text() for name in ("troubleshooting.md", "operations.md"))
    enums = [
        value for value in vars(conditions).values() if isinstance(value, type) and issubclass(value, StrEnum)
    ]
    words = {str(member) for enum in enums for member in enum if enum is not StrEnum}
    assert {word for word in words if f"`{word}`" not in text} == set()
    table = text.partition("| condition | reason |")[2].partition("\n\n")[0]
    cells = [cell for row in table.splitlines() for cell in row.split("|")[1:3]]
    named = {word for cell in cells for word in re.findall(r"`(\w+)`", cell)}
    assert named
    assert named <= words, "a reason that no condition has"


def test_every_metric_of_the_runtime_is_documented() -> None:
    text = (ROOT / "docs" / "monitoring.md").read_text()
    metrics = [metric.name for metric in runtime_metrics.METRICS]
    assert {metric for metric in metrics if f"`{metric}`" not in text} == set()
    assert set(re.findall(r"`((?:vllm|turbo):[a-z_]+)`", text)) <= set(metrics)


def test_every_field_of_the_api_that_a_document_names_is_there() -> None:
    reference = (ROOT / "docs/reference/api.md").read_text().replace("<wbr>", "").replace("[]", "")
    named = {
        (str(document.relative_to(ROOT)), field)
        for document in DOCUMENTS
        for field in re.findall(r"(?<=`)(?:spec|status)(?:\.[a-z]\w*)+", document.read_text())
    }
    assert len(named) > 100
    assert [
        each for each in sorted(named) if not re.search(rf"<code>{re.escape(each[1])}\b", reference)
    ] == []


def test_spelling_is_american() -> None:
    paths = [*DOCUMENTS, *(ROOT / "charts").rglob("*.*"), *(ROOT / "examples").iterdir()]
    british = r"(?i)\w*(?:speed-up|artefact|(?:behavi|col|fav)our|learnt|licence|(?:organ|quant)is)\w*"
    words = {word for path in paths for word in re.findall(british, path.read_text())}
    assert words == set()


def test_every_column_that_a_document_names_is_one_that_kubectl_prints() -> None:
    versions = [definition["spec"]["versions"][0] for definition in crd.definitions()]
    columns = {column["name"].upper() for each in versions for column in each["additionalPrinterColumns"]}
    named = {
        column
        for document in DOCUMENTS
        for words in re.findall(r"\bcolumns? `[^`]+`(?: and `[^`]+`)?", document.read_text())
        for column in re.findall(r"`([^`]+)`", words)
    }
    assert len(named) > 3
    assert named <= columns


@pytest.mark.cluster
def test_apply_rejects_a_misspelled_field_and_patch_drops_it(api_server: Access) -> None:
    body = {"apiVersion": api.API_VERSION, "kind": api.TURBODEPLOYMENT, "metadata": {"name": "misspelled"}}
    right = json.dumps({**body, "spec": {"model": {"uri": "hf://acme/tiny"}}})
    wrong = json.dumps({**body, "spec": {"model": {"uri": "hf://acme/tiny"}, "replica": 2}})
    api_server.kubectl("apply", "-f", "-", input=right)
    try:
        for dry in ((), ("--dry-run=server",)):
            with pytest.raises(CommandError, match=r'unknown field \\?"spec\.replica'):
                api_server.kubectl("apply", *dry, "-f", "-", input=wrong)
        assert "patched" in api_server.kubectl("patch", "td", "misspelled", "--type=merge", "-p", wrong)
        assert "replica" not in api_server.get("td", "misspelled")["spec"]
    finally:
        api_server.kubectl("delete", "td", "misspelled")
