"""TurboBudgets on a real API server: its audit log says that nobody ever took more than there was."""

from __future__ import annotations

from typing import Any

import pytest

from turbo_dev.shell import CommandError
from turbo_operator import resources
from turbo_operator.api import API_VERSION

pytestmark = pytest.mark.cluster

DEPLOYMENT = resources.CHILDREN["Deployment"]
NAMES = ("chat", "docs", "mail")


class Team:
    """A namespace with a budget, and TurboDeployments of one accelerator a replica."""

    def __init__(self, cluster: Any, name: str) -> None:
        self.cluster, self.namespace = cluster, cluster.namespace(name)
        self.operator = cluster.start(self.namespace)

    def budget(self, name: str = "team", **spec: Any) -> None:
        meta = {"name": name, "namespace": self.namespace}
        self.cluster.access.apply(
            {"apiVersion": API_VERSION, "kind": "TurboBudget", "metadata": meta, "spec": spec}
        )

    def scale(self, name: str, replicas: int) -> None:
        patch = {"spec": {"replicas": replicas}}
        self.cluster.api.patch(resources.TURBODEPLOYMENT, self.namespace, name, patch)

    def restart(self) -> None:
        self.operator.stop()
        self.operator = self.cluster.start(self.namespace)

    @property
    def replicas(self) -> dict[str, int]:
        """By TurboDeployment, what its Deployments ask for."""
        found: dict[str, int] = {}
        for item in self.cluster.api.list(DEPLOYMENT, self.namespace):
            name = item["metadata"]["labels"]["serving.turbo.dev/deployment"]
            found[name] = found.get(name, 0) + item["spec"]["replicas"]
        return found

    @property
    def total(self) -> int:
        return sum(self.replicas.values())

    def status(self, name: str = "team") -> dict[str, Any]:
        found = self.cluster.api.get(resources.TURBOBUDGET, self.namespace, name)
        return dict((found or {}).get("status") or {})

    def said(self, name: str) -> str:
        """All that the conditions of a TurboDeployment say."""
        body = self.cluster.deployment(self.namespace, name)
        return " ".join(each["message"] for each in body.get("status", {}).get("conditions", ()))

    def until(self, holds: Any, what: str) -> None:
        try:
            self.cluster.until(holds, what)
        except AssertionError as error:
            names = [
                item["metadata"]["name"]
                for item in self.cluster.api.list(resources.TURBODEPLOYMENT, self.namespace)
            ]
            said = {name: self.said(name) for name in names}
            raise AssertionError(f"{error}; there are {self.replicas}: {said}") from error

    def most(self) -> int:
        """The largest sum of replicas of Deployments at any instant of the audit log."""
        writes = []
        for event in self.cluster.all_writes(self.namespace):
            if event["objectRef"]["resource"] != "deployments" or event["responseStatus"]["code"] >= 300:
                continue
            answer, name = event.get("responseObject") or {}, event["objectRef"].get("name")
            is_gone = event["verb"] == "delete"
            version = int(answer.get("metadata", {}).get("resourceVersion") or 0)
            writes.append((version, name, 0 if is_gone else answer.get("spec", {}).get("replicas")))
        at, most = dict[str, int](), 0
        for _, name, replicas in sorted(writes, key=lambda write: write[0]):
            if replicas is not None:
                at[name] = replicas
                most = max(most, sum(at.values()))
        return most


@pytest.fixture
def team(cluster: Any, request: pytest.FixtureRequest) -> Team:
    return Team(cluster, request.node.name.removeprefix("test_").replace("_", "-")[:40].strip("-"))


def test_no_two_take_the_same_accelerator_and_what_one_leaves_another_takes(team: Team) -> None:
    team.budget(accelerators={"maxTotal": 4})
    for name in NAMES:
        team.cluster.create_deployment(team.namespace, name, replicas=2)
    team.until(lambda: team.total == 4 and len(team.replicas) == 3, "all that there is was taken")
    short = [name for name in NAMES if team.replicas[name] < 2]
    clause = "TurboBudget team has accelerators.maxTotal 4, of which others have"
    for name in short:
        team.until(lambda name=name: clause in team.said(name), f"{name} says why it is short")
    team.until(lambda: team.status().get("committed", {}).get("accelerators") == 4, "the budget shows it")
    rich = next(name for name in NAMES if team.replicas[name] == 2)
    team.scale(rich, 0)
    team.until(lambda: all(team.replicas[name] == 2 for name in short), "what was left is taken")
    assert team.most() == 4
    shown = {each["name"]: each["accelerators"] for each in team.status()["deployments"]}
    team.until(lambda: team.status()["inUse"]["accelerators"] == 4, "the budget shows what is in use")
    assert sum(shown.values()) <= 4


def test_a_lowered_budget_ends_nothing_and_lets_nothing_grow_also_after_a_restart(team: Team) -> None:
    team.budget(accelerators={"maxTotal": 4})
    team.cluster.create_deployment(team.namespace, "chat", replicas=2)
    team.cluster.create_deployment(team.namespace, "docs", replicas=1)
    team.cluster.until_ready(team.namespace, "chat", replicas=2)
    team.cluster.until_ready(team.namespace, "docs")
    team.budget(accelerators={"maxTotal": 2})

    def within() -> str:
        found = team.cluster.api.get(resources.TURBOBUDGET, team.namespace, "team")
        return str(team.cluster.condition(found, "WithinBudget")["status"])

    team.until(lambda: within() == "False", "the budget says that it is exceeded")
    team.scale("chat", 3)
    team.scale("docs", 2)
    refusal = "TurboBudget team has accelerators.maxTotal 2"
    team.until(lambda: refusal in team.said("chat") and refusal in team.said("docs"), "both say why")
    team.restart()
    team.until(lambda: within() == "False", "it is known again")
    team.cluster.create_deployment(team.namespace, "mail", replicas=1)
    team.until(lambda: refusal in team.said("mail"), "a third is refused")
    assert (team.replicas["chat"], team.replicas["docs"], team.replicas.get("mail", 0)) == (2, 1, 0)
    assert team.most() == 3
    team.cluster.access.kubectl("delete", "turbobudget", "team", "-n", team.namespace)
    team.until(lambda: team.total == 6, "without a budget all grow")


def test_money_is_shared_too_and_what_has_no_price_does_not_start(team: Team) -> None:
    unpriced = team.cluster.api.get(resources.TURBOACCELERATOR, "", "cpu")
    del unpriced["spec"]["pricing"]
    meta = {"name": "unpriced"}
    team.cluster.access.apply(
        {**{key: unpriced[key] for key in ("apiVersion", "kind", "spec")}, "metadata": meta}
    )
    team.budget(maxPerHour="0.13")  # an accelerator is 0.04
    for name in ("chat", "docs"):
        team.cluster.create_deployment(team.namespace, name, replicas=2)
    team.until(lambda: team.total == 3, "three are paid for")
    team.until(
        lambda: team.status().get("committed") == {"perHour": "0.12", "accelerators": 3}, "it is shown"
    )
    team.cluster.create_deployment(team.namespace, "mail", accelerators={"allowed": ["unpriced"]})
    refusal = "TurboBudget team has maxPerHour, and unpriced has no price"
    team.until(lambda: refusal in team.said("mail"), "it says why it does not start")
    assert team.most() == 3


def test_what_a_budget_allows_is_what_is_planned_with(team: Team) -> None:
    row = team.cluster.api.get(resources.TURBOACCELERATOR, "", "cpu")
    row["spec"]["pricing"]["perAcceleratorHour"]["onDemand"] = "0.01"  # what would be chosen
    team.cluster.access.apply(
        {**{key: row[key] for key in ("apiVersion", "kind", "spec")}, "metadata": {"name": "cheap-cpu"}}
    )
    team.budget(accelerators={"allowed": ["cpu"]})
    team.cluster.create_deployment(team.namespace, "chat", accelerators={"allowed": ["cheap-cpu", "cpu"]})
    body = team.cluster.until_ready(team.namespace, "chat")
    assert body["status"]["plan"]["accelerator"] == "cpu"
    team.cluster.create_deployment(team.namespace, "docs", accelerators={"allowed": ["cheap-cpu"]})
    refusal = "TurboBudget team does not allow cheap-cpu"
    team.until(lambda: refusal in team.said("docs"), "it says why it does not start")


def test_one_that_is_made_again_under_its_name_waits_for_what_the_earlier_one_holds(team: Team) -> None:
    team.budget(accelerators={"maxTotal": 2})
    team.cluster.create_deployment(team.namespace, "chat", replicas=2)
    team.cluster.until_ready(team.namespace, "chat", replicas=2)
    team.cluster.access.kubectl("delete", "td", "chat", "-n", team.namespace)
    team.cluster.create_deployment(team.namespace, "chat", replicas=2)
    team.cluster.until_ready(team.namespace, "chat", replicas=2)
    assert team.most() == 2


def test_a_budget_without_a_limit_is_refused_with_what_to_write(team: Team) -> None:
    for spec in ({}, {"accelerators": {}}, {"maxPerHour": "ten"}):
        with pytest.raises(CommandError, match="write "):
            team.budget(**spec)
