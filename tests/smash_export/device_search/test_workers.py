"""Which searches have several workers without being asked, and what a plan expects of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from smash_base.errors import GateError
from smash_export.device_search import workers
from smash_export.device_search.plan import Units, rehearse, scaled, search_parts, sooner
from smash_export.device_search.search import configure
from smash_export.device_search.workers import fitting_executor, memory_of_worker, pixels_of_race
from smash_search.data import Dataset
from smash_search.executors import ExecutorConfig
from smash_search.stages.config import SearchConfig
from smash_search.train.network import Recipe
from tests.search.run_small_search import config as small_config
from tests.search.small_data import small_digits
from tests.threads import torch_threads

GIB = 2**30
MANY = 100_000  # images


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    with torch_threads(6):
        yield


def _large() -> Dataset:
    """Images of eight pixels each way, so many that their search takes minutes; 6 MB in memory."""
    digits = small_digits()
    rows = np.resize(np.arange(len(digits.train)), MANY)
    return replace(digits, train=digits.train.take(rows))


def test_a_search_of_seconds_starts_no_workers() -> None:
    digits = small_digits()
    assert fitting_executor(configure(digits), digits, "cpu") == ExecutorConfig()


@pytest.mark.parametrize(
    ("threads", "gib", "expected"),
    [
        (1, 64.0, ExecutorConfig()),
        (2, 64.0, ExecutorConfig("process", workers=2, threads=1)),
        (6, 64.0, ExecutorConfig("process", workers=6, threads=1)),
        (24, 64.0, ExecutorConfig("process", workers=8, threads=3)),
        (6, 7.5, ExecutorConfig("process", workers=3, threads=2)),
        (6, 3.0, ExecutorConfig()),
    ],
)
def test_cores_and_memory_decide_on_the_workers_of_a_long_search(
    threads: int, gib: float, expected: ExecutorConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "memory_available", lambda: int(gib * GIB))
    torch.set_num_threads(threads)
    data = _large()
    assert pixels_of_race(configure(data), data) > workers.LONG
    assert fitting_executor(configure(data), data, "auto") == expected


def test_large_batches_and_images_in_memory_are_counted() -> None:
    data, config = _large(), configure(_large())
    wide = replace(config, finalists=replace(config.finalists, recipe=Recipe(batch=4096)))
    assert memory_of_worker(wide, data) - memory_of_worker(config, data) > 3_000 * 64 * 1000
    fewer = memory_of_worker(config, small_digits())
    assert memory_of_worker(config, data) - fewer == 2 * (MANY - 96) * 64


def _parts(config: SearchConfig, units: Units) -> dict[str, float]:
    return {part.label: part.seconds for part in search_parts(config, small_digits(), units)}


ALONE = Units(1.0, 0.05, 0.0, 0.3, 1e-4, 3e-4, 6e-4, 1.0)
TWO = replace(ALONE, beside=2, slower=1.5)


def test_a_plan_counts_the_wait_for_the_last_of_a_round_and_of_a_rung() -> None:
    digits = small_digits()
    config = configure(digits)
    finalists = replace(
        config.finalists, count=4, rounds=1, per_round=1, rungs=(2, 6), scouts=False, keep=0.2
    )
    config = replace(config, finalists=finalists)
    assert finalists.schedule(5) == [5, 1]
    assert finalists.epochs_in_turn(5, 1) == finalists.epochs(5) == 5 * 2 + 4
    # Two pairs, the last of which is waited for, one by itself, and one in the next rung.
    assert finalists.epochs_in_turn(5, 2) == pytest.approx((2.2 + 1) * 2 + 4)
    assert finalists.epochs_in_turn(5, 4) == pytest.approx((1.4 + 1) * 2 + 4)
    alone, two = _parts(config, ALONE), _parts(config, TWO)
    images = len(digits.train) + len(digits.validation) / 3
    assert alone["finalists"] == pytest.approx(14 * images * 3e-4 + 6 + 0.3), "and the score of a proposal"
    assert two["finalists"] == pytest.approx(1.5 * 10.4 * images * 3e-4 + 0.75 * 6.3)
    assert two["HyperNet"] == alone["HyperNet"]


def test_workers_are_left_out_where_networks_would_wait_for_each_other() -> None:
    digits, config = small_digits(), configure(small_digits())
    few = replace(config.finalists, known=1, count=3, rounds=1, per_round=1, rungs=(2,))
    many = replace(config.finalists, known=1, count=12, rounds=1, per_round=4, rungs=(2,))
    for finalists, slower, expected in ((few, 1.7, 1), (few, 1.0, 2), (many, 1.7, 2), (many, 2.0, 1)):
        units = replace(TWO, set_up=0.0, slower=slower)
        chosen = sooner(units, lambda _, finalists=finalists: replace(config, finalists=finalists), digits)
        assert chosen.beside == expected
        assert chosen.slower == (slower if expected == 2 else 1.0)


def test_a_time_that_is_too_short_for_the_one_way_leaves_the_other() -> None:
    config = configure(small_digits())

    def chosen(units: Units) -> SearchConfig:
        if units.beside == 1:
            raise GateError("too short")
        return config

    assert sooner(replace(TWO, slower=5.0), chosen, small_digits()).beside == 2


@pytest.mark.parametrize("factor", [0.0, 0.1, 0.5])
def test_a_search_of_a_given_time_leaves_no_worker_idle(factor: float) -> None:
    config = configure(small_digits())
    for beside in (2, 3):
        alone, sized = scaled(config, factor), scaled(config, factor, beside)
        for name in ("count", "per_round"):
            before, networks = getattr(alone.finalists, name), getattr(sized.finalists, name)
            assert networks % beside == 0
            assert before <= networks < before + beside
    assert scaled(config, factor, 8).finalists.count <= scaled(config, factor, 8).candidates


@pytest.mark.slow
def test_a_rehearsal_measures_what_workers_gain() -> None:
    torch.set_num_threads(2)
    digits = small_digits(train=512)
    units = rehearse(small_config(), digits, executor=ExecutorConfig("process", workers=2, threads=1))
    assert units.beside == 2
    assert 1 <= units.slower < 100
    assert rehearse(small_config(), digits, executor=ExecutorConfig()).beside == 1
