"""A network that trains slowly has fewer epochs in the last training, and is picked more rarely."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from smash_base import files
from smash_search.rank.trained import Trained, expected, pick
from smash_search.space.architecture import InputSpec
from smash_search.space.known import preset
from smash_search.stages.config import Run, SearchConfig
from smash_search.stages.hurry import TIMES, LastTraining
from smash_search.train.network import MOST_EPOCHS
from tests.search.small_data import small_digits

SPEC = InputSpec(1, (8, 8))
NETWORKS = {name: preset(name, SPEC) for name in ("resnet-8", "mobilenetv2")}
KEYS = {network.key: network for network in NETWORKS.values()}
FAST, SLOW = (NETWORKS[name].key for name in ("resnet-8", "mobilenetv2"))


def _trained(key: str, error: float) -> Trained:
    return Trained("search", key, "", 0.5, 1000, 0, 2, error, 1.0, validation_loss=3 * error)


def _run(folder: Path, seconds: float, times: dict[str, float]) -> Run:
    for key, took in times.items():
        files.append_jsonl(folder / TIMES, {"key": key, "seconds": took})
    config = SearchConfig(last_training=seconds)
    return Run(config, small_digits(), folder, torch.device("cpu"))


def test_who_was_ahead_after_equal_epochs_is_not_picked_for_a_short_training(tmp_path: Path) -> None:
    entries = [_trained(FAST, 0.289), _trained(SLOW, 0.279)]
    assert pick(entries).key == SLOW
    for seconds, wanted in ((1200.0, FAST), (50_000.0, SLOW)):
        last = LastTraining(_run(tmp_path, seconds, {FAST: 95.0, SLOW: 235.0}), KEYS)
        assert pick(entries, last.handicap).key == wanted


def test_a_slow_network_is_not_preferred_where_little_is_left_to_gain() -> None:
    """What is expected one rung behind the last may be negative."""
    slow, fast = "slow", "fast"
    entries = [
        replace(_trained(key, error), rung=rung)
        for key in (slow, fast)
        for rung, error in enumerate((0.5, 0.1))
    ]
    factors = {slow: 0.8, fast: 0.6}
    assert expected(entries)(entries[-1]) < 0
    assert pick(entries, lambda entry: factors[entry.key]).key == fast


def test_the_curve_is_that_of_errors_over_epochs(tmp_path: Path) -> None:
    """Picks of searches on CIFAR-10: 16.1, 11.6 and 9.5 % after 4, 25 and 100 epochs."""
    handicaps = []
    for epochs in (4, 25, 100):
        last = LastTraining(_run(tmp_path, 10.0 * epochs, {FAST: 10.0}), KEYS)
        handicaps.append(last.handicap(_trained(FAST, 0.3)))
    assert handicaps[0] / handicaps[2] == pytest.approx(16.1 / 9.5, abs=0.1)
    assert handicaps[1] / handicaps[2] == pytest.approx(11.6 / 9.5, abs=0.02)


def test_epochs_are_measured_once_and_bounded(tmp_path: Path) -> None:
    run = _run(tmp_path, 60.0, {})
    measured = LastTraining(run, KEYS).epochs(FAST)
    assert 0 < measured <= MOST_EPOCHS
    (record,) = files.read_jsonl(tmp_path / TIMES)
    assert record["key"] == FAST
    assert LastTraining(run, KEYS).epochs(FAST) == measured, "a search that goes on measures nothing again"
    hours = LastTraining(_run(tmp_path, 1e7, {SLOW: 1.0}), KEYS)
    assert hours.epochs(SLOW) == MOST_EPOCHS
    minute = LastTraining(_run(tmp_path, 0.1, {SLOW: 1.0}), KEYS)
    assert minute.handicap(_trained(SLOW, 0.3)) == 1, "below one epoch as after one"


def test_the_pick_says_who_was_ahead(tmp_path: Path) -> None:
    last = LastTraining(_run(tmp_path, 1200.0, {FAST: 100.0, SLOW: 240.0}), KEYS)
    words = last.words(_trained(FAST, 0.289), [_trained(SLOW, 0.279)])
    assert words == (
        f"1200 s of training are 12.0 epochs of the pick, and 5.0 of {SLOW}, "
        "which was ahead after equal epochs."
    )
    assert last.words(_trained(FAST, 0.289), []) is None
