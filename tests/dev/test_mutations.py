"""Objects that are wrong in one place: the same for a seed, each another one, and each kind touched."""

from __future__ import annotations

import copy
import json
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from turbo_dev.mutations import mutations
from turbo_operator.api import crd

SCHEMAS = {
    definition["spec"]["names"]["kind"]: definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for definition in crd.definitions()
}
BASES = {
    "budget": {"kind": "TurboBudget", "metadata": {"name": "b"}, "spec": {"maxPerHour": "1.00"}},
    "chat": {
        "kind": "TurboDeployment",
        "metadata": {"name": "c"},
        "spec": {"model": {"uri": "hf://a/b"}, "accelerators": {"allowed": ["cpu"]}},
    },
}


@given(st.integers(0, 1000))
def test_a_seed_gives_the_same_objects_under_names_of_their_own_and_leaves_the_good_ones_alone(
    seed: int,
) -> None:
    before = copy.deepcopy(BASES)
    found = mutations(BASES, SCHEMAS, 20, seed)
    assert found == mutations(BASES, SCHEMAS, 20, seed)
    assert before == BASES
    assert len({each.body["metadata"]["name"] for each in found}) == 20
    for each in found:
        json.dumps(each.body)  # what cannot be sent would try nothing


def test_most_are_other_objects_and_they_reach_most_fields() -> None:
    found = mutations(BASES, SCHEMAS, 2000, 1)
    kinds = Counter(each.body["kind"] for each in found)
    assert kinds == {"TurboBudget": 1000, "TurboDeployment": 1000}
    specs = {each.what.partition(": ")[0]: BASES[each.what.partition(": ")[0]]["spec"] for each in found}
    changed = [each for each in found if each.body.get("spec") != specs[each.what.partition(": ")[0]]]
    assert len(changed) > 0.9 * len(found)
    fields = {
        each.what.split(": ", 1)[1].split()[0] for each in found if each.body["kind"] == "TurboDeployment"
    }
    assert len(fields) > 150
