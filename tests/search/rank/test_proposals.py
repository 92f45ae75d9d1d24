"""Proposals learn from trained networks, keep the limits, and are the same when they are made again."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from smash_search.rank.proposals import ErrorModel, Observation, outer_fence, propose
from smash_search.space.architecture import Architecture, InputSpec
from smash_search.space.cost import Cost, cost_of
from smash_search.space.space import space_for
from smash_search.strategies import Candidate

SPEC = InputSpec(3, (32, 32))
SPACE = space_for(SPEC, "edge")


def cost(architecture: Architecture) -> Cost:
    return cost_of(architecture, SPEC, 10)


def error(architecture: Architecture) -> float:
    """A made-up truth: wide last blocks and small stems are good."""
    width = architecture.blocks[-1].channels_in
    return 0.6 - 0.1 * np.log2(width / 32) + 0.05 * np.log2(architecture.stem.stride[0])


def observed(count: int) -> list[Observation]:
    drawn = [SPACE.draw(0, slot) for slot in range(count)]
    return [Observation(entry, cost(entry), error(entry)) for entry in drawn]


def proposed_after(
    observations: list[Observation],
    wanted: int,
    *,
    fits: Callable[[Architecture], bool],
    seed: int = 0,
    waiting: Sequence[Candidate] = (),
) -> list[Candidate]:
    model = ErrorModel.of(observations)
    return propose(
        model,
        wanted,
        parents=observations,
        space=SPACE,
        seed=seed,
        fits=fits,
        cost=cost,
        waiting=waiting,
    )


def test_the_model_orders_networks_that_it_has_not_seen() -> None:
    model = ErrorModel.of(observed(40))
    unseen = [SPACE.draw(1, slot) for slot in range(60)]
    order = model.choose([(entry, cost(entry)) for entry in unseen], 60)
    assert sorted(order) == list(range(60)), "each of them once"
    errors = [error(unseen[place]) for place in order]
    assert np.mean(errors[:15]) < np.mean(errors) - 0.05 < np.mean(errors[-15:])


def test_a_round_holds_several_ideas_and_twins_only_when_nothing_else_is_left() -> None:
    model = ErrorModel.of(observed(30))
    unseen = [SPACE.draw(2, slot) for slot in range(40)]
    twins = [(entry, cost(entry)) for entry in unseen for _ in range(2)]
    order = [place // 2 for place in model.choose(twins, 80)]
    assert sorted(order) == sorted(2 * list(range(40)))
    assert len(set(order[:8])) == 8


def test_proposals_are_better_than_draws_new_within_limits_and_reproducible() -> None:
    observations = observed(30)
    seen = {entry.architecture.key for entry in observations}

    def fits(architecture: Architecture) -> bool:
        return architecture.key not in seen and cost(architecture).macs < 60_000_000

    made = [proposed_after(observations, 8, seed=5, fits=fits) for _ in range(2)]
    assert made[0] == made[1]
    assert len({candidate.architecture.key for candidate in made[0]} - seen) == 8
    assert all(fits(candidate.architecture) for candidate in made[0])
    proposed = np.mean([error(candidate.architecture) for candidate in made[0]])
    assert proposed < np.mean([entry.judged for entry in observations]) - 0.05
    assert {candidate.origin for candidate in made[0]} <= {"mutation", "crossover", "random"}


def test_nothing_is_proposed_where_nothing_fits() -> None:
    assert proposed_after(observed(4), 3, fits=lambda _: False) == []


def test_a_limit_whose_share_of_a_round_is_nothing_takes_no_time() -> None:
    asked: list[Architecture] = []

    def fits(architecture: Architecture) -> bool:
        asked.append(architecture)
        return False

    assert not proposed_after(observed(10), 0, fits=fits)
    assert not asked, "twenty thousand of them, within a limit that nothing keeps, are a minute"


def test_what_was_scored_and_not_trained_is_chosen_where_it_promises_more() -> None:
    by_error = sorted((SPACE.draw(4, slot) for slot in range(200)), key=error)
    waiting = [Candidate(by_error[0], "known"), Candidate(by_error[-1], "known")]

    def proposed(wanted: int, fits: bool) -> list[Candidate]:
        return proposed_after(observed(40), wanted, fits=lambda _: fits, waiting=waiting)

    assert proposed(1, fits=False) == [waiting[0]]
    assert proposed(2, fits=False) == waiting
    assert waiting[1] not in proposed(8, fits=True)


def test_a_score_far_beyond_those_of_the_trained_networks_is_outside_the_fence() -> None:
    trained = [0.42, 0.43, 0.44, 0.45, 0.46]
    assert 0.46 < outer_fence(trained) < 0.6
    assert outer_fence(trained) == outer_fence([*trained[::-1]])
    assert outer_fence([0.4]) == outer_fence([]) == math.inf, "too few to say"
    assert outer_fence([0.4, *[0.9] * 8]) == math.inf, "a HyperNet that answers with one class says nothing"
