"""A killed search that measured something anew is told from one that did not."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.kill_resume import Bench
from smash_base.files import append_jsonl
from smash_search.rank.evaluation import CONFIRMED, MEASURES, REFERENCE
from tests.smash_export import run_search_for_device


@pytest.mark.parametrize(("name", "most"), [(MEASURES, 1), (REFERENCE, 2), (CONFIRMED, 2)])
def test_a_network_that_a_search_measures_twice_by_itself_is_not_measured_anew(
    name: str, most: int, tmp_path: Path
) -> None:
    bench = Bench(run_search_for_device, run_search_for_device.MEASURED, tmp_path)
    for _ in range(most):
        append_jsonl(tmp_path / name, {"key": "a", "measures": {}})
    assert not bench.measured_too_often(tmp_path)
    append_jsonl(tmp_path / name, {"key": "a", "measures": {}})
    assert bench.measured_too_often(tmp_path)
