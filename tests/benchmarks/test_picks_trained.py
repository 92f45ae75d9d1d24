"""What the benchmark of longer trainings reads from searches, and what it keeps."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from benchmarks import picks_trained
from smash_base import files
from tests.search.small_data import small_architecture, small_digits


def test_half_of_a_latency_is_a_limit_of_its_own() -> None:
    done = {("latency", "resnet8"): 0.12}
    assert picks_trained.latency_limit(done, "resnet8") == 0.12
    assert picks_trained.latency_limit(done, "half of resnet8") == 0.06


def test_a_pick_is_trained_once_and_stands_beside_its_short_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    architecture = small_architecture()
    pick = {"key": architecture.key, "architecture": architecture.to_json(), "origin": "mutation"}
    for key, value in (
        (["latency", "resnet8"], 0.12),
        (["search", 0, "half of resnet8"], {**pick, "latency_ms": 0.05}),
        (["pick", architecture.key, 0], 0.25),
    ):
        files.append_jsonl(tmp_path / "done.jsonl", {"key": key, "value": value})
    arguments = argparse.Namespace(
        network="half of resnet8", searches=f"error={tmp_path}", seeds="0", recipe="quick", folder=tmp_path
    )
    (first,) = picks_trained.pick_rows(small_digits(), arguments)
    assert first["limit_ms"] == 0.06
    assert first["after_the_search"] == 0.25
    assert 0 <= first["test_error"] <= 1
    monkeypatch.setattr(picks_trained, "fit", None)  # a second training would fail
    (second,) = picks_trained.pick_rows(small_digits(), arguments)
    assert second == first
