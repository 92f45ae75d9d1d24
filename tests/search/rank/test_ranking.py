"""ranking.json as a type: what runs of this and of earlier versions wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from smash_base import files
from smash_base.errors import InvalidInputError
from smash_search.rank.ranking import EncodingCheck, RaceStage, Ranking, read_ranking
from smash_search.rank.trust import Stage, Trust

EARLY = {
    "stages": [
        {"images": 120, "entered": 40, "split_half": None, "kept_best": 0.9, "kept": 10},
        {"images": 360, "entered": 10, "split_half": 0.8},
    ],
    "encoding": {"architectures": 12, "error": 0.5, "error_corrupted": 0.6},
}


def test_a_ranking_survives_its_file(tmp_path: Path) -> None:
    ranking = Ranking(
        (RaceStage(120, 40, 0.5, 0.9, 10), RaceStage(360, 10, None)),
        EncodingCheck(12, 0.5, 0.6, 0.7, 0.2, 0.01),
        Trust(8, 0.4, 0.1, 0.7, None, 0.2, "claim"),
        (Stage("known networks", 3, 0.3, 0.2, 0.2, 0, None, None),),
    )
    files.write_json(tmp_path / "ranking.json", ranking.to_json())
    assert read_ranking(tmp_path / "ranking.json") == ranking
    stages = json.loads((tmp_path / "ranking.json").read_text())["stages"]
    assert list(stages[0]) == ["images", "entered", "split_half", "kept_best", "kept"]
    assert list(stages[1]) == ["images", "entered", "split_half"], "nothing is kept by the last stage"


def test_early_runs_say_nothing_of_trust_and_zeroed_filters(tmp_path: Path) -> None:
    files.write_json(tmp_path / "ranking.json", EARLY)
    ranking = read_ranking(tmp_path / "ranking.json")
    assert ranking.trust is None
    assert ranking.encoding is not None
    assert ranking.encoding.op_contribution is None


def test_a_damaged_ranking_is_refused_by_file_and_field(tmp_path: Path) -> None:
    files.write_json(tmp_path / "ranking.json", {**EARLY, "stages": [{"images": "many"}]})
    with pytest.raises(InvalidInputError, match=r"ranking\.json stages\.0\.images"):
        read_ranking(tmp_path / "ranking.json")
