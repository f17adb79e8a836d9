"""What the operator writes into a pod with a draft model starts, drafts, and changes no text."""

from __future__ import annotations

import sys
from contextlib import closing
from decimal import Decimal
from pathlib import Path

import httpx
import pytest
import torch

from turbo_dev import eagle3_draft, tiny_engine
from turbo_dev.plan_cases import plan
from turbo_dev.server_process import PATIENCE, ServerProcess
from turbo_operator.api import CapacityType, parse
from turbo_operator.render.template import pod_template
from turbo_operator.settings import Settings
from turbo_operator.snapshot import Accelerator
from turbo_runtime.drafters.target import Target
from turbo_runtime.model_files.inspector import inspect_model
from turbo_runtime.models.runner import ModelRunner

SERVE = "import sys; from turbo_runtime.cli.serve import serve; sys.exit(serve(sys.argv[1:]))"
CORE = Accelerator("cpu", "cpu", Decimal(1), 4 << 30, prices={CapacityType.ON_DEMAND: Decimal("0.04")})


@pytest.fixture
def claim(tmp_path: Path) -> Path:
    """A claim with a model, a smaller one and a layer that drafts."""
    tiny_engine.write(tmp_path / "served")
    tiny_engine.write(tmp_path / "small", layers=1)
    runner = ModelRunner(tiny_engine.network(), blocks=4, max_length=64)
    digest = inspect_model(str(tmp_path / "served"), None).digest
    target = Target(digest, runner.decoder.embedding, runner.decoder.output_rows, runner)
    eagle3_draft.write(tmp_path / "layer", target, runner, torch.arange(200), (0, 1, 1))
    return tmp_path


@pytest.mark.parametrize(
    ("method", "draft", "placement", "version"),
    [("DraftModel", "small", "CPU", "small"), ("EAGLE3", "layer", "Auto", "v1")],
)
def test_a_pod_with_a_draft_drafts_with_it_and_answers_as_without(
    claim: Path, method: str, draft: str, placement: str, version: str
) -> None:
    drafts = {"mode": "Required", "method": method, "placement": placement}
    it = parse(
        {
            "apiVersion": "serving.turbo.dev/v1alpha1",
            "kind": "TurboDeployment",
            "metadata": {"name": "chat", "namespace": "team", "uid": "u", "generation": 1},
            "spec": {
                "model": {"uri": "pvc://models/served", "name": "tiny"},
                "engine": {"type": "Turbo"},
                "speculation": {**drafts, "draftModel": {"uri": f"pvc://models/{draft}"}},
            },
        }
    )
    facts, small = (inspect_model(str(claim / name), None) for name in ("served", "small"))
    choice = plan(it.spec, facts.shape, {"cpu": CORE}, draft=small.shape).choice
    assert choice is not None
    (container,) = pod_template(it, choice, facts, "v2a", Settings(runtime_image="r:1"))["spec"]["containers"]
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert {"/models", "/draft-model"} <= {*mounts}
    arguments = [
        argument.replace("/draft-model", str(claim)).replace("/models", str(claim))
        for argument in container["args"]
    ]
    local = ["--host=127.0.0.1", "--port=0", "--shutdown-delay-seconds=0"]
    with closing(ServerProcess([sys.executable, "-c", SERVE, *arguments, *local])) as server:
        server.wait_for("Ready: ", 3 * PATIENCE)
        with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
            body = {"model": "tiny", "prompt": [1, 2, 3], "max_tokens": 60, "temperature": 0}
            texts = [
                client.post("/v1/completions", json={**body, "speculation": on}).json()["choices"][0]["text"]
                for on in (False, True)
            ]
            told = client.get("/version").json()
    assert texts[0] == texts[1] != ""
    assert told["draft_error"] in (None, "")
    assert told["drafts"]["default"] == version
