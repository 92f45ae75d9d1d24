"""What the benchmarks of the HyperNet draw and read."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import score_in_band
from benchmarks.op_contribution import BAND, GENERATED, Sandwiched
from smash_base import files
from smash_search.rank.finalists import input_spec_of
from smash_search.rank.trained import Trained
from smash_search.space.architecture import Architecture, InputSpec
from smash_search.space.cost import cost_of
from smash_search.space.space import space_for
from smash_search.train.hypernet import ATTEMPTS
from tests.search.small_data import small_architecture, small_digits

COLOUR = InputSpec(3, (32, 32))


def test_a_step_by_the_sandwich_rule_has_a_small_network_a_large_one_and_two_as_they_come() -> None:
    space = space_for(COLOUR, "edge", GENERATED)

    def macs_of(architecture: Architecture) -> int:
        return cost_of(architecture, COLOUR, 10).macs

    rule = Sandwiched(space, COLOUR, 10, lambda entry: BAND[0] <= macs_of(entry) <= BAND[1])
    for step in range(3):
        slots = [(4 * step + place) * ATTEMPTS for place in range(4)]
        small, large, *others = (rule.draw(0, slot) for slot in slots)
        assert BAND[0] <= macs_of(small) < macs_of(large) <= BAND[1]
        assert others == [space.draw(0, slot) for slot in slots[2:]]


def test_a_network_of_several_searches_counts_once_by_its_first_rung(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score_in_band, "BAND", (0, 1e9))
    architecture = small_architecture()

    def line(key: str, rung: int, error: float, diverged: str | None = None) -> dict[str, object]:
        trained = Trained("search", key, "a test", None, 1, rung, rung + 1, error, 1.0, diverged)
        return {**trained.to_json(), "architecture": architecture.to_json()}

    paths = [str(tmp_path / name) for name in ("one.jsonl", "two.jsonl")]
    for entry in (line("a", 0, 0.4), line("a", 1, 0.3), line("b", 0, 1.0, "it diverged")):
        files.append_jsonl(Path(paths[0]), entry)
    files.append_jsonl(Path(paths[1]), line("a", 0, 0.5))
    assert score_in_band.trained_before(paths, small_digits()) == [(architecture, 0.4)]
    monkeypatch.setattr(score_in_band, "BAND", (1e8, 1e9))
    assert score_in_band.trained_before(paths, small_digits()) == []


def test_draws_of_one_latency_have_a_band_that_leaves_out_much_larger_ones(tmp_path: Path) -> None:
    data = small_digits()
    spec, classes = input_spec_of(data), len(data.classes)
    space = space_for(spec, "edge-tiny")
    drawn = [space.draw(0, slot) for slot in range(12)]
    macs = [cost_of(architecture, spec, classes).macs for architecture in drawn]
    path = tmp_path / "trained.jsonl"
    files.append_jsonl(path, {"key": "resnet8", "seed": 0, "error": 0.3})
    for architecture, count in zip(drawn, macs, strict=True):
        entry = {"error": 0.2, "milliseconds": count / 1e6, "architecture": architecture.to_json()}
        files.append_jsonl(path, entry)
    networks, accept, band = score_in_band.of_one_latency(path, data)
    assert networks == [(architecture, 0.2) for architecture in drawn]
    assert band == {"milliseconds": [min(macs) / 1e6, max(macs) / 1e6]}
    candidates = [space.draw(1, slot) for slot in range(200)]
    larger = [entry for entry in candidates if cost_of(entry, spec, classes).macs > 2 * max(macs)]
    assert larger
    assert not any(accept(entry) for entry in larger)
