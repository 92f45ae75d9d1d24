"""``--effort high``: what is tried for an int8 file that loses too much, in which order, and what is kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from smash_base.errors import UsageError
from smash_export import cli
from smash_export.bundle.bundle import Bundle
from smash_export.compiling import effort
from smash_export.compiling.compile import compile_bundle
from smash_export.compiling.effort import sources
from smash_export.export.adopt import Images, adopt
from smash_export.export.freeze import freeze
from smash_export.export.onnx_graphs import logits_of
from smash_search.data import load_dataset
from smash_search.space.architecture import InputSpec
from smash_search.space.best import BestFile
from smash_search.train.recipes import Recipe
from smash_targets.base import get_target
from tests.smash_export.export.test_freeze import cheapest


@pytest.fixture(scope="module")
def uneven(digits_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of digits with channels of very different size between its first two convolutions."""
    folder = tmp_path_factory.mktemp("uneven")
    bundle = Bundle.open(digits_bundle)
    model = onnx.load(bundle.onnx)
    first, second = [node for node in model.graph.node if node.op_type == "Conv"][:2]
    values = {tensor.name: numpy_helper.to_array(tensor).copy() for tensor in model.graph.initializer}
    sizes = (2.0 ** np.linspace(-5, 5, 16)).astype(np.float32)
    values[first.input[1]] *= sizes.reshape(-1, 1, 1, 1)
    values[first.input[2]] *= sizes
    values[second.input[1]] /= sizes.reshape(1, -1, 1, 1)
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(values[tensor.name], tensor.name))
    onnx.save(model, folder / "uneven.onnx")
    samples = bundle.samples()
    shown = Images(samples.images, samples.labels, bundle.calibration(), {})
    adopt(
        folder / "uneven.onnx",
        folder / "bundle",
        labels=bundle.labels,
        preprocessing=bundle.preprocessing,
        images=shown,
    )
    return folder / "bundle"


def test_a_network_that_does_not_bear_rounding_is_equalised(uneven: Path) -> None:
    options = {"calibration_method": "minmax", "placement": "plain"}
    mended = compile_bundle(
        uneven, "onnxruntime", "int8", options, effort="high", threads=1, isolated=False, max_drop=2
    )
    assert mended.notes["network"] == "equalised"
    assert [row["network"] for row in mended.notes["tried"]] == ["as it is", "equalised"]
    first, second = mended.notes["tried"]
    assert not first["passed"] or first["in_fp32"] or first["points"] > second["points"]
    assert second["passed"]
    assert second["in_fp32"] == 0
    assert mended.evidence["parity"]["drop"] <= 2


def test_a_good_file_is_not_mended(digits_bundle_copy: Path) -> None:
    options = {"calibration_method": "minmax", "placement": "plain"}
    file = compile_bundle(
        digits_bundle_copy,
        "onnxruntime",
        "int8",
        options,
        effort="high",
        threads=1,
        isolated=False,
        max_drop=5,
    )
    assert [row["network"] for row in file.notes["tried"]] == ["as it is"]
    assert file.notes["network"] == "as it is"


def test_the_trained_network_answers_as_before_and_bears_rounding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(effort, "STEPS", 120)
    dataset = load_dataset("digits")
    best = BestFile(cheapest(), InputSpec(1, (8, 8)), tuple(dataset.classes))
    bundle = freeze(best, dataset, tmp_path / "bundle", recipe=Recipe(epochs=2)).bundle
    told: list[tuple[str, int, int]] = []
    made = {
        source.name: source
        for source in sources(
            bundle,
            get_target("onnxruntime"),
            "high",
            tmp_path,
            on_progress=lambda *progress: told.append(progress),
        )
    }
    assert next(iter(made)) == "as it is"
    trained = made["trained"]
    assert told[-1][:1] == ("training",)
    assert told[-1][1] == told[-1][2] >= 120
    assert trained.weights is not None
    before = bundle.weights()
    assert before is not None
    assert any(not np.array_equal(before[name], trained.weights[name]) for name in before)
    x = np.asarray(bundle.preprocessing.normalise(bundle.samples().images), np.float32)
    old, new = (logits_of(onnx.load(path), x) for path in (bundle.onnx, trained.onnx))
    assert (old.argmax(1) == new.argmax(1)).mean() > 0.95
    assert onnx.load(trained.onnx).metadata_props == onnx.load(bundle.onnx).metadata_props


def test_only_int8_has_an_effort(digits_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="int8"):
        compile_bundle(digits_bundle, "onnxruntime", "fp32", effort="high")
    with pytest.raises(UsageError, match="effort"):
        compile_bundle(digits_bundle, "onnxruntime", "int8", effort="great")  # type: ignore[arg-type]
    words = ["compile", str(digits_bundle), "--target", "onnxruntime", "--effort", "high"]
    assert cli.run(words) == 2
    assert "int8" in capsys.readouterr().err
