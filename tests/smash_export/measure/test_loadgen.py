"""LoadGen drives a session on real images and judges it by its own rules."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from smash_base.errors import UsageError
from smash_export.bundle.bundle import Bundle
from smash_export.measure.loadgen import SCENARIOS, TITLE, run_scenario
from smash_targets.base import Session, SessionOptions, get_target

pytest.importorskip("mlperf_loadgen", reason="pip install mlcommons-loadgen")


@pytest.fixture(scope="module")
def opened(digits_bundle: Path) -> Iterator[tuple[Session, np.ndarray]]:
    bundle = Bundle.open(digits_bundle)
    tensors = bundle.preprocessing.normalise(bundle.samples().images[:256])
    with get_target("onnxruntime").open(bundle.onnx, bundle.signature, SessionOptions(threads=1)) as session:
        yield session, tensors


class Counting(Session):
    """Counts the images that another session is asked for."""

    def __init__(self, inner: Session) -> None:
        self.inner, self.info, self.images, self.largest = inner, inner.info, 0, 0

    def run(self, batch: np.ndarray) -> np.ndarray:
        self.images += len(batch)
        self.largest = max(self.largest, len(batch))
        return self.inner.run(batch)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_scenario_runs_and_reports_its_figure(opened: tuple[Session, np.ndarray], scenario: str) -> None:
    session = Counting(opened[0])
    result = run_scenario(session, opened[1], scenario, seconds=0.6, largest_batch=16, bound_ms=1000)
    assert result.value > 0
    assert session.images > 100
    assert session.largest <= 16
    assert result.valid or result.reasons
    document = result.to_json()
    assert document["title"] == TITLE
    assert document["scenario"] == scenario
    if scenario == "Offline":
        assert result.metric == "images per second"
        assert result.value == pytest.approx(session.images / 0.6, rel=0.95)
    else:
        assert result.percentiles_ms["50"] <= result.percentiles_ms["99"]
    if scenario == "Server":
        assert result.settings["bound_ms"] == 1000


def test_server_that_is_asked_for_too_much_is_not_valid(opened: tuple[Session, np.ndarray]) -> None:
    result = run_scenario(opened[0], opened[1], "Server", seconds=0.6, qps=50_000, bound_ms=0.001)
    assert not result.valid
    assert result.reasons


def test_an_error_of_the_runtime_ends_the_run(opened: tuple[Session, np.ndarray]) -> None:
    class Breaking(Counting):
        def run(self, batch: np.ndarray) -> np.ndarray:
            if self.images > 400:
                raise RuntimeError("out of memory")
            return super().run(batch)

    with pytest.raises(RuntimeError, match="out of memory"):
        run_scenario(Breaking(opened[0]), opened[1], "SingleStream", seconds=0.5)


def test_unknown_scenario(opened: tuple[Session, np.ndarray]) -> None:
    with pytest.raises(UsageError, match="MultiStream"):
        run_scenario(opened[0], opened[1], "Batch")
