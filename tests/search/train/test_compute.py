"""What every training loop shares, beside what the tests of the loops see."""

from __future__ import annotations

import platform
import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from smash_search.train.compute import Ahead, Feed, keep_freed_memory
from smash_search.train.network import Recipe, fit
from tests.search.small_data import small_digits


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_memory_of_a_tensor_serves_the_next_one() -> None:
    import resource

    def faults() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    def give_back(times: int) -> None:
        for _ in range(times):
            torch.ones(4_000_000)  # 16 MB, 3906 pages

    keep_freed_memory()
    give_back(30)  # glibc grows until a free piece is a little larger than what is asked for
    before = faults()
    give_back(30)
    assert faults() - before < 30 * 3906 / 2


def test_the_next_batch_is_made_in_another_thread_and_is_that_of_its_step() -> None:
    made: list[tuple[int, bool]] = []

    drawn: list[int] = []

    def draw(step: int) -> int:
        assert threading.current_thread() is threading.main_thread()
        drawn.append(step)
        return step

    def make(step: int, other: int) -> int:
        made.append((step, threading.current_thread() is threading.main_thread()))
        return step * other

    ahead = Ahead(draw, make, 6)
    assert [ahead[step] for step in (0, 1, 2)] == [0, 1, 4]
    assert ahead[5] == 25, "of any step, as after a resumption"
    ahead.close()
    asked = [step for step, in_main in made if in_main]
    assert asked == [0, 5], "all others were made beside the steps"
    assert {step for step, _ in made} <= {0, 1, 2, 3, 5}, "none after the last step"
    assert drawn == [0, 1, 2, 3, 5]


def test_batches_of_a_training_are_made_beside_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    take, threads = Feed.__call__, list[str]()

    def noted(feed: Feed, indices: np.ndarray) -> Any:
        threads.append(threading.current_thread().name)
        return take(feed, indices)

    monkeypatch.setattr(Feed, "__call__", noted)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    fit(network, small_digits(train=96, validation=1), Recipe(epochs=2, batch=16), evaluate=False)
    beside = [name.startswith("batches") for name in threads]
    assert beside == [False] + 11 * [True] + [False], "all but the first, and the validation images"
