"""`--nodes FILE`: what plans must fit on, without a cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from turbo_operator.cli import manifests
from turbo_operator.cli.errors import BadInputError
from turbo_operator.inventory import usage
from turbo_operator.inventory.supply import ClusterInventory, take_stock
from turbo_operator.snapshot import Accelerator

_READERS: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "Node": usage.node,
    "Pod": usage.holding,
    "ResourceQuota": usage.quota,
}
KINDS = frozenset(_READERS)
_REMEDY = ": write it as kubectl get -o yaml does."


def stock_of(source: str, accelerators: Mapping[str, Accelerator]) -> ClusterInventory:
    """What the nodes of a file have of each accelerator, less what its pods hold, within its quotas.

    Objects of other kinds are passed over. BadInputError where there is no node, or one is not as the API
    server writes it.
    """
    read: dict[str, list[Any]] = {kind: [] for kind in _READERS}
    for place, body in manifests.objects(source, "--nodes"):
        kind = str(body.get("kind"))
        if kind not in _READERS:
            continue
        try:
            value = _READERS[kind](body)
        except KeyError as error:
            raise BadInputError(f"{place} ({kind}): there is no {error.args[0]}{_REMEDY}") from error
        except (TypeError, AttributeError) as error:
            raise BadInputError(f"{place} ({kind}): a field is of another kind{_REMEDY}") from error
        except ValueError as error:
            raise BadInputError(f"{place} ({kind}): {error}.") from error
        if value is not None:  # a pod that has ended, a quota that no serving pod falls under
            read[kind].append(value)
    if not read["Node"]:
        raise BadInputError(f"--nodes {manifests.called(source)}: there is no object of kind Node in it.")
    return take_stock(accelerators, read["Node"], read["Pod"], read["ResourceQuota"])
