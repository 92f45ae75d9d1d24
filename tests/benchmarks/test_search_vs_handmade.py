"""The comparison of searches: arms have the search's rights, and intervals say what so few rows can say."""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.record import RESULTS
from benchmarks.search_vs_handmade import (
    Bench,
    difference_words,
    differences_from,
    paired_interval,
    with_epochs,
)
from smash_export.device_search.latency import DeviceLatency, Setting
from smash_search.rank.finalists import Finalist, FinalistsConfig, train_rung
from smash_search.rank.trained import Trained
from smash_search.space.architecture import Architecture, InputSpec
from smash_search.space.cost import cost_of


class ByMacs(DeviceLatency):
    """A device whose milliseconds are the multiply-accumulates in hundreds of thousands."""

    def measure(self, architecture: Architecture) -> dict[str, float]:
        return {"latency_ms": cost_of(architecture, InputSpec(1, (8, 8)), 10).macs / 1e5}

    confirm = measure


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
    config, evaluator = bench._config(0, "4ms", 4.0, latency), bench.evaluator(bench.folder, latency)
    entrants = bench.entrants("random", 0, config, evaluator, 4.0)
    drawn = [entry.macs / 1e5 for entry in itertools.islice(entrants, 20) if entry.reason == "random"]
    assert len(drawn) == 10
    assert all(2.0 < milliseconds <= 4.0 for milliseconds in drawn)


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


@pytest.mark.parametrize("path", sorted(RESULTS.glob("search_vs_*.json")), ids=lambda path: path.stem)
def test_committed_intervals_are_those_of_the_committed_rows(path: Path) -> None:
    document = json.loads(path.read_text())
    compared = [goal for goal in document["goals"] if goal["what"].startswith("test error of ")]
    assert compared
    for goal in compared:
        arm = goal["what"].removeprefix("test error of ").partition(" minus ")[0]
        assert goal["value"] == difference_words(differences_from(arm, document["results"]["rows"]))
