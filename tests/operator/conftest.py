"""An API server that knows our kinds."""

from __future__ import annotations

import pytest

from turbo_dev.access import Access
from turbo_operator import crd


@pytest.fixture(scope="session")
def api_server(control_plane: Access) -> Access:
    """The shared control plane with our CustomResourceDefinitions established."""
    definitions = crd.definitions()
    control_plane.apply(*definitions)
    names = [f"crd/{definition['metadata']['name']}" for definition in definitions]
    control_plane.kubectl("wait", "--for=condition=Established", *names)
    return control_plane
