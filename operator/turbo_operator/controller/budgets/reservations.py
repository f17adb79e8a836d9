"""Who holds what of a namespace: asked for each decision, and written before anything of it is.

Nothing is awaited between the question and the entry, so that no two decisions count on the same dollar. An
entry stands until the next look at its TurboDeployment has seen what became of it. What was not looked at
since the start counts as the watches show it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from turbo_operator.commitments import NOTHING, Allowance, Amount, Commitments, Entry
from turbo_operator.controller.cache.store import Cache, Key
from turbo_operator.rollout import amount_of, trainings_holding, variant_states


@dataclass(eq=False)
class Reservations:
    """The commitments of all namespaces."""

    cache: Cache
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
        others = self.commitments(key.namespace, now).others(key) if budgets else NOTHING
        return Allowance(budgets, replicas + trainings + earlier, trainings, earlier, others)

    def enter(self, key: Key, entry: Entry) -> None:
        """Write what a TurboDeployment holds and may come to."""
        self._namespaces[key.namespace].enter(key, entry)

    def enter_held(self, key: Key, now: float) -> None:
        """Write what there is of a TurboDeployment that nothing is decided for: gone, or not readable."""
        held = self._held(key, now)
        if held == NOTHING:
            self._namespaces[key.namespace].remove(key)
            if not self._namespaces[key.namespace].entries:
                del self._namespaces[key.namespace]
        else:
            self.enter(key, Entry(held, held))

    def commitments(self, namespace: str, now: float) -> Commitments[Key]:
        """Return the commitments of a namespace, with those of TurboDeployments not looked at yet."""
        commitments = self._namespaces[namespace]
        for key in self.cache.keys(namespace) - commitments.entries.keys():
            held = self._held(key, now)
            commitments.enter(key, Entry(held, held))
        return commitments

    def _held(self, key: Key, now: float) -> Amount:
        return sum((held + trained for _, held, trained in self._holdings(key, now)), NOTHING)

    def _holdings(self, key: Key, now: float) -> Iterator[tuple[str, Amount, Amount]]:
        """Yield what replicas and trainings hold, by the uid of the TurboDeployment that made them."""
        for owner in self.cache.owners_of(key):
            observed = self.cache.observe(key, owner)
            states = variant_states(observed.children, observed.pods, observed.accelerators, now)
            held = amount_of((state.footprint, state.held) for state in states)
            yield owner, held, amount_of(trainings_holding(observed))
