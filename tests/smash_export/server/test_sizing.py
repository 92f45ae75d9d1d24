"""Batch and queue sizes follow from what runs cost."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest

from smash_base.errors import UsageError
from smash_export.server.sizing import Batching, choose_sizes

IMAGE = np.zeros((1, 1), np.float32)


def costs(fixed: float, each: float) -> Callable[[np.ndarray], np.ndarray]:
    """A run that takes ``fixed + each * images`` seconds."""

    def run(batch: np.ndarray) -> np.ndarray:
        time.sleep(fixed + each * len(batch))
        return batch

    return run


def test_a_batch_grows_while_it_pays() -> None:
    assert choose_sizes(costs(0.004, 0), IMAGE, 32, Batching()).settings.max_batch == 32
    assert choose_sizes(costs(0.004, 0), IMAGE, 20, Batching()).settings.max_batch == 16
    assert choose_sizes(costs(0, 0.004), IMAGE, 32, Batching()).settings.max_batch == 1
    some = choose_sizes(costs(0.008, 0.004), IMAGE, 32, Batching())
    assert some.settings.max_batch in (8, 16)
    assert max(some.seconds) <= 2 * some.settings.max_batch  # what does not pay is not tried further


def test_under_overload_as_much_waits_as_is_answered_quickly() -> None:
    slow = choose_sizes(costs(0, 0.01), IMAGE, 32, Batching()).settings
    assert (slow.max_batch, slow.queue_size) == (1, 256)
    assert slow.standing in (1, 2, 3)  # with the one that runs, about three times the time of one
    quick = choose_sizes(costs(0.0005, 0), IMAGE, 32, Batching()).settings
    assert quick.standing is not None
    assert quick.standing >= quick.max_batch == 32


def test_only_short_runs_are_left_to_the_event_loop() -> None:
    assert choose_sizes(costs(0.004, 0), IMAGE, 32, Batching()).settings.in_loop == 0
    assert choose_sizes(lambda batch: batch, IMAGE, 8, Batching(max_batch=8)).settings.in_loop == 8
    waiting = choose_sizes(lambda batch: batch, IMAGE, 8, Batching(delay=0.1)).settings
    assert waiting.in_loop == 0  # a loop cannot wait for company


def test_what_is_asked_for_is_not_measured() -> None:
    chosen = choose_sizes(costs(0, 0.001), IMAGE, 32, Batching(max_batch=8, queue_size=20, delay=0.5))
    assert (chosen.settings.max_batch, chosen.settings.queue_size, chosen.settings.standing) == (8, 20, None)
    assert chosen.settings.delay == 0.5
    assert choose_sizes(costs(0, 0.001), IMAGE, 4, Batching(max_batch=8)).settings.max_batch == 4
    assert choose_sizes(costs(0.004, 0), IMAGE, 32, Batching(queue_size=5)).settings.max_batch == 4
    assert chosen.describe()["queue_under_overload"] == 20
    with pytest.raises(UsageError, match="smaller than a batch"):
        Batching(max_batch=8, queue_size=4)
