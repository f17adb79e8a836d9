"""EAGLE-3 drafts that are trained for engine Turbo: pods take them up as they run, and have room for them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from turbo_dev.plan_cases import plan
from turbo_dev.plan_examples import GIB, LARGE, MIDDLE, SHORT, accelerator, fast, named, spec
from turbo_dev.trainings import CORES, FACTS, ROOM
from turbo_dev.trainings import look as look_at
from turbo_dev.vllm_canaries import FIRST, SETTINGS, TRAINING, td
from turbo_operator import render
from turbo_operator.drafts import training
from turbo_operator.drafts.training import manifests
from turbo_operator.planner.performance import memory
from turbo_operator.render import draft_volume
from turbo_operator.rollout import Variant
from turbo_operator.snapshot import Snapshot
from turbo_runtime.contract.config import RuntimeConfig
from turbo_runtime.drafters.loader import read_selection

ASKED: dict[str, Any] = {"method": "EAGLE3", "training": TRAINING}
TURBO: dict[str, Any] = {"engine": {"type": "Turbo"}, "speculation": ASKED}


def test_who_names_turbo_has_it_trained_from_answers_of_its_own() -> None:
    it = td(**TURBO)
    assert (it.spec.draft_method, it.spec.engines) == ("EAGLE3", ("Turbo",))
    assert td(speculation=ASKED).spec.engines == ("VLLM",), "the default stays"
    observed = Snapshot({"cpu": CORES}, supply=ROOM, free=ROOM, model=FACTS)
    request = look_at(it, observed).job_request
    assert request is not None, "no pod has to answer"
    (container,) = manifests.training_job(it, request, FACTS, SETTINGS)["spec"]["template"]["spec"][
        "containers"
    ]
    assert "--method=eagle3" in container["args"]
    assert not any(argument.startswith("--from") for argument in container["args"])
    heads = replace(FIRST, method="TurboHeads")
    assert training.fitting(it, replace(observed, drafts=(FIRST, heads))) == [FIRST]


def test_pods_are_told_of_it_by_the_file_that_they_follow(tmp_path: Path) -> None:
    it = td(**TURBO)
    choice = plan(it.spec, FACTS.shape, {"cpu": CORES}).choice
    assert choice is not None
    assert choice.method == "Suffix", "it joins as pods run"
    before, after = (render.plan_hash(it, choice, FACTS, draft) for draft in (None, FIRST))
    assert before == after, "and none restarts for it"
    observed = Snapshot({}, model=replace(FACTS, digest=FIRST.target_digest), draft=FIRST)
    made = render.children(it, observed, choice, (Variant(after, 1),), SETTINGS)
    (file,) = (each for each in made if each["metadata"]["name"] == draft_volume.configmap_name(it))
    data = file["data"][draft_volume.FILE]
    assert json.loads(data) == {
        "eagle3": f"/drafts/{FIRST.claim_name}/{FIRST.path}",
        "version": FIRST.version,
    }
    (tmp_path / "drafts.json").write_text(data)
    assert {*read_selection(tmp_path / "drafts.json").own} == {"eagle3"}
    (deployment,) = (each for each in made if each["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert RuntimeConfig.from_argv(container["args"]).draft_config == "/etc/turbo-drafts/drafts.json"


def test_there_is_room_for_it_before_it_comes_and_in_the_pool_once_it_is_there() -> None:
    card = named(fast("card", 24, "1.00"))
    asked, plain = (
        plan(spec(model=SHORT, speculation=drafts), MIDDLE, card).choice
        for drafts in (ASKED, {"method": "Suffix"})
    )
    assert asked is not None
    assert plain is not None
    token = memory.kv_bytes(MIDDLE, 2, 1, 1)
    layer = memory.cached_elements(MIDDLE, 1) * 2
    later = asked.kv_cache_bytes * layer / token  # of pods that started without
    assert asked.kv_cache_bytes + later < plain.kv_cache_bytes - GIB / 2
    assert asked.kv_cache_bytes // (token + layer) >= asked.max_model_len


def test_it_is_for_one_accelerator() -> None:
    made = plan(spec(model=SHORT, speculation=ASKED), LARGE, named(accelerator("mid", 48, "2.00")))
    assert made.choice is None
    two = plan(
        spec(model=SHORT, speculation=ASKED, parallelism={"tensor": 2}), MIDDLE, named(fast("a", 80, "1"))
    )
    assert two.choice is None
    assert "EAGLE3 for a model on 2 accelerators with engine Turbo" in two.detail
