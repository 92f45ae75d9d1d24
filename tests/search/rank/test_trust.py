"""What may be said of a ranking, and what each origin added."""

from __future__ import annotations

import numpy as np

from smash_search.rank.finalists import Trained
from smash_search.rank.trust import origins_of, trust

ERRORS = list(np.linspace(0.2, 0.5, 20))


def test_a_score_that_stays_as_good_without_its_filters_claims_no_ranking() -> None:
    told = trust(ERRORS, [error + 0.3 for error in ERRORS], ERRORS)
    assert told.tau == 1
    assert round(told.op_contribution, 6) == 0.3
    assert told.claim.startswith("No ranking is claimed")
    assert told.words().startswith(
        "1.00 (1.00 to 1.00) over 20 networks; with every generated filter zero: 1.00. "
    )
    assert told.words().endswith(told.claim)


def test_a_score_that_only_works_with_its_filters_is_believed() -> None:
    shuffled = list(np.random.default_rng(0).permutation(ERRORS))
    assert not trust(ERRORS, shuffled, ERRORS).claim.startswith("No ranking")
    assert trust(shuffled, shuffled, ERRORS).claim.startswith("No ranking")


def test_a_score_that_is_hardly_better_with_its_filters_claims_no_ranking() -> None:
    """Two views of the same errors, of which one has an eighth more noise."""
    noise = np.random.default_rng(0).normal(0, 0.08, 20)
    told = trust(list(ERRORS + noise), list(ERRORS + 1.125 * noise), ERRORS)
    assert told.tau is not None
    assert told.tau_zeroed is not None
    assert told.tau > told.tau_zeroed
    assert told.claim.startswith("No ranking is claimed: the score orders")


def trained(key: str, rung: int, error: float) -> Trained:
    return Trained("search", key, "", 0.5, 1, rung, rung + 1, error, 1.0)


def test_each_origin_shows_its_best_network_first_and_last() -> None:
    entries = [trained("a", 0, 0.5), trained("b", 0, 0.4), trained("c", 0, 0.3), trained("c", 1, 0.2)]
    known, random = origins_of(entries, {"a": "known", "b": "known", "c": "random"})
    assert (known.trained, known.best_first, known.reached_last, known.best_last) == (2, 0.4, 0, None)
    assert (random.trained, random.best_first, random.best_last) == (1, 0.3, 0.2)
