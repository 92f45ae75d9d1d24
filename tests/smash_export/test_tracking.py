"""Curves of a search and of a training in TensorBoard and MLflow, read back by the packages themselves."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest

from smash_export.cli import run
from smash_export.tracking import DATABASE, as_number

SMALL = [
    *("--data", "digits", "--steps", "3", "--batch", "16", "--candidates", "4", "--images", "20"),
    *("--device", "cpu", "--finalists", "2", "--rungs", "1", "--finalist-batch", "128"),
    *("--max-parameters", "20000", "--baseline", "none", "--quiet"),
]


def test_what_a_bar_shows_becomes_a_number() -> None:
    assert as_number("12.5%") == 0.125
    assert as_number(0.5) == 0.5
    assert [as_number(value) for value in ("loss", None, True, "nan", "inf%")] == [None] * 5


@pytest.mark.slow
def test_tensorboard_gets_the_curves_of_a_search_and_of_a_training(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def curves(folder: Path) -> Any:
        events = EventAccumulator(str(folder))
        events.Reload()
        return events

    folder = tmp_path / "run"
    assert run(["search", *SMALL, "--run", str(folder), "--track", "tensorboard"]) == 0
    events = curves(folder / "tensorboard")
    assert {"HyperNet/loss", "candidates/best", "finalists/loss"} <= set(events.Tags()["scalars"])
    assert [point.step for point in events.Scalars("HyperNet/loss")] == [1, 2, 3]
    assert 0 <= events.Scalars("candidates/best")[-1].value <= 1
    words = ["freeze", "--arch", str(folder / "best.json"), "--out", str(tmp_path / "bundle"), "--quiet"]
    assert run([*words, "--epochs", "2", "--track", f"tensorboard:{tmp_path / 'logs'}"]) == 0
    (place,) = (tmp_path / "logs").iterdir()
    (tag,) = [tag for tag in curves(place).Tags()["scalars"] if tag.endswith("/loss")]
    assert tag.startswith("retrain ")


@pytest.mark.slow
def test_mlflow_gets_the_curves_of_a_search(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow-skinny is an extra of its own")
    folder = tmp_path / "run"
    assert run(["search", *SMALL, "--run", str(folder), "--track", "mlflow"]) == 0
    client = mlflow.tracking.MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow' / DATABASE}")
    experiment = client.get_experiment_by_name("smash-export")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.params["candidates"] == "4"
    assert [point.step for point in client.get_metric_history(found.info.run_id, "HyperNet/loss")] == [
        1,
        2,
        3,
    ]


def test_a_tracker_that_is_not_there_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    words = ["search", *SMALL, "--run", str(folder)]
    assert run([*words, "--track", "wandb"]) == 2
    assert "tensorboard or mlflow" in capsys.readouterr().err
    real = builtins.__import__

    def without(name: str, *arguments: Any, **named: Any) -> Any:
        if name.partition(".")[0] in ("tensorboard", "mlflow"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.partition(".")[0])
        return real(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    for name in ("tensorboard", "mlflow"):
        assert run([*words, "--track", name]) == 3
        assert f"pip install 'smash-export[{name}]'" in capsys.readouterr().err
    assert not folder.exists()
