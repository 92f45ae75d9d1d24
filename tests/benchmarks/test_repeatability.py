"""What one training is compared with of another."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.repeatability import arms_of, compared
from smash_base import files
from smash_search.rank.trained import Trained


def test_a_signal_is_compared_with_the_error_of_another_seed_in_both_directions(tmp_path: Path) -> None:
    """Eight networks whose loss orders them as the other seed's errors do, and whose error is reversed."""
    for seed, sign in (("0", 1), ("1", -1)):
        (tmp_path / f"presets-0.1ms-{seed}").mkdir()
        for place in range(8):
            error = 0.5 + sign * place / 100
            for rung in range(2 if place < 3 else 1):
                entry = Trained(
                    *("search", f"n{place}", "", None, 1, rung, rung + 1, error, 1.0, None, -sign * place)
                )
                files.append_jsonl(tmp_path / f"presets-0.1ms-{seed}" / "finalists.jsonl", entry.to_json())
    rows = compared(arms_of(tmp_path))
    whole = [row for row in rows if row["against"] == "first rung"]
    assert [row["seeds"] for row in whole] == [["0", "1"], ["1", "0"]]
    assert {row["networks"] for row in whole} == {8}
    for row in whole:
        assert row["tau"] == pytest.approx({"error": -1.0, "loss": 1.0})
        assert row["points_behind"] == pytest.approx({"error": 7.0, "loss": 0.0})
    assert not [row for row in rows if row["against"] != "first rung"], "four and three are too few"
