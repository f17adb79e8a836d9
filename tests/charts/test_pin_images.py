"""The release names the images by digest in the chart that it publishes."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from turbo_dev import binaries, registry

ROOT = Path(__file__).parent.parent.parent
OPERATOR, RUNTIME, ROUTER, PACKAGE = ("sha256:" + letter * 64 for letter in "abcd")


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
    assert pin(values, f"operator={OPERATOR}", f"runtime={RUNTIME}", f"router={ROUTER}").returncode == 0
    for image, digest in (("operator", OPERATOR), ("runtime", RUNTIME), ("router", ROUTER)):
        expected["image"][image] = {
            "repository": f"registry.example.com/turbo/turbo-{image}",
            "tag": "v1.2.3",
            "digest": digest,
        }
    assert yaml.safe_load(values.read_text()) == expected
    assert [line for line in values.read_text().splitlines() if line.lstrip().startswith("#")] == comments


@pytest.mark.parametrize(
    ("image", "problem"),
    [("operator=latest", "is no sha256 digest"), (f"gateway={OPERATOR}", "no image.gateway")],
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


WORKFLOWS = ROOT / ".github" / "workflows"
# Each keeps what it was asked; docker leaves the digest of what it pushed, helm a package, and says a digest.
STAND_IN = """#!/bin/sh
echo "${0##*/} $*" >> "$ASKED"
case "$*" in
    "buildx build --target operator"*) echo '{"containerimage.digest": "OPERATOR"}' > operator.json ;;
    "buildx build --target runtime"*) echo '{"containerimage.digest": "RUNTIME"}' > runtime.json ;;
    "buildx build --target router"*) echo '{"containerimage.digest": "ROUTER"}' > router.json ;;
    package*) touch turbo-1.tgz ;;
    push*) printf 'Pushed: ghcr.io/some/turbo/charts/turbo:1\nDigest: PACKAGE\n' >&2 ;;
esac
"""


def step(part: str) -> str:
    """The script of the one step of the release whose name has `part`."""
    steps = yaml.safe_load((WORKFLOWS / "release.yml").read_text())["jobs"]["publish"]["steps"]
    (found,) = [str(each["run"]) for each in steps if part in each.get("name", "")]
    return found


def test_the_release_publishes_a_chart_that_names_what_it_has_pushed(tmp_path: Path) -> None:
    tools, asked, outputs = (tmp_path / name for name in ("bin", "asked", "outputs"))
    tools.mkdir()
    digests = {"OPERATOR": OPERATOR, "RUNTIME": RUNTIME, "ROUTER": ROUTER, "PACKAGE": PACKAGE}
    stand_in = re.sub(r"\b(OPERATOR|RUNTIME|ROUTER|PACKAGE)\b", lambda found: digests[found[0]], STAND_IN)
    for name in ("docker", "helm", "cosign"):
        (tools / name).write_text(stand_in)
        (tools / name).chmod(0o755)
    shutil.copytree(ROOT / ".github", tmp_path / ".github")
    shutil.copytree(ROOT / "charts", tmp_path / "charts")
    env = {"PATH": f"{tools}:/usr/bin:/bin", "ASKED": str(asked), "GITHUB_OUTPUT": str(outputs)}
    env |= {"REGISTRY": "ghcr.io/Some/Turbo", "TAG": "v1.2.3", "URL": "https://github.com/Some/Turbo"}

    def run(script: str) -> None:
        subprocess.run(["bash", "-e", "-c", script], cwd=tmp_path, env=env, check=True, capture_output=True)

    run(step("Build and push the images"))
    told = dict(line.split("=", 1) for line in outputs.read_text().splitlines())
    env |= {"OUT": told["registry"]} | {
        name.upper(): told[name] for name in ("operator", "runtime", "router")
    }
    run(step("Sign the images"))
    run(step("Publish the chart"))
    values = yaml.safe_load((tmp_path / "charts" / "turbo" / "values.yaml").read_text())["image"]
    for image, digest in (("operator", OPERATOR), ("runtime", RUNTIME), ("router", ROUTER)):
        repository = f"ghcr.io/some/turbo/turbo-{image}"
        assert (values[image]["repository"], values[image]["digest"]) == (repository, digest)
    lines = asked.read_text().splitlines()
    assert [line.split()[:2] for line in lines] == [
        *([["docker", "buildx"]] * 4),
        *([["cosign", "sign"]] * 3),
        ["helm", "package"],
        ["helm", "push"],
        ["cosign", "sign"],
    ]
    for image, line in zip(("operator", "runtime", "router"), lines[1:], strict=False):
        assert f"--target {image} --tag ghcr.io/some/turbo/turbo-{image}:v1.2.3 " in line
        assert {"--push", "--sbom=true", "--provenance=mode=max"} <= {*line.split()}
    assert lines[-2].endswith(" oci://ghcr.io/some/turbo/charts")
    images = (("turbo-operator", OPERATOR), ("turbo-runtime", RUNTIME), ("turbo-router", ROUTER))
    assert [line.split()[-1] for line in lines if line.startswith("cosign sign --yes ")] == [
        f"ghcr.io/some/turbo/{name}@{digest}" for name, digest in (*images, ("charts/turbo", PACKAGE))
    ], "all that was pushed is signed, and by digest"


def test_a_chart_of_unknown_digest_ends_the_release(tmp_path: Path) -> None:
    """Nothing is signed by a tag, which may lead to something else by then."""
    signing = step("Publish the chart").partition("helm push")[2].partition("\n")[2]
    (tmp_path / "cosign").write_text("#!/bin/sh\ntouch signed\n")
    (tmp_path / "cosign").chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "OUT": "o"}
    for said, is_signed in ((f"Digest: {PACKAGE}\n", True), ("Digest: sha256:1\n", False), ("", False)):
        (tmp_path / "signed").unlink(missing_ok=True)
        (tmp_path / "pushed").write_text(said)
        ended = subprocess.run(["bash", "-e", "-c", signing], cwd=tmp_path, env=env, check=False)
        assert ((ended.returncode == 0), (tmp_path / "signed").exists()) == (is_signed, is_signed)


@pytest.mark.cluster
def test_helm_says_the_digest_where_the_release_reads_it(
    helm: Callable[..., str], chart: str, tmp_path: Path
) -> None:
    try:
        with registry.serve(tmp_path) as address:
            helm("package", chart, f"--destination={tmp_path}")
            (package,) = tmp_path.glob("turbo-*.tgz")
            program = binaries.ensure(("helm",))["helm"]
            pushed = subprocess.run(
                [program, "push", package, f"oci://{address}/charts", "--plain-http"],
                env={"HOME": str(tmp_path)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=True,
            ).stdout
    except binaries.GoMissingError as missing:
        pytest.skip(f"no registry: {missing}")
    assert len(re.findall(r"^Digest: sha256:[0-9a-f]{64}$", pushed, re.M)) == 1


def test_a_release_may_do_no_more_than_it_has_to() -> None:
    for workflow in WORKFLOWS.glob("*.yml"):
        described = yaml.safe_load(workflow.read_text())
        allowed = {name: job["permissions"] for name, job in described["jobs"].items()}
        published = {"contents": "read", "packages": "write", "id-token": "write"}
        assert described["permissions"] == {}
        assert allowed.pop("publish", published) == published
        assert all(each == {"contents": "read"} for each in allowed.values()), workflow.name


def test_the_documents_verify_by_the_identity_of_the_workflow_that_signs() -> None:
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    (identity,) = set(re.findall(r"--certificate-identity[= ](\S+?)\"", page))
    assert identity == "https://github.com/OWNER/turbo/.github/workflows/release.yml@refs/tags/vX.Y.Z"
    jobs = yaml.safe_load((WORKFLOWS / "release.yml").read_text())
    assert jobs[True] == {"push": {"tags": ["v*.*.*"]}}  # YAML reads `on` as true
    assert set(re.findall(r"--certificate-oidc-issuer[= ](\S+)", page)) == {
        "https://token.actions.githubusercontent.com"
    }


def test_nothing_is_published_before_every_test_has_passed_and_the_versions_agree() -> None:
    jobs = yaml.safe_load((WORKFLOWS / "release.yml").read_text())["jobs"]
    assert jobs["publish"]["needs"] == "test-full"
    assert [each["run"] for each in jobs["test-full"]["steps"] if "run" in each][-1] == "make test-full"
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    check = ["bash", "-e", "-c", step("is the version of")]
    for tag, status in ((f"v{version}", 0), (version, 1), ("v0.0.0", 1)):
        env = {"PATH": "/usr/bin:/bin", "TAG": tag}
        assert subprocess.run(check, cwd=ROOT, env=env, check=False).returncode == status


@pytest.mark.parametrize("workflow", sorted(WORKFLOWS.glob("*.yml")), ids=lambda path: path.stem)
def test_actions_of_others_are_named_by_commit(workflow: Path) -> None:
    jobs = yaml.safe_load(workflow.read_text())["jobs"].values()
    used = [each["uses"] for job in jobs for each in job["steps"] if "uses" in each]
    assert used
    assert [name for name in used if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", name)] == []
