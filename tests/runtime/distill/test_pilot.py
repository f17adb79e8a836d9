"""The method that pays is chosen by what a pilot counts, and by nothing that a clock says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from turbo_runtime.distill.recipe import METHOD_DEFAULTS, DistillError, Pilot, Recipe, choose_method


def pilots(**found: tuple[float, float]) -> dict[str, Pilot]:
    return {name: Pilot(name, length, cost) for name, (length, cost) in found.items()}


def test_the_longer_draft_is_chosen_where_drafts_cost_the_same() -> None:
    assert choose_method(pilots(heads=(2.0, 0.1), eagle3=(2.5, 0.1))) == "eagle3"


def test_a_longer_draft_that_costs_more_than_it_brings_is_not_chosen() -> None:
    assert choose_method(pilots(heads=(2.0, 0.1), eagle3=(2.5, 0.5))) == "heads"


def test_where_no_draft_pays_a_sentence_says_what_was_found() -> None:
    with pytest.raises(DistillError, match=r"no draft pays here \(heads 1\.10 tokens a draft at 20% of"):
        choose_method(pilots(heads=(1.1, 0.2), eagle3=(1.2, 0.4)))


def test_a_methods_own_defaults_hold_where_nothing_else_was_asked_for() -> None:
    untold = Recipe(method="auto", **METHOD_DEFAULTS["auto"])
    assert untold.for_method("eagle3") == Recipe(method="eagle3", **METHOD_DEFAULTS["eagle3"])
    assert untold.for_method("heads") == Recipe(method="heads")
    assert replace(untold, epochs=Recipe().epochs).for_method("eagle3").epochs == Recipe().epochs
