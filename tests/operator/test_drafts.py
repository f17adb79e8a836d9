"""A trained draft reaches pods as they run, and the status says whether they draft with it."""

from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from turbo_dev.held import held
from turbo_dev.plan_cases import plan as plan_of
from turbo_operator import autoscaler, render, status
from turbo_operator.api import (
    CapacityType,
    Condition,
    ConditionType,
    DraftReason,
    TurboDeployment,
    parse,
    parse_draft,
)
from turbo_operator.catalog import shapes
from turbo_operator.controller.cache.projection import draft as as_view
from turbo_operator.controller.cache.store import Cache, Key
from turbo_operator.plan import Plan
from turbo_operator.rollout import Variant
from turbo_operator.settings import Settings
from turbo_operator.snapshot import Accelerator, DraftView, LoadSample, PodView, Snapshot
from turbo_runtime.contract.config import RuntimeConfig
from turbo_runtime.contract.documents import Load, ModelInfo
from turbo_runtime.drafters.loader import read_selection

SHAPE = shapes.shipped("HuggingFaceTB/SmolLM2-135M")
assert SHAPE is not None
MODEL = "sha256:ab"
FACTS = ModelInfo(SHAPE, MODEL, None, 270_000_000)
CPU = Accelerator("cpu", "cpu", Decimal(2), 6 << 30, prices={CapacityType.ON_DEMAND: Decimal("0.04")})
DIGEST = f"sha256:{'0' * 64}"
DRAFT = DraftView("support", "TurboHeads", "drafts", "chat/support-1", "support-1", MODEL, digest=DIGEST)


def td(**speculation: Any) -> TurboDeployment:
    return parse(
        {
            "apiVersion": "serving.turbo.dev/v1alpha1",
            "kind": "TurboDeployment",
            "metadata": {"name": "chat", "namespace": "team", "uid": "u", "generation": 1},
            "spec": {"model": {"uri": "pvc://models/chat"}, "speculation": speculation},
        }
    )


WITH = td(draftRef={"name": "support"})


def planned(it: TurboDeployment = WITH) -> Plan:
    return plan_of(it.spec, FACTS.shape, {CPU.name: CPU})


def hash_of(draft: DraftView | None, it: TurboDeployment = WITH) -> str:
    choice = planned(it).choice
    assert choice is not None
    return render.plan_hash(it, choice, FACTS, draft)


def children(draft: DraftView | None, it: TurboDeployment = WITH) -> dict[str, dict[str, Any]]:
    variant = Variant(hash_of(draft, it), 1)
    observed = Snapshot({}, model=FACTS, draft=draft)
    made = render.children(it, observed, planned(it).choice, (variant,), Settings(runtime_image="r:1"))
    return {f"{each['kind']} {each['metadata']['name']}": each for each in made}


def pod(draft: DraftView | None, it: TurboDeployment = WITH) -> dict[str, Any]:
    (deployment,) = [each for each in children(draft, it).values() if each["kind"] == "Deployment"]
    spec: dict[str, Any] = deployment["spec"]["template"]["spec"]
    return spec


def named(draft: DraftView, folder: Path) -> Path | None:
    """What the runtime reads as the heads to use."""
    (container,) = pod(draft)["containers"]
    path = Path(RuntimeConfig.from_argv(container["args"]).draft_config or "")
    data = children(draft)["ConfigMap chat-drafts"]["data"]
    (folder / path.name).write_text(data[path.name])
    heads = read_selection(folder / path.name).own.get("heads")
    assert not isinstance(heads, int)
    return heads


def test_pods_read_the_draft_from_its_claim(tmp_path: Path) -> None:
    spec = pod(DRAFT)
    (container,) = spec["containers"]
    mounts = {each["name"]: each for each in container["volumeMounts"]}
    volumes = {each["name"]: each for each in spec["volumes"]}
    assert volumes["drafts"]["persistentVolumeClaim"] == {"claimName": "drafts", "readOnly": True}
    assert mounts["drafts"] == {"name": "drafts", "mountPath": "/drafts/drafts", "readOnly": True}
    assert volumes["drafts-in-use"]["configMap"] == {"name": "chat-drafts"}
    assert named(DRAFT, tmp_path) == Path("/drafts/drafts/chat/support-1")


def test_a_draft_that_is_gone_stays_in_use_and_the_status_says_so() -> None:
    gone = replace(DRAFT, gone=True)
    assert hash_of(gone) == hash_of(DRAFT)
    assert children(gone)["ConfigMap chat-drafts"] == children(DRAFT)["ConfigMap chat-drafts"]
    found = verdict(gone, load())
    assert found is not None
    assert (found.status, found.reason) == ("False", DraftReason.NOT_FOUND)
    assert found.message.endswith(" Meanwhile pods draft on with support-1.")


def test_while_pods_of_an_earlier_plan_mount_it_the_file_that_names_the_draft_stays() -> None:
    before = children(DRAFT)
    old = hash_of(DRAFT)
    plain = td()
    variants = (Variant(hash_of(None, plain), 1), Variant(old, 1))
    observed = Snapshot({}, children=held(before.values()), model=FACTS)
    made = render.children(plain, observed, planned(plain).choice, variants, Settings(runtime_image="r:1"))
    (kept,) = [each for each in made if each["metadata"]["name"] == "chat-drafts"]
    assert kept == before["ConfigMap chat-drafts"]
    last = render.children(
        plain, observed, planned(plain).choice, variants[:1], Settings(runtime_image="r:1")
    )
    assert [each for each in last if each["metadata"]["name"] == "chat-drafts"] == []


def test_another_draft_of_the_claim_is_taken_up_without_a_restart_and_another_claim_with_one(
    tmp_path: Path,
) -> None:
    other = replace(DRAFT, name="b", path="chat/support-2", version="support-2")
    assert hash_of(other) == hash_of(DRAFT)
    assert named(other, tmp_path) == Path("/drafts/drafts/chat/support-2")
    assert len({hash_of(DRAFT), hash_of(None), hash_of(replace(DRAFT, claim_name="other"))}) == 3


def test_a_draft_of_another_model_is_named_to_nobody(tmp_path: Path) -> None:
    wrong = replace(DRAFT, target_digest="sha256:other")
    assert named(wrong, tmp_path) is None
    assert hash_of(wrong) == hash_of(DRAFT)  # what runs goes on, and takes up the right one when it comes


@pytest.mark.parametrize("draft", [None, replace(DRAFT, method="EAGLE3")])
def test_without_one_that_the_engine_can_use_pods_are_as_if_none_was_asked_for(
    draft: DraftView | None,
) -> None:
    assert hash_of(draft) == hash_of(None, td())
    assert "drafts" not in json.dumps(
        [each for each in children(draft).values() if each["kind"] != "Service"]
    )


def test_where_drafts_are_to_be_trained_pods_mount_their_claim_and_not_while_that_is_switched_off() -> None:
    trained = {
        "persistentVolumeClaim": {"claimName": "drafts"},
        "prompts": {"type": "ConfigMap", "configMap": {"name": "prompts"}},
    }
    on, off = td(training=trained), td(training={**trained, "suspend": True})
    assert hash_of(None, on) == hash_of(DRAFT, on) != hash_of(None, td())
    assert hash_of(None, off) == hash_of(None, td())
    assert "ConfigMap chat-drafts" not in children(None, off)
    assert hash_of(DRAFT, off) == hash_of(DRAFT, on)
    further = [{"name": "latex", "draftRef": {"name": "latex-1"}}]
    assert hash_of(None, td(training={**trained, "suspend": True}, namedDrafts=further)) == hash_of(None, on)


def test_a_trained_draft_is_planned_as_what_gains_nothing_until_it_is_measured() -> None:
    plain, trained = planned(td(method="Suffix")), planned(td(method="TurboHeads", draftRef={"name": "a"}))
    assert plain.choice == trained.choice


def verdict(draft: DraftView | None, *loads: Load | None, it: TurboDeployment = WITH) -> Condition | None:
    plan, variant = planned(it), hash_of(draft, it)
    pods = tuple(
        PodView(
            f"p{n}", variant, "Running", True, "10.0.0.1", None, None, load=load and LoadSample(0.0, load)
        )
        for n, load in enumerate(loads)
    )
    observed = Snapshot({"cpu": CPU}, None, (), pods, model=FACTS, draft=draft)
    new = status.compute(
        it, observed, status.Outcome(autoscaler.scale(it.spec), plan, variant), 1_700_000_000.0
    )
    found = new.condition("DraftReady")
    used = found is not None and found.reason in ("Loaded", "Loading", "LoadFailed")
    assert (new.draft is not None) == (used or (draft is not None and draft.gone))
    return found


def load(version: str = "support-1", problem: str = "") -> Load:
    return Load(
        0, 0, 0, 0, 0.0, 1000, 0, 0, 0, 0, "bitwise", False, draft_version=version, draft_error=problem
    )


def test_without_a_draft_asked_for_there_is_no_such_condition() -> None:
    assert verdict(None, it=td()) is None


@pytest.mark.parametrize(
    ("draft", "loads", "wanted", "told"),
    [
        (None, (), ("False", DraftReason.NOT_FOUND), "There is no TurboDraft support in this namespace"),
        (
            replace(DRAFT, method="EAGLE3"),
            (),
            ("False", DraftReason.NOT_YET_SUPPORTED),
            "drafts by EAGLE3: write speculation.method: EAGLE3 and engine.type: Turbo, or",
        ),
        (
            replace(DRAFT, target_digest="x"),
            (),
            ("False", DraftReason.TARGET_MODEL_MISMATCH),
            f"and {MODEL} is served",
        ),
        (DRAFT, (), ("Unknown", DraftReason.LOADING), "0 of 0 pods"),
        (DRAFT, (load(""), load()), ("Unknown", DraftReason.LOADING), "1 of 2 pods"),
        (DRAFT, (load("old"), None), ("Unknown", DraftReason.LOADING), "0 of 2 pods"),
        (
            DRAFT,
            (load(), load()),
            ("True", DraftReason.LOADED),
            "2 of 2 pods that answer draft with support-1",
        ),
        (
            DRAFT,
            (load(), load("", "heads.safetensors cannot be read")),
            ("False", DraftReason.LOAD_FAILED),
            "Pod p1: heads.safetensors cannot be read. It serves on without it.",
        ),
    ],
)
def test_the_condition_says_whether_pods_draft_with_it(
    draft: DraftView | None, loads: tuple[Load | None, ...], wanted: tuple[str, str], told: str
) -> None:
    found = verdict(draft, *loads)
    assert found is not None
    assert (found.status, found.reason) == wanted
    assert told in found.message


def body(version: int, uid: str = "d", **spec: Any) -> dict[str, Any]:
    written = {
        "method": "TurboHeads",
        "location": {"claimName": "drafts", "path": "chat/support-1"},
        "version": "support-1",
        "digest": DIGEST,
        "targetDigest": MODEL,
    }
    return {
        "apiVersion": "serving.turbo.dev/v1alpha1",
        "kind": "TurboDraft",
        "metadata": {"name": "support", "namespace": "team", "uid": uid, "resourceVersion": str(version)},
        "spec": {**written, **spec},
    }


def test_the_cache_keeps_the_newest_draft_whatever_the_order_of_arrival() -> None:
    cache = Cache()
    assert as_view(parse_draft(body(1))) == DRAFT
    assert cache.drafts.put(body(5), DRAFT) is True
    assert cache.drafts.put(body(4), replace(DRAFT, version="old")) is False
    assert cache.drafts.put(body(6), DRAFT) is False  # newer, and the same to everybody
    assert cache.drafts.get(Key("team", "support")) == DRAFT
    assert cache.drafts.get(Key("other", "support")) is None
    assert cache.drafts.drop(body(9)) is True
    assert cache.drafts.get(Key("team", "support")) is None
    assert cache.drafts.put(body(8), DRAFT) is False
    assert cache.drafts.put(body(10, uid="e"), DRAFT) is True


def test_a_list_that_does_not_show_a_draft_drops_it_unless_it_is_newer() -> None:
    cache = Cache()
    cache.drafts.put(body(12), DRAFT)
    assert cache.drafts.keep_only([], "10", None) == set()
    assert cache.drafts.keep_only([], "13", "other") == set()
    assert cache.drafts.keep_only(["d"], "13", "team") == set()
    assert cache.drafts.keep_only([], "14", "team") == {Key("team", "support")}
    assert cache.drafts.get(Key("team", "support")) is None


def test_further_drafts_are_named_to_pods_as_they_run_and_one_that_does_not_fit_is_told() -> None:
    latex = DraftView("latex-1", "TurboHeads", "drafts", "chat/latex-1", "latex-1", MODEL)
    both = td(draftRef={"name": "support"}, namedDrafts=[{"name": "latex", "draftRef": {"name": "latex-1"}}])
    assert hash_of(DRAFT, both) == hash_of(DRAFT, WITH)

    def seen(further: DraftView | None) -> tuple[dict[str, Any], str]:
        observed = Snapshot({}, model=FACTS, draft=DRAFT, named=(("latex", further),))
        made = render.children(both, observed, planned(both).choice, (), Settings(runtime_image="r:1"))
        (file,) = [each for each in made if each["metadata"]["name"] == "chat-drafts"]
        told = status.compute(
            both, observed, status.Outcome(autoscaler.scale(both.spec), planned(both), "v1"), 0.0
        )
        ready = told.condition(ConditionType.DRAFT_READY)
        assert ready is not None
        return json.loads(file["data"]["drafts.json"]), ready.message

    selection, _ = seen(latex)
    assert selection == {
        "heads": "/drafts/drafts/chat/support-1",
        "version": "support-1",
        "named": {"latex": "/drafts/drafts/chat/latex-1"},
    }
    assert seen(replace(latex, method="EAGLE3"))[0] == selection, "the engine tells them apart"
    for further, why in (
        (None, "There is no TurboDraft for namedDrafts latex"),
        (replace(latex, target_digest="sha256:cd"), "was trained for the model sha256:cd"),
        (replace(latex, claim_name="others"), "lies on the claim others, not on drafts"),
    ):
        selection, message = seen(further)
        assert selection == {"heads": "/drafts/drafts/chat/support-1", "version": "support-1"}
        assert why in message
