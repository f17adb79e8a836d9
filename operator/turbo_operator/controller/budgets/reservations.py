"""Who holds what of a namespace: asked for each decision, and written before anything of it is.

Nothing is awaited between the question and the entry, so that no two decisions count on the same dollar. An
entry stands until the next decision. What gives way for something else keeps its place: of a TurboDeployment
the last entry counts as held, so that a rollout goes on above a budget that was lowered. What was not looked
at since the start counts as the watches show it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from turbo_operator.commitments import NOTHING, Allowance, Amount, Commitments, Entry
from turbo_operator.controller.cache.store import Cache, Key
from turbo_operator.rollout import amount_of, trainings_holding, variant_states
from turbo_operator.snapshot import Accelerator

DOUBT_SECONDS = 60.0  # by which a watch has shown what the API server has carried out


@dataclass(eq=False)
class Reservations:
    """The commitments of all namespaces."""

    cache: Cache
    _rows: tuple[Accelerator, ...] = field(default=(), init=False)  # that entries are valued by
    _doubts: dict[Key, float] = field(default_factory=dict, init=False)  # until when, in epoch seconds
    _namespaces: defaultdict[str, Commitments[Key]] = field(
        default_factory=lambda: defaultdict(Commitments), init=False
    )

    def allowance(self, key: Key, uid: str, now: float) -> Allowance:
        """Return what budgets leave the TurboDeployment with this uid; `now` is in epoch seconds."""
        budgets = self.cache.budgets_of(key.namespace)
        replicas, trainings, earlier = NOTHING, NOTHING, NOTHING
        for owner, held, trained in self._holdings(key, now):
            if owner == uid:
                replicas, trainings = held, trained
            else:  # of an earlier object of its name: not its own to lower
                earlier += held + trained
        if not budgets:
            return Allowance((), replicas + trainings + earlier, trainings, earlier)
        commitments = self.commitments(key.namespace, now)
        held, last = replicas + trainings + earlier, commitments.entries.get(key)
        held = held if last is None else held | last.committed
        return Allowance(budgets, held, trainings, earlier, commitments.others(key))

    def enter(self, key: Key, entry: Entry, now: float) -> None:
        """Write what a TurboDeployment holds and may come to."""
        entries = self._namespaces[key.namespace].entries
        if now < self._doubts.get(key, 0.0) and key in entries:
            entry = Entry(entry.held, entry.committed | entries[key].committed)
        else:
            self._doubts.pop(key, None)
        self._namespaces[key.namespace].enter(key, entry)

    def doubt(self, key: Key, now: float) -> None:
        """Keep the entry for a while: a write without an answer may have been carried out, unseen."""
        self._doubts[key] = now + DOUBT_SECONDS

    def enter_held(self, key: Key, now: float) -> bool:
        """Write what there is of a TurboDeployment that nothing is decided for: gone, or not readable.
        Whether there is anything.
        """
        held = self._held(key, now)
        if held == NOTHING:
            self._doubts.pop(key, None)
            self._namespaces[key.namespace].remove(key)
            if not self._namespaces[key.namespace].entries:
                del self._namespaces[key.namespace]
        else:
            self._namespaces[key.namespace].enter(key, Entry(held, held))
        return held != NOTHING

    def commitments(self, namespace: str, now: float) -> Commitments[Key]:
        """Return the commitments of a namespace, with those of TurboDeployments not looked at yet."""
        rows = tuple(self.cache.accelerators_by_name().values())
        if rows != self._rows:
            self._rows = rows
            self._value_anew(now)
        commitments = self._namespaces[namespace]
        for key in self.cache.keys(namespace) - commitments.entries.keys():
            held = self._held(key, now)
            commitments.enter(key, Entry(held, held))
        return commitments

    def _value_anew(self, now: float) -> None:
        """Value all entries by the prices of now. Of what is not there yet only the sum is known: at most."""
        rows = {row.name: row for row in self._rows}

        def valued(key: Key, entry: Entry) -> Entry:
            held = self._held(key, now)
            return Entry(held, held | most_expensive(entry.committed, rows))

        for commitments in self._namespaces.values():
            commitments.change(valued)

    def _held(self, key: Key, now: float) -> Amount:
        return sum((held + trained for _, held, trained in self._holdings(key, now)), NOTHING)

    def _holdings(self, key: Key, now: float) -> Iterator[tuple[str, Amount, Amount]]:
        """Yield what replicas and trainings hold, by the uid of the TurboDeployment that made them."""
        for owner in self.cache.owners_of(key):
            observed = self.cache.observe(key, owner)
            states = variant_states(observed.children, observed.pods, observed.accelerators, now)
            held = amount_of((state.footprint, state.held) for state in states)
            yield owner, held, amount_of(trainings_holding(observed))


def most_expensive(amount: Amount, rows: Mapping[str, Accelerator]) -> Amount:
    """Value accelerators at their highest price, on nodes of their own where nodes are bought whole."""
    valued = NOTHING
    for name, count in amount.accelerators.items():
        row = rows.get(name)
        prices = row.prices.values() if row is not None else ()
        node = (row.count_per_node or 1) if row is not None and row.price_per_node else 1
        cost = max(prices) * math.ceil(count / node) * node if prices else None
        valued += Amount.of(name, count, cost)
    return replace(valued, total=amount.total)
