"""Which searches have several workers without being asked, and what a plan expects of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from smash_export.device_search import workers
from smash_export.device_search.plan import Units, rehearse, scaled, search_parts
from smash_export.device_search.search import configure
from smash_export.device_search.workers import fitting_executor, memory_of_worker, pixels_of_race
from smash_search.data import Dataset
from smash_search.executors import ExecutorConfig
from smash_search.train.network import Recipe
from tests.search.run_small_search import config as small_config
from tests.search.small_data import small_digits

GIB = 2**30


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(6)
    yield
    torch.set_num_threads(before)


def _large() -> Dataset:
    """As many images as CIFAR-10 has, of eight pixels each way; 3 MB in memory."""
    digits = small_digits()
    rows = np.resize(np.arange(len(digits.train)), 45_000)
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
    assert pixels_of_race(configure(data), data) > workers.LONG / 2
    monkeypatch.setattr(workers, "LONG", pixels_of_race(configure(data), data))
    assert fitting_executor(configure(data), data, "auto") == expected


def test_large_batches_and_images_in_memory_are_counted() -> None:
    data, config = _large(), configure(_large())
    wide = replace(config, finalists=replace(config.finalists, recipe=Recipe(batch=4096)))
    assert memory_of_worker(wide, data) - memory_of_worker(config, data) > 3_000 * 64 * 1000
    fewer = memory_of_worker(config, small_digits())
    assert memory_of_worker(config, data) - fewer == 2 * (45_000 - 96) * 64


def test_a_plan_counts_networks_that_wait_for_the_last_of_a_rung() -> None:
    digits = small_digits()
    config = configure(digits)
    config = replace(
        config, finalists=replace(config.finalists, count=4, rounds=0, rungs=(2, 6), scouts=False, keep=0.25)
    )
    assert config.finalists.schedule(4) == [4, 1]
    alone = Units(1.0, 0.05, 0.0, 0.3, 1e-4, 3e-4, 6e-4, 1.0)
    two = replace(alone, beside=2, gain=1.5)

    def parts(units: Units) -> dict[str, float]:
        return {part.label: part.seconds for part in search_parts(config, digits, units)}

    images = len(digits.train) + len(digits.validation) / 3
    assert parts(alone)["finalists"] == pytest.approx((4 * 2 + 1 * 4) * images * 3e-4 + 5)
    assert parts(two)["finalists"] == pytest.approx(((4 * 2 + 2 * 4) * images * 3e-4 + 5) / 1.5)
    assert parts(two)["candidates"] == pytest.approx(parts(alone)["candidates"] / 1.5)
    assert parts(two)["HyperNet"] == parts(alone)["HyperNet"]


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
    assert 0.1 < units.gain <= 2
    assert rehearse(small_config(), digits, executor=ExecutorConfig()).beside == 1
