"""What may be said of a ranking, and what each stage of a search added."""

from __future__ import annotations

import numpy as np

from smash_search.rank.trained import Trained
from smash_search.rank.trust import contribution_of_score, stages_of, trust

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


def trained(key: str, reason: str, rung: int, error: float) -> Trained:
    return Trained("search", key, reason, 0.5, 1, rung, rung + 1, error, 1.0)


RACE = [
    trained("a", "best score of size bin 1 of 2", 0, 0.35),
    trained("b", "known network", 0, 0.4),
    trained("c", "best score within its limit", 0, 0.37),
    trained("d", "drawn regardless of score", 0, 0.42),
    trained("e", "proposed in round 1: mutation", 0, 0.36),
    trained("f", "proposed in round 2: known", 0, 0.3),
    trained("b", "known network", 1, 0.25),
    trained("f", "proposed in round 2: known", 1, 0.28),
]


def test_each_stage_shows_the_best_so_far_at_equal_rungs() -> None:
    """What the score chose and what the lot chose are random draws alike, and told apart by their reason."""
    stages = {stage.name: stage for stage in stages_of(RACE)}
    assert list(stages) == ["known networks", "drawn by lot", "chosen by score", "round 1", "round 2"]
    assert [stage.trained for stage in stages.values()] == [1, 1, 2, 1, 1]
    assert [stage.best for stage in stages.values()] == [0.4, 0.42, 0.35, 0.36, 0.3]
    assert [stage.best_so_far for stage in stages.values()] == [0.4, 0.4, 0.35, 0.35, 0.3]
    assert round(stages["chosen by score"].mean, 6) == 0.36
    assert [stage.reached_last for stage in stages.values()] == [1, 0, 0, 0, 1]
    assert [stage.best_last for stage in stages.values()] == [0.25, None, None, None, 0.28]
    assert [stage.best_last_so_far for stage in stages.values()] == [0.25] * 5


def test_known_networks_that_the_score_or_the_lot_chose_are_not_credited_to_them() -> None:
    by_others = [
        trained("g", "best score of size bin 2 of 2, a known network", 0, 0.31),
        trained("h", "drawn regardless of score, a known network", 0, 0.5),
    ]
    stages = {stage.name: stage for stage in stages_of([*RACE, *by_others])}
    assert [stage.trained for stage in stages.values()] == [3, 1, 2, 1, 1]
    assert stages["known networks"].best == 0.31
    assert stages["chosen by score"].best == 0.35


def test_what_the_score_contributed_is_said() -> None:
    said = contribution_of_score(stages_of(RACE))
    assert said == (
        "Trained networks that the HyperNet's score chose: 2, with a mean error of 36.00% after the first "
        "rung; drawn by lot: 1, with 42.00%. The score's lowered the best error so far from 40.00% to 35.00%."
    )
    better = [*RACE, trained("g", "known network", 0, 0.2)]
    assert "None of the score's was better than the best before them, 20.00%." in (
        contribution_of_score(stages_of(better)) or ""
    )
    assert contribution_of_score(stages_of(RACE[1:2])) is None
    alone = contribution_of_score(stages_of(RACE[:1])) or ""
    assert alone.endswith("chose: 1, with a mean error of 35.00% after the first rung.")
