"""A run says what it left out, and breaks no cluster that nobody named to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from turbo_dev import access, controlplane

pytest_plugins = "pytester"
CONFTEST = (Path(__file__).parent / "conftest.py").read_text()
OPTIONS = ("-p", "no:cacheprovider", "-o", "asyncio_default_fixture_loop_scope=function")
OURS = access.Access(Path("/ours/kubeconfig"), "https://ours")
NAMED = access.Access(Path("/named/kubeconfig"), "https://named")


def test_what_was_skipped_is_listed_by_reason_with_number_and_names(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(
        test_some="""
        import pytest

        @pytest.mark.parametrize("number", [1, 2])
        def test_on_a_node(number):
            pytest.skip("no Kubernetes node: not root")

        @pytest.mark.skip(reason="too long for every change")
        def test_at_full_size(): ...

        def test_that_runs(): ...
        """
    )
    result = pytester.runpytest(*OPTIONS)
    result.assert_outcomes(passed=1, skipped=3)
    result.stdout.fnmatch_lines(
        [
            "2 skipped: no Kubernetes node: not root",
            "    test_some.py::test_on_a_node?1?",
            "    test_some.py::test_on_a_node?2?",
            "1 skipped: too long for every change",
            "    test_some.py::test_at_full_size",
        ],
        consecutive=True,
    )


@pytest.mark.parametrize(("context", "url"), [(None, OURS.url), ("theirs", NAMED.url)])
def test_tests_meet_the_users_cluster_only_where_its_context_is_named_to_them(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, context: str | None, url: str
) -> None:
    """A kubeconfig alone is no permission to break things."""

    @contextmanager
    def plane(directory: Path) -> Iterator[access.Access]:
        yield OURS

    monkeypatch.setattr(controlplane, "ControlPlane", plane)
    monkeypatch.setattr(access, "from_context", lambda name, _: NAMED if name == "theirs" else None)
    monkeypatch.setenv("KUBECONFIG", str(pytester.path / "nowhere"))
    monkeypatch.delenv("TURBO_TEST_CONTEXT", raising=False)
    if context is not None:
        monkeypatch.setenv("TURBO_TEST_CONTEXT", context)
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(f"def test_it(control_plane):\n    assert control_plane.url == {url!r}\n")
    pytester.runpytest(*OPTIONS).assert_outcomes(passed=1)
