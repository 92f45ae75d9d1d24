"""Bytes in, probabilities out: the baked file answers as the bundle does, in every runtime that takes it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from smash_base.errors import UsageError, VerificationError
from smash_base.preprocess import Preprocessing
from smash_export import bake, cli, load
from smash_export.bundle.bundle import Bundle
from smash_export.deploy import bake as baking
from smash_export.deploy import baked_runtimes
from smash_export.export.freeze import freeze, input_of
from smash_search.data import load_dataset
from smash_search.space.best import BestFile, SearchRecord
from smash_search.space.space import space_for
from smash_search.train.network import Recipe
from smash_targets.base import ModelSignature, get_target
from tests.smash_export.each_class import each_class_by_itself


def test_a_program_with_only_onnxruntime_gets_what_predict_says(digits_bundle_copy: Path) -> None:
    file = bake(digits_bundle_copy)
    images = np.asarray(Bundle.open(digits_bundle_copy).samples().images[:20])
    (probabilities,) = baking.onnxruntime_run(file.main)(images)
    with load(digits_bundle_copy) as classifier:
        answers = classifier.predict(list(images), top_k=10)
        labels = classifier.labels
    for row, answer in zip(probabilities, answers, strict=True):
        assert labels[int(row.argmax())] == answer.label
        assert abs(float(row.max()) - answer.probability) < 1e-5
    assert file.evidence["parity"]["images"] == 597
    assert (file.folder / "labels.txt").read_text().split() == [str(label) for label in range(10)]
    assert onnx.load(file.main).graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8


@pytest.mark.parametrize("output", ["probabilities", "top-k"])
def test_a_program_with_only_onnxruntime_doubts_what_predict_doubts(
    output: Any, digits_bundle_copy: Path
) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(bake(digits_bundle_copy, output=output).main)
    facts = session.get_modelmeta().custom_metadata_map
    noise = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1), np.uint8)
    images = np.concatenate([np.asarray(Bundle.open(digits_bundle_copy).samples().images[:20]), noise])
    answers = session.run(None, {"image": images})[0]  # probabilities, or scores
    with load(digits_bundle_copy) as classifier:
        expected = [answer.doubtful for answer in classifier.predict(list(images))]
    assert set(expected) == {True, False}
    assert (answers.max(1) < json.loads(facts["doubt_below"])).tolist() == expected


def test_every_runtime_that_takes_it_answers_alike_and_the_others_say_why(digits_bundle_copy: Path) -> None:
    file = bake(digits_bundle_copy)
    taken = {item["target"]: item for item in file.notes["taken_by"]}
    assert {*baked_runtimes.RUNTIMES, "onnxruntime", "ncnn", "tensorrt:10", "tensorrt:11"} <= set(taken)
    images = np.asarray(Bundle.open(digits_bundle_copy).samples().images[:20])
    (first,) = baking.onnxruntime_run(file.main)(images)
    runs: dict[str, Callable[[Path], baked_runtimes.Run]] = {
        "openvino": baked_runtimes.openvino_run,
        "mnn": lambda path: baked_runtimes.mnn_run(path, ("probabilities",)),
        "torchscript": baked_runtimes.torchscript_run,
    }
    for name, run in runs.items():
        if get_target(name).availability().available:
            assert (taken[name]["how"], taken[name]["agreement"]) == ("verified", 1.0)
            np.testing.assert_allclose(run(file.folder / taken[name]["file"])(images)[0], first, atol=1e-5)
        else:
            assert taken[name]["how"] == "not here"
    assert taken["tensorrt:10"]["how"] == "checked"
    assert "--minShapes=image:1x8x8x1" in (file.folder / "trtexec_10.txt").read_text()
    assert taken["torch_export"]["how"] == "left out"
    assert "--runtime torch_export" in taken["torch_export"]["why"]
    assert "floats" in taken["ncnn"]["why"]
    rtx = get_target("tensorrt_rtx")
    if rtx.installed().available:  # type: ignore[attr-defined]
        assert taken["tensorrt_rtx"]["how"] == "built"


@pytest.mark.parametrize("top_k", [None, 3])
def test_classes_that_do_not_exclude_each_other_may_be_as_unlikely_as_they_like(
    top_k: int | None, digits_bundle: Path, tmp_path: Path
) -> None:
    """ONNX Runtime gives 0 where PyTorch gives 1e-8, whose logarithms are far apart: a file was refused."""
    bundle = Bundle.open(each_class_by_itself(digits_bundle, tmp_path))
    expected = np.asarray(bundle.samples().logits[:20])
    assert expected.min() < 1e-7
    answers = baking.onnxruntime_run(bake(bundle, top_k=top_k).main)(np.asarray(bundle.samples().images[:20]))
    assert np.abs(answers[0].max(1) - expected.max(1)).max() < 1e-5


@pytest.mark.slow
def test_a_runtime_that_takes_half_a_minute_is_asked_for(tmp_path: Path) -> None:
    dataset = load_dataset("digits")
    spec = input_of(dataset)
    best = BestFile(space_for(spec, "tiny").draw(0, 1), spec, tuple(dataset.classes), SearchRecord())
    path = freeze(best, dataset, tmp_path / "bundle", recipe=Recipe(epochs=1)).bundle.path
    file = bake(path, runtimes=["torch_export"])
    taken = {item["target"]: item for item in file.notes["taken_by"]}
    assert (taken["torch_export"]["how"], taken["torch_export"]["agreement"]) == ("verified", 1.0)
    assert taken["mnn"]["how"] == "left out"
    images = np.asarray(Bundle.open(path).samples().images[:20])
    (first,) = baking.onnxruntime_run(file.main)(images)
    (again,) = baked_runtimes.torch_export_run(file.folder / taken["torch_export"]["file"])(images)
    np.testing.assert_allclose(again, first, atol=1e-5)


def shift_what_is_baked(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make ``module`` put another preprocessing into its networks than the bundle's."""
    true = module.scale_and_shift

    def shifted(mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
        scale, shift = true(mean, std)
        return scale, shift + np.float32(0.5)

    monkeypatch.setattr(module, "scale_and_shift", shifted)


def test_a_runtime_whose_file_answers_otherwise_is_rejected_alone(
    digits_bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shift_what_is_baked(baked_runtimes, monkeypatch)  # PyTorch's networks only
    file = bake(digits_bundle_copy, runtimes=["torchscript", "mnn"])
    taken = {item["target"]: item for item in file.notes["taken_by"]}
    assert taken["torchscript"]["how"] == "rejected"
    assert "does not do what the network does" in taken["torchscript"]["why"]
    assert not (file.folder / "torchscript").exists()
    assert taken["onnxruntime"]["how"] == "verified"


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_each_precision_and_the_best_classes(
    precision: str, digits_bundle_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["-p", precision, "--output", "top-k", "--top-k", "3", "--json", "-q"]
    assert cli.run(["bake", str(digits_bundle_copy), *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parity"]["agreement"] >= 0.985
    images = np.asarray(Bundle.open(digits_bundle_copy).samples().images[:2])
    path = digits_bundle_copy / "targets" / "baked" / precision / "model.onnx"
    scores, classes = baking.onnxruntime_run(path)(images)
    assert scores.shape == classes.shape == (2, 3)
    assert (np.diff(scores, axis=1) <= 0).all()
    taken = {item["target"]: item for item in found["taken_by"]}
    assert taken["torchscript"]["how"] == "does not take it"
    assert taken["openvino"]["how"] in ("verified", "not here")
    assert taken["mnn"]["how"] in (("verified", "not here") if precision == "fp16" else ("does not take it",))


def network(
    preprocessing: Preprocessing, names: tuple[str, str, str] = ("input", "mean", "logits")
) -> onnx.ModelProto:
    """The mean of each channel as a logit: what normalise makes, seen from outside."""
    source, mean, result = names
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", [source], [mean]),
            helper.make_node("Flatten", [mean], [result]),
        ],
        "means",
        [helper.make_tensor_value_info(source, TensorProto.FLOAT, ["batch", *preprocessing.input_shape])],
        [helper.make_tensor_value_info(result, TensorProto.FLOAT, ["batch", preprocessing.channels])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_mean_std_and_channel_order_are_those_of_the_preprocessing(order: Any, tmp_path: Path) -> None:
    plain = Preprocessing(height=6, width=5, channels=3, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
    preprocessing = replace(plain, order=order)
    signature = ModelSignature("input", "logits", preprocessing.input_shape, 3, (1, 1, 8))
    model = network(preprocessing)
    images = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3), np.uint8)
    means = preprocessing.normalise(images).mean((2, 3))
    path = tmp_path / "baked.onnx"
    baked = baking.bake_graph(model, preprocessing, signature)
    assert "doubt_below" not in {item.key for item in baked.metadata_props}  # nobody measured it
    onnx.save(baked, path)
    (found,) = baking.onnxruntime_run(path)(images)
    np.testing.assert_allclose(found, np.exp(means) / np.exp(means).sum(1, keepdims=True), rtol=1e-5)
    ready = replace(signature, outputs="probabilities")  # there is no second softmax
    onnx.save(baking.bake_graph(model, preprocessing, ready), path)
    np.testing.assert_allclose(baking.onnxruntime_run(path)(images)[0], means, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "names",
    [
        ("image", "classes", "probabilities"),
        ("baked.scale", "image", "scores"),
        ("image", "network.image", "y"),
    ],
)
@pytest.mark.parametrize("top_k", [None, 2])
def test_a_network_of_others_may_call_its_tensors_as_a_baked_file_does(
    names: tuple[str, str, str], top_k: int | None, tmp_path: Path
) -> None:
    preprocessing = Preprocessing(height=6, width=5, channels=3, mean=(0.4,) * 3, std=(0.2,) * 3)
    images = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3), np.uint8)
    answers = []
    for named in (("input", "mean", "logits"), names):
        signature = ModelSignature(named[0], named[2], preprocessing.input_shape, 3, (1, 1, 8))
        path = tmp_path / f"{named[0]}.onnx"
        onnx.save(baking.bake_graph(network(preprocessing, named), preprocessing, signature, top_k), path)
        answers.append(baking.onnxruntime_run(path)(images))
    for ours, theirs in zip(*answers, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_file_that_answers_otherwise_is_refused_and_nothing_is_left(
    digits_bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shift_what_is_baked(baking, monkeypatch)
    with pytest.raises(VerificationError, match="the baked file in onnxruntime does not do what the network"):
        bake(digits_bundle_copy)
    assert not list(digits_bundle_copy.glob("targets/baked/*"))


def test_what_cannot_be_baked(digits_bundle_copy: Path) -> None:
    with pytest.raises(UsageError, match="top-k"):
        bake(digits_bundle_copy, output="top-k", top_k=11)
    with pytest.raises(UsageError, match="precision"):
        bake(digits_bundle_copy, "bf16")
    with pytest.raises(UsageError, match="runtime"):
        bake(digits_bundle_copy, runtimes=["ncnn"])


def test_triton_takes_it_and_verify_lists_it(
    digits_bundle_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["bake", str(digits_bundle_copy), "-q"]) == 0
    words = ["triton", str(digits_bundle_copy), str(tmp_path / "models"), "--variant", "baked", "--name", "d"]
    assert cli.run([*words, "-q"]) == 0
    text = (tmp_path / "models" / "d" / "config.pbtxt").read_text()
    assert 'name: "image" data_type: TYPE_UINT8 dims: [8, 8, 1]' in text
    assert 'name: "probabilities" data_type: TYPE_FP32 dims: [10]' in text
    assert (tmp_path / "models" / "d" / "1" / "model.onnx").is_file()
    capsys.readouterr()
    assert cli.run(["verify", str(digits_bundle_copy), "--json", "-q"]) == 0
    assert "a file for other programs" in capsys.readouterr().out
