"""Some of many."""

from __future__ import annotations

import numpy as np
import pytest

from smash_base.sampling import evenly


@pytest.mark.parametrize("rows", [512, 513, 900, 1023, 1024, 2047, 5000])
def test_rows_that_are_sorted_by_class_keep_every_class_in_equal_parts(rows: int) -> None:
    chosen = evenly(np.arange(rows) * 10 // rows, 512)
    assert len(chosen) == 512
    counts = np.bincount(chosen, minlength=10)
    assert counts.min() >= 51 - 1
    assert counts.max() <= 52 + 1


def test_no_row_is_there_twice_and_few_are_all_there() -> None:
    assert evenly(np.arange(7), 10).tolist() == list(range(7))
    assert len(set(evenly(np.arange(13), 12).tolist())) == 12
    assert evenly(np.arange(1024), 256).tolist() == list(range(0, 1024, 4))
    assert evenly(np.zeros((0, 3)), 4).shape == (0, 3)
