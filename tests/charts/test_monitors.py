"""What a Prometheus is to scrape is there, and each alert fires for what it says and for nothing less."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from turbo_dev import binaries, sizes
from turbo_dev.shell import run
from turbo_operator import api
from turbo_operator.activator.report import ADMIN_PORT_NAME
from turbo_operator.render.router import METRICS_PORT_NAME
from turbo_runtime.contract.endpoints import PORT_NAME

Render = Callable[..., list[dict[str, Any]]]
ROOT = Path(__file__).parents[2]
RULES = ROOT / "charts" / "turbo" / "files" / "rules.yaml"
ALL = (
    "--set=metrics.serviceMonitor.enabled=true",
    "--set=metrics.podMonitor.enabled=true",
    "--set=metrics.prometheusRule.enabled=true",
)
GROUPS = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
ALERTS = {rule["alert"]: rule for group in GROUPS for rule in group["rules"]}


def monitors(objects: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        f"{item['kind']}/{item['metadata']['name']}": item
        for item in objects
        if item["apiVersion"] == "monitoring.coreos.com/v1"
    }


def test_without_being_asked_the_chart_makes_no_kind_of_another_project(render: Render) -> None:
    assert monitors(render()) == {}
    assert monitors(render("--set=metrics=null")) == {}


def test_the_operators_monitor_finds_its_service(render: Render) -> None:
    objects = render(*ALL, "--set=metrics.labels.release=prom", "--set=metrics.interval=15s")
    found = monitors(objects)["ServiceMonitor/turbo"]
    (service,) = (
        item for item in objects if item["kind"] == "Service" and "metrics" in item["metadata"]["name"]
    )
    assert found["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    (endpoint,) = found["spec"]["endpoints"]
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    assert (endpoint["interval"], endpoint["honorLabels"]) == ("15s", True)
    assert {item["metadata"]["labels"]["release"] for item in monitors(objects).values()} == {"prom"}


def test_pods_are_scraped_at_the_ports_that_have_metrics(render: Render) -> None:
    found = monitors(render(*ALL))
    ports = {
        item["spec"]["selector"]["matchLabels"][api.LABEL_ROLE]: [
            endpoint["port"] for endpoint in item["spec"]["podMetricsEndpoints"]
        ]
        for name, item in found.items()
        if name.startswith("PodMonitor/")
    }
    assert ports == {
        api.ROLE_SERVING: [PORT_NAME],
        api.ROLE_ROUTER: [METRICS_PORT_NAME, ADMIN_PORT_NAME],
    }
    places = [item["spec"].get("namespaceSelector") for name, item in found.items() if "Pod" in name]
    assert places == [{"any": True}] * 2
    named = monitors(render(*ALL, "--set=watchNamespaces={a,b}"))
    places = [item["spec"]["namespaceSelector"] for name, item in named.items() if "Pod" in name]
    assert places == [{"matchNames": ["a", "b"]}] * 2


def test_each_alert_leads_to_its_heading_and_each_heading_is_of_an_alert(render: Render) -> None:
    page = (ROOT / "docs" / "alerts.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (.+)$", page, re.M) == sorted(ALERTS, key=page.index)
    assert set(re.findall(r"^## (.+)$", page, re.M)) == set(ALERTS)
    for url, options in (
        ("docs/alerts.md", ()),
        ("https://runs.example/a", ("--set=metrics.prometheusRule.runbookUrl=https://runs.example/a",)),
    ):
        spec = monitors(render(*ALL, *options))["PrometheusRule/turbo"]["spec"]
        rules = [rule for group in spec["groups"] for rule in group["rules"]]
        assert [rule["annotations"].pop("runbook_url") for rule in rules] == [
            f"{url}#{rule['alert'].lower()}" for rule in rules
        ]
        assert {rule["alert"]: rule for rule in rules} == ALERTS, "nothing else of the file is changed"


def test_alerts_name_metrics_and_conditions_that_there_are() -> None:
    reference = (ROOT / "docs/reference/metrics.md").read_text(encoding="utf-8").replace("<wbr>", "")
    known = set(re.findall(r"<code>([\w:]+)</code>", reference))
    for rule in ALERTS.values():
        for name in re.findall(r"turbo[_:]\w+", rule["expr"]):
            assert name in known or name.removesuffix("_total").removesuffix("_count") in known, name
        for kind in re.findall(r'type="(\w+)"', rule["expr"]):
            assert kind in set(api.ConditionType)


class Case(NamedTuple):
    """Series, one sample a minute, of which an alert is to fire, and of which it is not."""

    fires: dict[str, str]
    labels: dict[str, str]
    quiet: dict[str, str]
    minutes: int = 120


CHAT = {"namespace": "team", "name": "chat"}
POD = {"namespace": "team", "pod": "chat-1", "instance": "i"}


def condition(kind: str, value: int, quiet: int, minutes: int = 120) -> Case:
    name = f'turbo_deployment_condition{{namespace="team", name="chat", type="{kind}"}}'
    fires, calm = ({name: f"{each}x{minutes}"} for each in (value, quiet))
    return Case(fires, {**CHAT, "type": kind}, calm, minutes)


def of_pod(name: str, values: str, **more: str) -> dict[str, str]:
    labels = ", ".join(f'{key}="{value}"' for key, value in {**POD, **more}.items())
    return {f"{name}{{{labels}}}": values}


def budget(committed: str) -> dict[str, str]:
    name = 'turbo_budget_per_hour{namespace="team", name="b", state="%s"}'
    return {name % "committed": committed, name % "limit": "10x120"}


RECONCILES = 'turbo_operator_reconcile_seconds_count{result="%s"}'
BUDGET = {"namespace": "team", "name": "b"}
TRAININGS = 'turbo_trainings_total{namespace="team", name="chat", result="%s"}'
BITWISE = of_pod("turbo:guarantee_info", "1x1500", guarantee="bitwise")
LAW = of_pod("turbo:guarantee_info", "1x1500", guarantee="distribution")
CASES = {
    "TurboOperatorAbsent": Case(
        {'turbo_operator_leader{pod="a"}': "0x120", 'turbo_operator_leader{pod="b"}': "0x120"},
        {},
        {'turbo_operator_leader{pod="a"}': "0x120", 'turbo_operator_leader{pod="b"}': "1x120"},
    ),
    "TurboOperatorNotReconciling": Case(
        {RECONCILES % "failed": "0+5x120", RECONCILES % "done": "7x120"},
        {},
        {RECONCILES % "failed": "0+5x120", RECONCILES % "done": "0+1x120"},
    ),
    "TurboDeploymentUnavailable": condition("Available", 0, 1),
    "TurboPlanInfeasible": condition("PlanFeasible", 0, 1),
    "TurboDeploymentStalled": condition("Stalled", 1, 0),
    "TurboTargetsMissed": condition("TargetsMet", 0, 1),
    "TurboSpeedupLost": condition("SpeculationEffective", 0, 1),
    "TurboTrainingFailed": Case(
        {TRAININGS % "TrainingFailed": "0x100 1x20"}, CHAT, {TRAININGS % "Trained": "0x100 1x20"}
    ),
    "TurboBudgetNearlySpent": Case(budget("9.5x120"), BUDGET, budget("9x120")),
    "TurboBudgetExceeded": Case(budget("10.5x120"), BUDGET, budget("10x120")),
    "TurboOutputMismatch": Case(
        {**of_pod("turbo:audit_mismatches_total", "0x100 1x20"), **BITWISE},
        POD,
        {**of_pod("turbo:audit_mismatches_total", "0x100 1x20"), **LAW},
    ),
    "TurboOutputMismatchesFrequent": Case(
        {
            **of_pod("turbo:audit_mismatches_total", "0+3x1500"),
            **of_pod("turbo:audits_total", "0+100x1500"),
            **LAW,
        },
        POD,
        {
            **of_pod("turbo:audit_mismatches_total", "0+1x1500"),
            **of_pod("turbo:audits_total", "0+100x1500"),
            **LAW,
        },
        1500,
    ),
    "TurboEngineHangs": Case(
        of_pod("turbo:engine_heartbeat_age_seconds", "0+60x120"),
        POD,
        of_pod("turbo:engine_heartbeat_age_seconds", "1x120"),
    ),
    "TurboDraftNotLoaded": Case(
        of_pod("turbo:draft_error", "1x120"), POD, of_pod("turbo:draft_error", "0x120")
    ),
    "TurboCaptureFailing": Case(
        of_pod("turbo:capture_error", "1x120"), POD, of_pod("turbo:capture_error", "0x120")
    ),
}


@pytest.fixture(scope="module")
def promtool() -> Path:
    names = binaries.PROMETHEUS_TOOLS
    if binaries.missing(names) and not sizes.IS_FULL:
        pytest.skip("promtool takes some ten minutes to build: make test-full has it")
    try:
        return binaries.ensure(names)["promtool"]
    except binaries.GoMissingError as missing:
        pytest.skip(f"no promtool: {missing}")


def test_each_alert_has_a_case() -> None:
    assert set(CASES) == set(ALERTS)


@pytest.mark.parametrize("alert", CASES)
def test_an_alert_fires_for_what_it_says_and_for_nothing_less(
    promtool: Path, tmp_path: Path, alert: str
) -> None:
    case, rule = CASES[alert], ALERTS[alert]

    def filled(text: str) -> str:
        return re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda name: case.labels[name[1]], text)

    expected = {
        "exp_labels": {**case.labels, **rule["labels"]},
        "exp_annotations": {name: filled(text) for name, text in rule["annotations"].items()},
    }

    def trial(series: dict[str, str], minutes: str, alerts: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "interval": "1m",
            "input_series": [{"series": name, "values": values} for name, values in series.items()],
            "alert_rule_test": [{"eval_time": minutes, "alertname": alert, "exp_alerts": alerts}],
        }

    tests = [
        trial(case.fires, f"{case.minutes - 5}m", [expected]),
        trial(case.quiet, f"{case.minutes - 5}m", []),
    ]
    if "for" in rule:
        tests.append(trial(case.fires, "0m", []))
    path = tmp_path / "alerts.yaml"
    path.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "tests": tests}), encoding="utf-8")
    run([promtool, "check", "rules", RULES])
    run([promtool, "test", "rules", path])
