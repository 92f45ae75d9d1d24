"""The comparison of searches: arms have the search's rights, and intervals say what so few rows can say."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.record import RESULTS
from benchmarks.search_vs_handmade import (
    Bench,
    difference_words,
    differences_from,
    paired_interval,
    survey_for,
    with_epochs,
    won,
)
from smash_base.files import append_jsonl, read_json
from smash_export.device_search.latency import DeviceLatency, Setting
from smash_search.rank.evaluation import REFERENCE
from smash_search.rank.finalists import Finalist, FinalistsConfig, train_rung
from smash_search.rank.measurement import LATENCY
from smash_search.rank.trained import Trained
from smash_search.space.architecture import Architecture, InputSpec
from smash_search.space.cost import cost_of
from smash_search.space.space import space_for


class ByMacs(DeviceLatency):
    """A device whose milliseconds are the multiply-accumulates in hundreds of thousands."""

    def measure(self, architecture: Architecture) -> dict[str, float]:
        return {"latency_ms": cost_of(architecture, InputSpec(1, (8, 8)), 10).macs / 1e5}

    confirm = measure

    def times_over(
        self, architecture: Architecture, others: Sequence[Architecture], briefly: bool = False
    ) -> list[float]:
        latency, *latencies = (self.measure(entry)[LATENCY] for entry in (architecture, *others))
        return [latency / other for other in latencies]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Digits, one epoch for each network."""
    monkeypatch.setattr("benchmarks.search_vs_handmade.DeviceLatency", ByMacs)
    arguments = dict.fromkeys(("candidates", "steps", "finalists", "rounds", "epochs"))
    arguments |= {"data": "digits", "size": "edge-tiny", "seeds": "0", "arms": "search,random,presets"}
    arguments |= {"train_images": 64, "rungs": (1,), "epoch_images": 64}
    return Bench(argparse.Namespace(**arguments), tmp_path)


def test_random_draws_of_an_arm_are_near_the_limit_as_those_of_a_search_are(bench: Bench) -> None:
    latency = ByMacs(bench.spec, bench.classes, Setting(), limit_ms=4.0)
    survey = survey_for(space_for(bench.spec, "edge-tiny"), 0, 4.0, bench.spec, bench.classes)
    assert survey.reference is not None
    evaluator = bench.evaluator(bench.folder, latency, survey.reference, bench.folder / "search")
    entrants = bench.entrants("random", survey, evaluator, 4.0)
    drawn = [entry.macs / 1e5 for entry in itertools.islice(entrants, 20) if entry.reason == "random"]
    assert len(drawn) == 10
    assert all(2.0 < milliseconds <= 4.0 for milliseconds in drawn)


def test_an_arm_measures_in_the_unit_of_the_search_though_the_machine_has_changed_its_speed(
    bench: Bench,
) -> None:
    latency, searched = ByMacs(bench.spec, bench.classes, Setting(), limit_ms=4.0), bench.folder / "search"
    reference, other = (space_for(bench.spec, "edge-tiny").draw(0, slot) for slot in range(2))
    searched.mkdir()
    then = latency.measure(reference)[LATENCY] / 2
    for milliseconds in (1.1 * then, then):
        append_jsonl(searched / REFERENCE, {"key": reference.key, "measures": {LATENCY: milliseconds}})
    evaluator = bench.evaluator(bench.folder / "arm", latency, reference, searched)
    evaluator.measure([other])
    assert evaluator.measures[other.key][LATENCY] == pytest.approx(latency.measure(other)[LATENCY] / 2)


def test_an_interrupted_arm_begins_anew_and_pays_for_what_it_trains(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []

    def train(finalist: Finalist, *arguments: Any, **options: Any) -> Trained:
        trained.append(finalist.architecture.key)
        return train_rung(finalist, *arguments, **options)

    monkeypatch.setattr("benchmarks.search_vs_handmade.train_rung", train)
    for number in (1, 2):
        assert bench.arm("presets", 0, "4ms", 4.0, seconds=0.0)["trained"] == 1
        assert len(trained) == number


def test_one_row_has_no_interval_and_two_that_differ_have_a_wide_one() -> None:
    assert paired_interval([0.03]) is None
    low, high = paired_interval([0.01, 0.03]) or (0.0, 0.0)
    assert low < -0.1
    assert high > 0.14


def test_the_race_without_a_hypernet_trains_networks_in_its_place(bench: Bench) -> None:
    bench.arguments.candidates = 8
    bench.arguments.steps, bench.arguments.rounds, bench.arguments.finalists = 2, 1, 4
    found = bench.search(0, "4ms", 4.0)
    assert {"hypernet", "scoring", "finalists"} <= set(found["stages"])
    spared = {**found, "stages": {"hypernet": 1.0, "scoring": 2.0, "finalists": 4.0}}
    raced = bench.race(0, "4ms", 4.0, spared)
    assert raced["encoding"] != found["encoding"]
    assert raced["trained"] == found["trained"] + found["trained"] * 3 // 4


def test_epochs_go_into_rounds_or_into_the_start() -> None:
    rounds = FinalistsConfig(count=4, rounds=2, per_round=2, rungs=(1,))
    assert with_epochs(rounds, 13.9).per_round == 4
    assert with_epochs(rounds, 12).entering == 12
    assert with_epochs(FinalistsConfig(count=4, rungs=(1,)), 6.5).count == 6


COMPARISONS = [
    path for path in sorted(RESULTS.glob("search_*.json")) if "limits" in read_json(path)["results"]
]


@pytest.mark.parametrize("path", COMPARISONS, ids=lambda path: path.stem)
def test_committed_intervals_are_those_of_the_committed_rows(path: Path) -> None:
    document = read_json(path)
    compared = [goal for goal in document["goals"] if goal["what"].startswith("test error of ")]
    assert compared or len(document["results"]["rows"][0]["arms"]) == 1  # at half of a latency
    for goal in compared:
        arm = goal["what"].removeprefix("test error of ").partition(" minus ")[0]
        assert goal["value"] == difference_words(differences_from(arm, document["results"]["rows"]))


def rows_of(differences: dict[tuple[int, str], float]) -> list[dict[str, Any]]:
    """Rows by seed and limit in which an arm's picks have so much more error than the search's."""

    def picks(difference: float) -> dict[str, Any]:
        others = {arm: {"test_error": 0.1 + difference} for arm in ("presets", "random")}
        return {"search": {"test_error": 0.1}, **others}

    return [
        {"seed": seed, "network": limit, "arms": picks(difference)}
        for (seed, limit), difference in differences.items()
    ]


EVERYWHERE = {(seed, limit): 0.02 for seed in range(3) for limit in "abcd"}


def test_picks_that_are_better_at_three_limits_in_every_seed_have_won() -> None:
    once_each = {**EVERYWHERE, (0, "a"): -0.001, (1, "b"): -0.001, (2, "c"): -0.001}
    assert won("presets", rows_of(once_each))
    assert won("random", rows_of(once_each))


def test_picks_that_lose_twice_in_one_seed_have_not_won_against_presets() -> None:
    twice = {**EVERYWHERE, (0, "a"): -0.001, (0, "b"): -0.001}
    assert not won("presets", rows_of(twice))
    assert won("random", rows_of(twice))


def test_half_a_point_is_too_little_against_presets_and_enough_against_draws() -> None:
    little = dict.fromkeys(EVERYWHERE, 0.005) | {(0, "a"): 0.006}
    assert not won("presets", rows_of(little))
    assert won("random", rows_of(little))


def test_differences_of_both_signs_have_won_nothing() -> None:
    wild = {place: 0.05 if number % 2 else -0.05 for number, place in enumerate(EVERYWHERE)}
    assert not won("random", rows_of(wild))
