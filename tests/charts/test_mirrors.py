"""Installed behind a mirror, as docs/install.md shows it, nothing is pulled from elsewhere."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from turbo_operator import settings

Render = Callable[..., list[dict[str, Any]]]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def shown(helm: Callable[..., str]) -> list[dict[str, Any]]:
    """What the command of the page installs."""
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    (section,) = re.findall(r"^## Without access to the internet\n(.*?)^## ", page, re.M | re.S)
    (block,) = re.findall(r"^```sh\n(.*?)^```", section, re.M | re.S)
    words = shlex.split(block.replace("\\\n", " "))
    assert words[:5] == ["helm", "upgrade", "--install", "turbo", "charts/turbo"]
    options = [word for word in words[5:] if word != "--create-namespace"]
    text = helm("template", "turbo", str(ROOT / "charts" / "turbo"), *options)
    return [document for document in yaml.safe_load_all(text) if document]


def images(value: Any) -> Iterator[str]:
    """Every image that is pulled by objects of the release, or that the operator is told to use."""
    if isinstance(value, dict):
        if isinstance(value.get("image"), str):
            yield value["image"]
        if str(value.get("name", "")).endswith("_IMAGE"):
            yield value["value"]
        value = list(value.values())
    for part in value if isinstance(value, list) else ():
        yield from images(part)


def test_every_image_comes_from_the_mirror(shown: list[dict[str, Any]]) -> None:
    pulled = {image for item in shown if item["kind"] != "CustomResourceDefinition" for image in images(item)}
    assert pulled == {
        *(f"mirror.example.com/turbo/turbo-{name}:TAG" for name in ("operator", "runtime", "router")),
        "mirror.example.com/vllm/vllm-openai:v0.32.0",
    }


def test_pods_that_read_models_ask_the_mirror_of_the_hub_by_the_proxy(shown: list[dict[str, Any]]) -> None:
    (deployment,) = (item for item in shown if item["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    told = settings.read({each["name"]: each.get("value", "turbo-system") for each in container["env"]})
    assert dict(told.model_env) == {
        "HF_ENDPOINT": "https://hub.example.com",
        "HTTPS_PROXY": "http://proxy.example.com:3128",
        "NO_PROXY": ".svc,.cluster.local,10.0.0.0/8",
    }


@pytest.mark.parametrize(
    ("repository", "mirrored"),
    [
        ("turbo-runtime", "m.example:5000/a/turbo-runtime"),
        ("org/turbo-runtime", "m.example:5000/a/org/turbo-runtime"),
        ("registry.example/org/turbo-runtime", "m.example:5000/a/org/turbo-runtime"),
        ("localhost/turbo-runtime", "m.example:5000/a/turbo-runtime"),
        ("registry:5000/turbo-runtime", "m.example:5000/a/turbo-runtime"),
    ],
)
def test_the_mirror_stands_where_the_registry_stood(render: Render, repository: str, mirrored: str) -> None:
    digest = "sha256:" + "a" * 64
    named = (f"--set=image.runtime.repository={repository}", f"--set=image.runtime.digest={digest}")
    for registry, expected in (("", repository), ("m.example:5000/a", mirrored)):
        pulled = set(images(render(*named, f"--set=global.imageRegistry={registry}")))
        assert f"{expected}@{digest}" in pulled


def test_a_chart_that_contains_this_one_may_have_global_values_of_its_own(render: Render) -> None:
    assert render("--set=global.storageClass=fast") == render()
