"""Networks after rungs of training, and which of them is the best."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from smash_base.errors import SmashError
from smash_search.rank.finalists import Finalist, FinalistsConfig, Rung, run_rungs
from smash_search.rank.patterns import pattern_of
from smash_search.rank.trained import Trained, expected, pick, standing
from smash_search.space.architecture import Architecture, InputSpec
from smash_search.space.cost import cost_of
from smash_search.space.known import densenet, mobilenet, resnet
from smash_search.train.compute import DivergedError

SPEC = InputSpec(3, (16, 16))
RESIDUAL = [resnet((8, 16), layers) for layers in (1, 2, 3, 4)]
INVERTED = [mobilenet((8, 16), layers, 2) for layers in (1, 2, 3)]
LATE = {0: 0.08, 1: 0.0, 2: -0.1}  # what inverted bottlenecks are behind others, rung by rung


def test_the_pick_is_the_best_of_the_last_rung_and_the_smaller_of_equals() -> None:
    def trained(key: str, rung: int, error: float, macs: int, diverged: str | None = None) -> Trained:
        return Trained("search", key, "test", 0.1, macs, rung, rung + 1, error, 0.1, diverged)

    results = [trained("a", 0, 0.0, 1), trained("b", 1, 0.2, 9), trained("c", 1, 0.2, 5)]
    assert pick(results).key == "c"
    with pytest.raises(SmashError, match="no finalist"):
        pick([trained("a", 0, 1.0, 1, "NaN")])


def test_loss_on_validation_images_orders_networks_and_error_where_one_has_none() -> None:
    def trained(key: str, error: float, loss: float | None, diverged: str | None = None) -> Trained:
        return Trained("search", key, "", 0.5, 100, 0, 1, error, 1.0, diverged, loss)

    entries = [trained("a", 0.2, 0.8), trained("b", 0.21, 0.7), trained("c", 1.0, None, "NaN")]
    assert [entry.key for entry in sorted(entries, key=standing(entries))] == ["b", "a", "c"]
    assert pick(entries).key == "b"
    of_an_earlier_version = [*entries, trained("d", 0.19, None)]
    assert [entry.key for entry in sorted(of_an_earlier_version, key=standing(of_an_earlier_version))] == [
        *("d", "a", "b", "c")
    ]


def test_a_network_that_diverged_in_the_last_rung_gives_way_to_the_best_that_came_as_far_as_any() -> None:
    def trained(key: str, rung: int, error: float, diverged: str | None = None) -> Trained:
        return Trained("search", key, "", 0.5, 100, rung, rung + 1, error, 1.0, diverged)

    fell = [trained("a", 0, 0.2), trained("a", 1, 1.0, "NaN in 11 steps")]
    assert pick([*fell, trained("b", 0, 0.3), trained("c", 0, 0.25)]).key == "c"
    with pytest.raises(DivergedError, match="NaN in 11 steps"):
        pick(fell)
    problem = str(DivergedError("NaN in 11 steps", hint="Clip the gradient."))
    with pytest.raises(DivergedError, match=r"Clip the gradient\. Lower the learning rate of the finalists"):
        pick([trained("a", 0, 1.0, problem)])


def late_learner(key: str, rung: int, loss: float, pattern: str) -> Trained:
    behind = LATE[rung] if pattern == "inverted" else 0.0
    error = loss + behind - 0.2 * rung
    return Trained("search", key, "", 0.5, 100, rung, rung + 1, error, 1.0, None, error, pattern)


def test_before_a_network_went_on_nothing_but_its_loss_counts() -> None:
    entries = [late_learner("a", 0, 0.5, "residual"), late_learner("b", 0, 0.45, "inverted")]
    judged = expected(entries)
    assert [judged(entry) for entry in entries] == [entry.validation_loss for entry in entries]


def test_a_pattern_that_gains_more_later_is_ahead_of_what_is_better_now() -> None:
    scouts = [
        late_learner(*whose)
        for rung in range(3)
        for whose in (("a", rung, 0.5, "residual"), ("b", rung, 0.52, "inverted"))
    ]
    early, late = late_learner("c", 0, 0.48, "residual"), late_learner("d", 0, 0.5, "inverted")
    assert early.error < late.error
    judged = expected([*scouts, early, late])
    assert judged(late) < judged(early)
    assert judged(early) - judged(scouts[0]) == pytest.approx(-0.02), "of one pattern as they stand"
    assert judged(scouts[-1]) < judged(scouts[-2]), "after the last rung it would gain more, too"
    assert pick([*scouts, early, late]).key == "b"


def test_a_pattern_of_which_none_went_on_is_thought_to_gain_what_all_do() -> None:
    scouts = [late_learner("a", rung, 0.5, "residual") for rung in range(2)]
    same, other = late_learner("b", 0, 0.4, "residual"), late_learner("c", 0, 0.4, "dense")
    judged = expected([*scouts, same, other])
    assert judged(same) == judged(other)


class Race:
    """Rungs in which inverted bottlenecks learn late, and what was trained in which order."""

    def __init__(self, folder: Path) -> None:
        self.records = folder / "finalists.jsonl"
        self.order: list[tuple[str, int]] = []

    def finalists(self, networks: Sequence[Architecture]) -> list[Finalist]:
        return [
            Finalist(network, "search", "test", 0.5, cost_of(network, SPEC, 10).macs) for network in networks
        ]

    def work(self, rungs: Sequence[Rung]) -> Iterator[tuple[int, Trained]]:
        for index, (finalist, rung) in enumerate(rungs):
            key, pattern = finalist.architecture.key, pattern_of(finalist.architecture)
            place = (INVERTED if pattern == "inverted" else RESIDUAL).index(finalist.architecture)
            self.order.append((key, rung))
            yield index, late_learner(key, rung, 0.5 + place / 100, pattern)


def test_the_best_of_each_pattern_goes_through_all_rungs_before_anything_is_proposed(tmp_path: Path) -> None:
    race = Race(tmp_path)
    entered = race.finalists(RESIDUAL[:3] + INVERTED[:2])
    scouts = [RESIDUAL[0].key, INVERTED[0].key]

    def propose(number: int, entered: Sequence[Finalist], results: Sequence[Trained]) -> list[Finalist]:
        assert {entry.key for entry in results if entry.rung == 2} == set(scouts)
        judged = expected(results)
        first = min((entry for entry in results if entry.rung == 0), key=judged)
        assert first.key == INVERTED[0].key, "what learns late is what to look for"
        return race.finalists(INVERTED[2:])

    config = FinalistsConfig(count=5, rounds=1, per_round=1, rungs=(1, 2, 3), keep=0.5, random=0)
    results = run_rungs(entered, config, records=race.records, work=race.work, propose=propose)
    assert race.order[5:9] == [(key, rung) for rung in (1, 2) for key in scouts]
    assert len(race.order) == len(set(race.order)) == len(results), "nothing is trained twice"
    second = {entry.key for entry in results if entry.rung == 1}
    assert second == {*scouts, INVERTED[1].key}, "three places, one of them for a scout that fell behind"
    assert pick(results).key == INVERTED[0].key
    again = Race(tmp_path)
    assert run_rungs(entered, config, records=race.records, work=again.work, propose=propose) == results
    assert not again.order


def test_networks_of_one_pattern_need_no_scouts(tmp_path: Path) -> None:
    race = Race(tmp_path)
    config = FinalistsConfig(count=4, rungs=(1, 2, 3), keep=0.5, random=0)
    run_rungs(race.finalists(RESIDUAL), config, records=race.records, work=race.work)
    assert race.order[4:] == [(RESIDUAL[0].key, 1), (RESIDUAL[1].key, 1), (RESIDUAL[0].key, 2)]


def test_a_scout_that_does_not_hold_gives_way_to_the_next_of_its_pattern(tmp_path: Path) -> None:
    race, asked = Race(tmp_path), list[str]()

    def holds(finalist: Finalist) -> bool:
        asked.append(finalist.architecture.key)
        return finalist.architecture not in (INVERTED[0], RESIDUAL[1])

    config = FinalistsConfig(count=5, rungs=(1, 2, 3), keep=0.5, random=0)
    networks = race.finalists(RESIDUAL[:3] + INVERTED[:2])
    results = run_rungs(networks, config, records=race.records, work=race.work, holds=holds)
    last = {entry.key for entry in results if entry.rung == 2}
    assert last == {RESIDUAL[0].key, INVERTED[1].key}
    assert len(asked) == len(set(asked)), "each is measured once"


def test_a_scout_that_diverges_goes_no_further(tmp_path: Path) -> None:
    race = Race(tmp_path)
    config = FinalistsConfig(count=5, rungs=(1, 2, 3), keep=0.5, random=0)

    def work(rungs: Sequence[Rung]) -> Iterator[tuple[int, Trained]]:
        for index, trained in race.work(rungs):
            fails = trained.key == INVERTED[0].key and trained.rung == 1
            yield (
                index,
                replace(trained, error=1.0, diverged="NaN", validation_loss=None) if fails else trained,
            )

    networks = race.finalists(RESIDUAL[:3] + INVERTED[:2])
    results = run_rungs(networks, config, records=race.records, work=work)
    assert (INVERTED[0].key, 1) in race.order
    assert (INVERTED[0].key, 2) not in race.order
    assert pick(results).key == RESIDUAL[0].key


def test_a_pattern_that_is_far_behind_has_no_scout(tmp_path: Path) -> None:
    networks = [RESIDUAL[0], densenet(4, 2, 2)]
    trained: list[tuple[str, int]] = []

    def work(rungs: Sequence[Rung]) -> Iterator[tuple[int, Trained]]:
        for index, (finalist, rung) in enumerate(rungs):
            key, pattern = finalist.architecture.key, pattern_of(finalist.architecture)
            trained.append((key, rung))
            error = 0.3 if pattern == "residual" else 0.45
            yield index, Trained("search", key, "", 0.5, 1, rung, rung + 1, error, 1.0, None, error, pattern)

    config = FinalistsConfig(rungs=(1, 2), keep=0.5, random=0)
    run_rungs(Race(tmp_path).finalists(networks), config, records=tmp_path / "finalists.jsonl", work=work)
    assert trained[2:] == [(RESIDUAL[0].key, 1)]
