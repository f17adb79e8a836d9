"""One object reads a model for all that would read it with the same pod; no other ever waits for long."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from turbo_operator import render
from turbo_operator.api import TurboDeployment, parse
from turbo_operator.controller.cache.store import Key
from turbo_operator.controller.inspections import ANSWER_SECONDS, PATIENCE_SECONDS, Inspections
from turbo_operator.settings import Settings
from turbo_operator.snapshot import ChildView, JobPod, Snapshot
from turbo_operator.status.inspection import model_inspected
from turbo_runtime.contract.documents import ModelInfo, ModelShape

NOW = 1_700_000_000.0
SETTINGS = Settings(runtime_image="runtime:1")
SHAPE = ModelShape("LlamaForCausalLM", 134515008, 30, 576, 9, 3, 64, 49152, 8192, "bfloat16")
FACTS = ModelInfo(SHAPE, "sha256:ab", None, 270_000_000)
UNKNOWN = Snapshot(accelerators={})
RECOMMENDS = {"planPolicy": {"apply": "Recommend", "deploymentRef": {"name": "vllm"}}}


def deployment(name: str, namespace: str = "team", **spec: Any) -> TurboDeployment:
    meta = {"name": name, "namespace": namespace, "uid": f"uid-{name}"}
    kind = {"apiVersion": "serving.turbo.dev/v1alpha1", "kind": "TurboDeployment"}
    return parse({**kind, "metadata": meta, "spec": {"model": {"uri": "hf://maker/model"}, **spec}})


class Readers:
    """Inspections, and who was woken."""

    def __init__(self) -> None:
        self.woken: list[str] = []
        self.inspections = Inspections(lambda key: self.woken.append(key.name))

    def look(self, td: TurboDeployment, observed: Snapshot = UNKNOWN, after: float = 0.0) -> Snapshot:
        key = Key(td.metadata.namespace, td.metadata.name)
        return self.inspections.share(key, td, observed, SETTINGS, NOW + after)


def has_job(td: TurboDeployment, observed: Snapshot) -> bool:
    return any(item["kind"] == "Job" for item in render.inspection(td, observed, SETTINGS))


def job_of(td: TurboDeployment, **fields: Any) -> ChildView:
    return ChildView("Job", render.job_name(td), "j", None, **fields)


def kept(td: TurboDeployment) -> ChildView:
    data = render.facts_data(td, FACTS)
    return ChildView("ConfigMap", render.model_configmap_name(td), "c", None, data=data)


def test_the_second_object_waits_for_the_first_and_says_for_whom() -> None:
    readers, one, two = Readers(), deployment("one"), deployment("two")
    assert has_job(one, readers.look(one))
    waiting = readers.look(two)
    assert not has_job(two, waiting)
    condition = model_inspected(two, waiting)
    assert (condition.status, condition.reason) == ("Unknown", "Inspecting")
    assert "TurboDeployment one" in condition.message


def test_an_answer_wakes_who_waits_and_is_kept_in_each_ones_configmap() -> None:
    readers, one, two = Readers(), deployment("one"), deployment("two")
    readers.look(one)
    readers.look(two)
    readers.look(one, replace(UNKNOWN, model=FACTS), 5.0)
    assert readers.woken == ["two"]
    observed = readers.look(two, after=5.1)
    assert observed.model == FACTS
    assert render.inspection(two, observed, SETTINGS) == [render.model_configmap(two, FACTS)]


def test_an_answer_that_was_taken_stays_until_the_configmap_has_it() -> None:
    readers, one, two = Readers(), deployment("one"), deployment("two")
    readers.look(one)
    readers.look(one, replace(UNKNOWN, model=FACTS), 5.0)
    assert readers.look(two, after=6.0).model == FACTS
    assert readers.look(two, after=5.0 + 10 * ANSWER_SECONDS).model == FACTS


def test_an_answer_is_no_older_than_a_minute_for_who_comes_later() -> None:
    """The branch of a hub moves: who deploys it later gets what it is then."""
    readers, one, two = Readers(), deployment("one"), deployment("two")
    readers.look(one)
    readers.look(one, replace(UNKNOWN, model=FACTS))
    # That it is seen again makes it no newer, and neither does who took it.
    readers.look(one, replace(UNKNOWN, model=FACTS), ANSWER_SECONDS - 1)
    taker = deployment("taker")
    assert readers.look(taker, after=ANSWER_SECONDS - 1).model == FACTS
    readers.look(taker, replace(UNKNOWN, model=FACTS), ANSWER_SECONDS - 0.5)
    assert has_job(two, readers.look(two, after=ANSWER_SECONDS))


def test_nothing_is_shared_between_pods_that_differ() -> None:
    """Who may read a model is decided by namespace, token, account, claim and image."""
    readers, first = Readers(), deployment("first")
    readers.look(first)
    readers.look(first, replace(UNKNOWN, model=FACTS))
    others = [
        deployment("other", namespace="elsewhere"),
        deployment("other", model={"uri": "hf://maker/another"}),
        deployment("other", model={"uri": "hf://maker/model", "revision": "v2"}),
        deployment("other", model={"uri": "hf://maker/model", "tokenSecretRef": {"name": "t", "key": "k"}}),
        deployment("other", podTemplate={"spec": {"serviceAccountName": "another"}}),
        deployment("other", podTemplate={"metadata": {"labels": {"workload.identity/use": "true"}}}),
        deployment("other", podTemplate={"metadata": {"annotations": {"vault/role": "reader"}}}),
        deployment("other", adapters=[{"name": "a", "uri": "hf://maker/adapter"}]),
        deployment("other", engine={"type": "Turbo", "image": "another:1"}),
    ]
    for other in others:
        assert has_job(other, readers.look(other)), other.spec


def test_where_the_first_fails_every_other_reads_for_itself() -> None:
    readers, one, two, three = Readers(), deployment("one"), deployment("two"), deployment("three")
    for td in (one, two, three):
        readers.look(td)
    pod = JobPod("p", render.job_name(one), "Pending", reason="ErrImagePull", message="no such image")
    readers.look(one, replace(UNKNOWN, children=(job_of(one),), inspecting=(pod,)), 3.0)
    assert readers.woken == ["three", "two"]
    assert has_job(two, readers.look(two, after=3.0))
    assert has_job(three, readers.look(three, after=3.0))
    # What one of them finds out is an answer all the same.
    readers.look(two, replace(UNKNOWN, model=FACTS), 9.0)
    assert readers.look(deployment("four"), after=9.0).model == FACTS


def test_no_one_waits_longer_than_two_minutes() -> None:
    readers, one, two = Readers(), deployment("one"), deployment("two")
    readers.look(one)
    assert not has_job(two, readers.look(two, after=PATIENCE_SECONDS - 1))
    assert has_job(two, readers.look(two, after=PATIENCE_SECONDS))


def test_where_the_first_is_deleted_another_takes_its_place() -> None:
    readers, one, two, three = Readers(), deployment("one"), deployment("two"), deployment("three")
    for td in (one, two, three):
        readers.look(td)
    readers.inspections.forget(Key("team", "one"))
    assert readers.woken == ["three", "two"]
    assert has_job(three, readers.look(three))
    assert not has_job(two, readers.look(two))


def test_where_the_first_asks_for_another_model_another_takes_its_place() -> None:
    readers, one, two = Readers(), deployment("one"), deployment("two")
    readers.look(one)
    readers.look(two)
    readers.look(deployment("one", model={"uri": "hf://maker/another"}))
    assert readers.woken == ["two"]
    assert has_job(two, readers.look(two))


def test_who_deletes_the_configmap_has_the_model_read_anew() -> None:
    """So a bucket whose files were replaced is inspected: no earlier answer counts, not even another's."""
    readers, one, two = Readers(), deployment("one"), deployment("two")
    readers.look(one)
    readers.look(one, replace(UNKNOWN, model=FACTS, children=(kept(one),)), 1.0)
    assert readers.look(two, after=2.0).model == FACTS
    assert has_job(one, readers.look(one, after=3.0))
    assert not has_job(deployment("three"), readers.look(deployment("three"), after=4.0))


def test_nobody_waits_for_an_object_that_recommends_and_is_suspended() -> None:
    """It makes neither a Job nor a ConfigMap, so it takes no answer either."""
    readers, one, two = Readers(), deployment("one", **RECOMMENDS), deployment("two")
    readers.look(one)
    readers.look(two)
    rests = deployment("one", suspend=True, **RECOMMENDS)
    readers.look(rests)
    assert readers.woken == ["two"]
    assert has_job(two, readers.look(two))
    readers.look(two, replace(UNKNOWN, model=FACTS), 1.0)
    assert readers.look(rests, after=2.0).model is None


def test_nobody_waits_for_an_object_whose_job_is_refused() -> None:
    readers, one, two, three = Readers(), deployment("one"), deployment("two"), deployment("three")
    for td in (one, two, three):
        readers.look(td)
    readers.inspections.fail(Key("team", "two"))
    assert readers.woken == []
    readers.inspections.fail(Key("team", "one"))
    assert readers.woken == ["three", "two"]
    assert has_job(two, readers.look(two))
    assert has_job(three, readers.look(three))


def test_a_pod_that_waits_for_a_node_has_not_failed() -> None:
    """Nodes may come for it; and of a new pod the scheduler says so at first."""
    readers, one, two = Readers(), deployment("one"), deployment("two")
    readers.look(one)
    readers.look(two)
    pod = JobPod("p", render.job_name(one), "Pending", reason="Unschedulable", pending_since=NOW)
    readers.look(one, replace(UNKNOWN, children=(job_of(one),), inspecting=(pod,)), 3.0)
    assert not has_job(two, readers.look(two, after=3.0))


def test_what_is_known_of_one_model_answers_for_no_other() -> None:
    """Found in review: a spec went to another model and back before the Job had answered."""
    readers, one, two = Readers(), deployment("one"), deployment("two")
    readers.look(one, replace(UNKNOWN, model=FACTS, children=(kept(one),)))
    model = {"uri": "hf://maker/another"}
    readers.look(deployment("one", model=model), replace(UNKNOWN, children=(kept(one),)), 1.0)
    changed = deployment("two", model=model)
    assert not has_job(changed, readers.look(changed, after=1.0))
    readers.look(one, replace(UNKNOWN, model=FACTS, children=(kept(one),)), 2.0)
    assert readers.woken == ["two"]
    seen = readers.look(changed, after=2.0)
    assert seen.model is None
    assert has_job(changed, seen)
    assert has_job(two, readers.look(two, after=3.0))


def test_an_object_with_a_job_of_its_own_does_not_wait() -> None:
    """As after a start: the Jobs of several objects run, and none is removed."""
    readers, one, two = Readers(), deployment("one"), deployment("two")
    for td in (one, two):
        assert has_job(td, readers.look(td, replace(UNKNOWN, children=(job_of(td),))))


@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["look", "answer", "fail", "delete"])), max_size=30)
)
def test_there_is_a_reader_or_an_answer_whatever_happens(steps: list[tuple[int, str]]) -> None:
    """An object that waits has a reader with a Job."""
    readers, tds = Readers(), [deployment(f"td-{number}") for number in range(4)]
    jobs: dict[str, ChildView] = {}
    known: set[str] = set()
    for number, event in steps:
        td = tds[number]
        name = td.metadata.name
        if event == "delete":
            readers.inspections.forget(Key("team", name))
            jobs.pop(name, None)
            known.discard(name)
            continue
        if name not in jobs and event in ("answer", "fail"):
            continue
        if event == "answer":
            known.add(name)
        if event == "fail":
            jobs[name] = job_of(td, failed=True)
        children = (*([jobs[name]] if name in jobs else []), *([kept(td)] if name in known else []))
        seen = readers.look(td, replace(UNKNOWN, model=FACTS if name in known else None, children=children))
        if seen.model is not None:
            known.add(name)
        elif has_job(td, seen):
            jobs.setdefault(name, job_of(td))
        else:
            assert seen.inspected_by is not None
            assert seen.inspected_by in jobs
