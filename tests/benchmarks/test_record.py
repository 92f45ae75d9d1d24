"""A benchmark's result is committed with goals, machine, versions and date."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import record as module
from smash_base.errors import InvalidInputError

ROOT = Path(__file__).resolve().parents[2]
GOAL = {"what": "p50", "goal": "<= 1 ms", "value": 0.5, "met": True, "note": ""}


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    return tmp_path


def test_a_result_stands_beside_what_it_depends_on(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unmeasured = {**GOAL, "what": "on a GPU", "value": "-", "met": None, "note": "no GPU here"}
    path = module.record("latency", {"p50_ms": 0.5}, [GOAL, unmeasured])
    document = json.loads(path.read_text())
    assert path == results / "latency.json"
    assert document["results"] == {"p50_ms": 0.5}
    assert document["goals"][1]["met"] is None
    assert document["machine"]["cores"] >= 1
    assert "numpy" in document["versions"]
    assert document["date"].endswith("Z")
    assert (results / "README.md").read_text() == module.overview(results)
    assert "| on a GPU | <= 1 ms | - | not measured here | no GPU here |" in module.overview(results)
    text = capsys.readouterr().out
    assert "not measured here" in text
    assert "met" in text


def test_a_figure_that_no_goal_judges_is_not_called_unmeasured() -> None:
    assert module.verdict({**GOAL, "goal": "none", "value": "13.5 %", "met": None}) == "not judged"
    assert [module.verdict({**GOAL, "met": met}) for met in (True, False)] == ["met", "MISSED"]


@pytest.mark.parametrize(
    "goal", [{"what": "p50"}, {**GOAL, "surprise": 1}, {**GOAL, "met": "yes"}], ids=["few", "many", "met"]
)
def test_a_malformed_goal_is_refused_before_anything_is_written(results: Path, goal: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        module.record("latency", {}, [goal])
    assert not list(results.iterdir())


@pytest.mark.parametrize(
    "path", sorted((ROOT / "benchmarks" / "results").glob("*.json")), ids=lambda p: p.stem
)
def test_every_committed_result_names_its_machine_and_is_honest_about_goals(path: Path) -> None:
    document = json.loads(path.read_text())
    assert {"benchmark", "date", "machine", "versions", "goals", "results"} <= set(document), path.name
    for goal in document["goals"]:
        assert set(goal) == module.GOAL_KEYS
        assert goal["met"] is not None or goal["note"], f"{path.name}: why was {goal['what']} not measured?"


def test_the_committed_overview_is_that_of_the_committed_results() -> None:
    folder = ROOT / "benchmarks" / "results"
    assert (folder / "README.md").read_text() == module.overview(folder)
