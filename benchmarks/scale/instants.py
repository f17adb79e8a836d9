"""What must hold at every instant of an audit log: budgets, one writer, and one variant too many at most."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from turbo_operator.api import LABEL_DEPLOYMENT, LABEL_PLAN_HASH

Event = Mapping[str, Any]


@dataclass
class Instants:
    """The most of anything that there was, and who wrote out of turn. `accounts` are the operators' users."""

    namespace: str
    accounts: frozenset[str]
    most_replicas: int = 0
    most_variants: int = 0  # of one TurboDeployment, that ask for replicas
    out_of_turn: list[str] = field(default_factory=list)
    _replicas: dict[str, int] = field(default_factory=dict)  # by Deployment
    _owners: dict[str, str] = field(default_factory=dict)
    _holder: str | None = None  # of the Lease: its identity
    _account: dict[str, str] = field(default_factory=dict)  # by identity

    def follow(self, events: Sequence[Event]) -> None:
        """Follow further events of the log."""
        for event in sorted(events, key=lambda event: event["stageTimestamp"]):
            if event["responseStatus"]["code"] >= 300:
                continue
            target, user = event["objectRef"], event["user"]["username"]
            if target["resource"] == "leases":
                self._lease(event, user)
            elif user in self.accounts and self._account.get(self._holder or "") != user:
                where = f"{event['verb']} {target['resource']} {target.get('name', '')}"
                self.out_of_turn.append(f"{event['stageTimestamp']} {user}: {where}, held by {self._holder}")
        # In the order of versions; the answer to a deletion has none, and comes where the log has it.
        version = 0
        own: list[tuple[int, Event]] = []
        for event in self._deployments(events):
            version = _version(event) or version
            own.append((version, event))
        for _, event in sorted(own, key=lambda each: each[0]):
            self._count(event)

    def keep_only(self, names: set[str]) -> None:
        """Drop Deployments that are gone: where the API server was killed, the log may lack a deletion."""
        self._replicas = {name: number for name, number in self._replicas.items() if name in names}

    def _lease(self, event: Event, user: str) -> None:
        if user not in self.accounts:
            return
        self._holder = (event.get("responseObject") or {}).get("spec", {}).get("holderIdentity") or None
        if self._holder is not None:
            self._account[self._holder] = user

    def _deployments(self, events: Iterable[Event]) -> list[Event]:
        return [
            event
            for event in sorted(events, key=lambda event: event["stageTimestamp"])
            if event["objectRef"]["resource"] == "deployments"
            and event["objectRef"].get("namespace") == self.namespace
            and event["responseStatus"]["code"] < 300
        ]

    def _count(self, event: Event) -> None:
        body, name = event.get("responseObject") or {}, str(event["objectRef"].get("name"))
        labels = body.get("metadata", {}).get("labels") or {}
        if event["verb"] == "delete":
            self._replicas.pop(name, None)
        elif LABEL_PLAN_HASH in labels:
            self._replicas[name] = body["spec"]["replicas"]
            self._owners[name] = labels[LABEL_DEPLOYMENT]
        variants: defaultdict[str, int] = defaultdict(int)
        for each, replicas in self._replicas.items():
            variants[self._owners[each]] += replicas > 0
        self.most_replicas = max(self.most_replicas, sum(self._replicas.values()))
        self.most_variants = max(self.most_variants, *variants.values(), 0)


def _version(event: Event) -> int:
    return int((event.get("responseObject") or {}).get("metadata", {}).get("resourceVersion") or 0)
