"""What gateways say of the InferencePool. Pure."""

from __future__ import annotations

from turbo_operator import api
from turbo_operator.api import PoolAcceptedReason
from turbo_operator.api.condition_state import ConditionState, false, sentence, true, unknown
from turbo_operator.render import url
from turbo_operator.snapshot import Presence, Snapshot


def pool_accepted(td: api.TurboDeployment, observed: Snapshot) -> ConditionState | None:
    """Whether requests can come through a gateway; None where there is, or can be, no InferencePool.

    It does not hold up Ready: pods answer by the Service, and a gateway may come after them.
    """
    pools = (child for child in observed.children if child.kind == "InferencePool" and not child.terminating)
    pool = next(pools, None)
    if td.spec.routing != api.Routing.GATEWAY:
        return None
    if observed.pool_kind == Presence.UNKNOWN:
        message = "It is unknown whether the cluster has InferencePools: the API server is queried again."
        return unknown(PoolAcceptedReason.PENDING, f"{message} Pods answer at {url(td)} all the same.")
    if pool is None:
        return None
    title = f"InferencePool {pool.name}"
    for gateway in pool.gateways:
        if gateway.error:
            message = sentence(f"{gateway.name} says of {title}: {gateway.error}")
            return false(PoolAcceptedReason.NOT_ACCEPTED, message)
    for gateway in pool.gateways:
        if not gateway.accepted:
            return unknown(PoolAcceptedReason.PENDING, f"{gateway.name} has yet to accept {title}.")
    if not pool.gateways:
        message = f"No gateway has taken up {title}: that takes an HTTPRoute that has it as a backend."
        return unknown(PoolAcceptedReason.NO_GATEWAY, f"{message} Pods answer at {url(td)} all the same.")
    names = ", ".join(gateway.name for gateway in pool.gateways)
    return true(PoolAcceptedReason.ACCEPTED, f"{title} takes requests from {names}.")
