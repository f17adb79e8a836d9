"""The whole path on a real node: our images, the chart, the example, and answers through the Service."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import openai
import pytest

from turbo_dev import images, release, talk, volume
from turbo_dev.access import Access
from turbo_dev.cluster import Cluster

pytestmark = [pytest.mark.node, pytest.mark.model]
NAME = release.DEPLOYMENT


@pytest.fixture(scope="module")
def deployed(node_cluster: Cluster) -> Iterator[Access]:
    """The example, Ready on the embedded node."""
    made = images.build()
    images.deliver(made, node_cluster)
    access = node_cluster.access
    volume.fill(access, node_cluster, made.model.name)
    release.install(access, made, None)
    release.apply_example(access)
    states: list[str] = []
    release.wait_ready(access, states.append)
    assert states
    yield access
    release.uninstall(access)


@pytest.fixture(scope="module")
def client(deployed: Access) -> Iterator[openai.OpenAI]:
    with (
        talk.service(deployed, embedded=True) as url,
        openai.DefaultHttpxClient(trust_env=False, timeout=300) as http,
    ):
        yield openai.OpenAI(base_url=url, api_key="none", http_client=http, max_retries=0)


def test_speculation_changes_no_byte_of_an_answer_through_the_service(deployed: Access) -> None:
    with talk.service(deployed, embedded=True) as url:
        pairs = talk.ask(url)
    for pair in pairs:
        assert pair.equal
        assert pair.on.tokens > 1
        assert pair.off.acceptance_length is None
    greedy = pairs[0].on.acceptance_length
    assert greedy is not None
    assert greedy > 1


def test_the_status_says_what_runs_and_what_it_costs(deployed: Access) -> None:
    status = deployed.get("td", NAME)["status"]
    assert status["readyReplicas"] == 1
    assert status["model"]["shape"]["parameters"] == 134_515_008
    assert status["plan"]["accelerator"] == "cpu"
    assert status["plan"]["predicted"]["costPerHour"] == "0.04"
    verdicts = {each["type"]: each["status"] for each in status["conditions"]}
    # how long the few answers took on this machine says whether that is enough to tell
    assert verdicts.pop("SpeculationEffective") in ("Unknown", "True")
    assert verdicts == {
        "Ready": "True",
        "PlanFeasible": "True",
        "ModelInspected": "True",
        "Available": "True",
        "ScalingActive": "True",
        "WithinBudget": "True",
        "Reconciling": "False",
        "Stalled": "False",
    }


def test_no_answer_is_lost_while_a_new_plan_takes_over(deployed: Access, client: openai.OpenAI) -> None:
    """Surge, readiness, endpoints and drain, seen from a client that never stops asking."""
    before = deployed.get("td", NAME)["status"]["plan"]["hash"]
    stop, failures, answers = threading.Event(), [], []

    def ask() -> None:
        while not stop.is_set():
            try:
                reply = client.chat.completions.create(
                    model=NAME, messages=[{"role": "user", "content": "Count to five."}], max_tokens=8
                )
                answers.append(reply.usage)
            except openai.OpenAIError as error:
                failures.append(repr(error))

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        changed = '{"spec":{"speculation":{"maxDraftTokens":4}}}'
        deployed.kubectl("patch", "td", NAME, "--type=merge", f"--patch={changed}")
        deployed.kubectl(
            "wait",
            "deployment",
            "-l",
            f"serving.turbo.dev/plan-hash={before}",
            "--for=delete",
            "--timeout=240s",
            timeout=250,
        )
    finally:
        stop.set()
        asking.join()
    assert failures == []
    assert len(answers) > 3
    status = deployed.get("td", NAME)["status"]
    assert status["plan"]["hash"] != before
    assert status["plan"]["maxDraftTokens"] == 4
    # a pod of the plan before may still be going when its Deployment is gone
    deployed.kubectl("wait", "td", NAME, "--for=jsonpath={.status.readyReplicas}=1", "--timeout=100s")


def test_deleting_the_object_takes_everything_with_it(deployed: Access) -> None:
    deployed.kubectl("delete", "td", NAME, "--timeout=100s")
    for kind in (
        "deployments",
        "services",
        "poddisruptionbudgets",
        "controllerrevisions",
        "configmaps",
        "pods",
    ):
        ours = ("-l", f"serving.turbo.dev/deployment={NAME}")
        deployed.kubectl("wait", kind, *ours, "--for=delete", "--timeout=180s", timeout=190)
        assert deployed.get(kind, *ours)["items"] == []
