"""Settings: read once, and nothing that is misspelt passes for a default."""

from __future__ import annotations

import dataclasses

import pytest

from turbo_operator.settings import BadSettingError, Settings, read

NEEDED = {"TURBO_RUNTIME_IMAGE": "registry.test/turbo-runtime:1"}


def test_defaults_need_only_the_image() -> None:
    settings = read({**NEEDED, "PATH": "/bin"})
    assert settings == Settings(runtime_image="registry.test/turbo-runtime:1")
    assert settings.namespaces == ()


def test_every_setting_can_be_given() -> None:
    given = {
        "TURBO_RUNTIME_IMAGE": "i",
        "TURBO_VLLM_IMAGE": "v",
        "TURBO_ROUTER_IMAGE": "r",
        "TURBO_ROUTER_ROLE": "routes",
        "TURBO_ROUTER_ARGS": "--policy=random 'a b'",
        "TURBO_ACTIVATOR_ARGS": "--hold-timeout=5",
        "TURBO_IMAGE_PULL_POLICY": "Never",
        "TURBO_MODEL_ENV": '{"HF_ENDPOINT": "https://hub.test", "A": ""}',
        "TURBO_NAMESPACES": "a, b,",
        "TURBO_APPLY_CATALOG": "false",
        "TURBO_BILLING_UNIT": "Node",
        "TURBO_OPERATOR_NAMESPACE": "turbo-system",
        "TURBO_LEASE_NAME": "turbo",
        "TURBO_RESYNC_SECONDS": "30",
        "TURBO_SCRAPE_SECONDS": "1.5",
        "TURBO_SCRAPE_TIMEOUT_SECONDS": "0.5",
        "TURBO_NUM_WORKERS": "2",
        "TURBO_HEALTH_PORT": "1",
        "TURBO_METRICS_PORT": "2",
        "TURBO_LOG_FORMAT": "text",
        "TURBO_LOG_LEVEL": "DEBUG",
    }
    assert len(given) == len(dataclasses.fields(Settings))
    expected = Settings(
        runtime_image="i",
        vllm_image="v",
        router_image="r",
        router_role="routes",
        router_args=("--policy=random", "a b"),
        activator_args=("--hold-timeout=5",),
        image_pull_policy="Never",
        model_env=(("A", ""), ("HF_ENDPOINT", "https://hub.test")),
        namespaces=("a", "b"),
        apply_catalog=False,
        billing_unit="Node",
        operator_namespace="turbo-system",
        lease_name="turbo",
        resync_seconds=30.0,
        scrape_seconds=1.5,
        scrape_timeout_seconds=0.5,
        num_workers=2,
        health_port=1,
        metrics_port=2,
        log_format="text",
        log_level="DEBUG",
    )
    assert read(given) == expected


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"TURBO_RESYNC_SECOND": "30"}, "TURBO_RESYNC_SECOND is no setting"),
        ({"TURBO_RESYNC_SECONDS": "0"}, "TURBO_RESYNC_SECONDS is '0': write seconds above 0"),
        ({"TURBO_RESYNC_SECONDS": "soon"}, "TURBO_RESYNC_SECONDS is 'soon'"),
        ({"TURBO_APPLY_CATALOG": "yes"}, "write true or false"),
        ({"TURBO_IMAGE_PULL_POLICY": "never"}, "write one of Always, IfNotPresent, Never"),
        ({"TURBO_HEALTH_PORT": "70000"}, "write a port"),
        ({"TURBO_NUM_WORKERS": "0"}, "write a number between 1"),
        ({"TURBO_MODEL_ENV": '{"A": 1}'}, "write a JSON object of texts"),
        ({"TURBO_RUNTIME_IMAGE": " "}, "write a value that is not empty"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(wrong: dict[str, str], said: str) -> None:
    with pytest.raises(BadSettingError, match=said):
        read({**NEEDED, **wrong})


def test_a_missing_setting_is_named() -> None:
    with pytest.raises(BadSettingError, match="TURBO_RUNTIME_IMAGE is missing"):
        read({})
