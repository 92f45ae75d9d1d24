"""A network that trains slowly has fewer epochs in the last training, and a small one learns less in it: both
are picked more rarely."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from smash_base import files
from smash_search.rank.finalists import Finalist, FinalistsConfig, Rung, choose, run_rungs
from smash_search.rank.latency_model import parts_of
from smash_search.rank.scoring import Score
from smash_search.rank.trained import Trained, expected, pick
from smash_search.space.architecture import Architecture, InputSpec
from smash_search.space.cost import cost_of
from smash_search.space.known import preset
from smash_search.space.space import space_for
from smash_search.stages.config import Run, SearchConfig
from smash_search.stages.hurry import PROBED, SIZE, TIMES, LastTraining
from smash_search.strategies import Candidate, Scored
from smash_search.train.network import MOST_EPOCHS
from tests.search.small_data import small_digits

SPEC = InputSpec(1, (8, 8))
NETWORKS = {name: preset(name, SPEC) for name in ("resnet-8", "mobilenetv2")}
FAST, SLOW = (NETWORKS[name] for name in ("resnet-8", "mobilenetv2"))
KEYS = {network.key: network for network in NETWORKS.values()}


def _trained(network: Architecture, error: float) -> Trained:
    return Trained("search", network.key, "", 0.5, 1000, 0, 2, error, 1.0, validation_loss=3 * error)


def _scored(network: Architecture, error: float, images: int) -> Scored:
    score = Score(network.key, images, error, error, error, 2.0, "")
    return Scored(Candidate(network, "random"), score, cost_of(network, SPEC, 10))


def _run(folder: Path, seconds: float, times: dict[Architecture, float]) -> Run:
    for network, took in times.items():
        files.append_jsonl(folder / TIMES, {"key": network.key, "seconds": took})
    config = SearchConfig(last_training=seconds)
    return Run(config, small_digits(), folder, torch.device("cpu"))


def test_who_was_ahead_after_equal_epochs_is_not_picked_for_a_short_training(tmp_path: Path) -> None:
    entries = [_trained(FAST, 0.289), _trained(SLOW, 0.279)]
    assert pick(entries).key == SLOW.key
    for seconds, wanted in ((1200.0, FAST), (50_000.0, SLOW)):
        last = LastTraining(_run(tmp_path, seconds, {FAST: 95.0, SLOW: 235.0}))
        assert pick(entries, last.by_key(KEYS)).key == wanted.key


def test_a_small_network_that_is_level_in_a_short_race_is_not_picked(tmp_path: Path) -> None:
    """Errors and times of CIFAR-10: the small one ended at 13.95 %, the other at 12.6 % in fewer epochs."""
    small, large = sorted(NETWORKS.values(), key=lambda one: cost_of(one, SPEC, 10).parameters)
    last = LastTraining(_run(tmp_path, 1300.0, {small: 63.5, large: 77.4}))
    handicap = last.by_key(KEYS)
    for error, wanted in ((0.2984, large), (0.28, small)):
        assert pick([_trained(small, error), _trained(large, 0.295)], handicap).key == wanted.key


def test_a_slow_network_is_not_preferred_where_little_is_left_to_gain() -> None:
    """What is expected one rung behind the last may be negative."""
    entries = [
        replace(_trained(network, error), rung=rung)
        for network in (SLOW, FAST)
        for rung, error in enumerate((0.5, 0.1))
    ]
    factors = {SLOW.key: 0.8, FAST.key: 0.6}
    assert expected(entries)(entries[-1]) < 0
    assert pick(entries, lambda entry: factors[entry.key]).key == FAST.key


def test_the_curve_is_that_of_errors_over_epochs(tmp_path: Path) -> None:
    """Picks of searches on CIFAR-10: 16.1, 11.6 and 9.5 % after 4, 25 and 100 epochs."""
    handicaps = []
    for epochs in (4, 25, 100):
        last = LastTraining(_run(tmp_path, 10.0 * epochs, {FAST: 10.0}))
        handicaps.append(last.handicap(FAST))
    assert handicaps[0] / handicaps[2] == pytest.approx(16.1 / 9.5, abs=0.1)
    assert handicaps[1] / handicaps[2] == pytest.approx(11.6 / 9.5, abs=0.02)


def test_epochs_are_measured_once_and_bounded(tmp_path: Path) -> None:
    run = _run(tmp_path, 60.0, {})
    measured = LastTraining(run).epochs(FAST)
    assert 0 < measured <= MOST_EPOCHS
    (record,) = files.read_jsonl(tmp_path / TIMES)
    assert record["key"] == FAST.key
    assert LastTraining(run).epochs(FAST) == measured, "a search that goes on measures nothing again"
    hours = LastTraining(_run(tmp_path, 1e7, {SLOW: 1.0}))
    assert hours.epochs(SLOW) == MOST_EPOCHS
    minute = LastTraining(_run(tmp_path, 0.1, {SLOW: 1.0}))
    one = LastTraining(_run(tmp_path, 1.0, {SLOW: 1.0}))
    assert minute.handicap(SLOW) == one.handicap(SLOW), "below one epoch as after one"


def test_the_pick_says_who_was_ahead(tmp_path: Path) -> None:
    last = LastTraining(_run(tmp_path, 1200.0, {FAST: 100.0, SLOW: 240.0}))
    words = last.words(FAST, [SLOW])
    assert words == (
        f"1200 s of training are 12.0 epochs of the pick, of 100,682 parameters, and 5.0 of {SLOW.key}, "
        "of 219,738, which was ahead after equal epochs."
    )
    assert last.words(FAST, []) is None


def test_what_enters_a_race_is_chosen_by_score_and_training_time(tmp_path: Path) -> None:
    """Scores of CIFAR-10: the residual network is behind, and has twice the epochs."""
    hurry = LastTraining(_run(tmp_path, 1200.0, {FAST: 104.0, SLOW: 190.0}))
    scored = [_scored(FAST, 0.668, 250), _scored(SLOW, 0.635, 1000)]
    config = FinalistsConfig(count=1, random=0)
    (chosen,) = choose(scored, config)
    assert (chosen.architecture, chosen.reason) == (SLOW, "best score of size bin 1 of 1")
    (chosen,) = choose(scored, config, handicaps=hurry.handicaps)
    assert chosen.architecture == FAST
    assert chosen.reason == "best score for its training time of size bin 1 of 1"


def test_which_go_on_in_a_race_is_judged_by_training_time_too(tmp_path: Path) -> None:
    hurry = LastTraining(_run(tmp_path, 1200.0, {FAST: 95.0, SLOW: 235.0}))
    entered = [Finalist(network, "search", "", 0.5, 1000) for network in (SLOW, FAST)]
    errors = {SLOW.key: 0.279, FAST.key: 0.289}
    config = FinalistsConfig(count=2, random=0, rungs=(1, 2))

    def work(rungs: Sequence[Rung]) -> Iterator[tuple[int, Trained]]:
        for index, (finalist, rung) in enumerate(rungs):
            entry = _trained(finalist.architecture, errors[finalist.architecture.key])
            yield index, replace(entry, rung=rung, epochs=rung + 1)

    for handicap, wanted in ((None, SLOW), (hurry.handicap, FAST)):
        records = tmp_path / f"{wanted.key}.jsonl"
        results = run_rungs(entered, config, records=records, work=work, handicap=handicap)
        assert [entry.key for entry in results if entry.rung == 1] == [wanted.key]


def test_a_training_that_diverged_is_the_last_of_a_race_however_fast() -> None:
    fell = replace(_trained(FAST, 1.0), diverged="NaN", validation_loss=None)
    judged = expected([fell, _trained(SLOW, 0.3)], lambda entry: 0.5 if entry.key == FAST.key else 0.8)
    assert judged(fell) == math.inf


def test_no_network_is_thought_to_be_faster_than_all_that_were_timed(tmp_path: Path) -> None:
    """Times that dense convolutions alone explain leave no price for a network that has none."""
    run, space = _run(tmp_path, 20_000.0, {}), space_for(SPEC)
    drawn = sorted((space.draw(3, slot) for slot in range(300)), key=lambda one: run.cost(one).macs)
    work = [parts_of(network, SPEC, 10).get("dense MACs", 0) for network in drawn]
    place = next(place for place in range(40, 300) if not work[place])
    smaller = [at for at in range(place) if work[at]][-PROBED // 2 :]
    larger = [at for at in range(place, 300) if work[at]][: PROBED // 2]
    run = _run(tmp_path, 20_000.0, {drawn[at]: work[at] / 100 for at in smaller + larger})
    found = LastTraining(run).handicaps([drawn[at] for at in [*smaller, place, *larger]])
    assert len(files.read_jsonl(tmp_path / TIMES)) == PROBED, "the one in the middle is not timed"

    def by_time_alone(at: int) -> float:
        return found[drawn[at].key] * run.cost(drawn[at]).parameters ** SIZE

    timed = [by_time_alone(at) for at in smaller + larger]
    assert by_time_alone(place) == pytest.approx(min(timed))
    assert min(timed) < max(timed)


def test_few_networks_are_timed_and_tell_the_time_of_many(tmp_path: Path) -> None:
    space = space_for(SPEC)
    networks = [space.draw(3, slot) for slot in range(PROBED + 4)]
    run = _run(tmp_path, 20.0, {})
    found = LastTraining(run).handicaps(networks)
    timed = {record["key"] for record in files.read_jsonl(tmp_path / TIMES)}
    assert len(timed) == PROBED
    assert found.keys() == {network.key for network in networks}
    assert LastTraining(run).handicaps(networks) == found, "a search that goes on chooses the same"
    costs = [run.cost(network).macs for network in networks]
    assert {networks[int(np.argmin(costs))].key, networks[int(np.argmax(costs))].key} <= timed
    last = LastTraining(run)
    for network in networks:
        off = found[network.key] / last.handicap(network)
        assert off == 1 if network.key in timed else 0.8 < off < 1.25, "a third or three times the time"
