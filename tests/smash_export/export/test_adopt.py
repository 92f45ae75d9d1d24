"""adopt: foreign classifiers become bundles, hostile files become one clear line."""

from __future__ import annotations

import contextlib
import json
import os
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from smash_base.errors import InvalidInputError, SmashError, UsageError
from smash_base.preprocess import Preprocessing
from smash_export.bundle.bundle import Bundle
from smash_export.cli import run
from smash_export.compiling.compile import compile_bundle
from smash_export.export.adopt import Images, adopt, images_from_arrays, images_from_data, read_preprocessing
from smash_export.export.foreign_onnx import read_foreign_onnx
from smash_export.export.torchscript import traced
from smash_export.measure.compare import compare_bundle
from smash_export.measure.evaluate import evaluate
from smash_export.measure.gates import GATES
from smash_export.measure.labelled import Labelled
from smash_export.measure.verify import verify
from smash_export.prediction.classifier import load
from smash_targets.base import get_target

LABELS = tuple("0123456789")


@pytest.fixture
def foreign(digits_bundle: Path, tmp_path: Path) -> Path:
    """The digits network as a file on its own, with names, opset and words of another maker."""
    model = onnx.load(digits_bundle / "model.onnx")
    names = {"input": "pixels", "logits": "scores"}
    for value in (model.graph.input[0], model.graph.output[0]):
        value.name = names[value.name]
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        node.doc_string = "File /home/somebody/train.py"
    model.doc_string = "made elsewhere"
    onnx.save(model, tmp_path / "foreign.onnx")
    return tmp_path / "foreign.onnx"


@pytest.fixture
def images(digits_bundle: Path) -> Images:
    bundle = Bundle.open(digits_bundle)
    samples = bundle.samples()
    return Images(samples.images, samples.labels, bundle.calibration(), {"data": "digits"})


@pytest.fixture
def preprocessing(digits_bundle: Path) -> Preprocessing:
    return Bundle.open(digits_bundle).preprocessing


def test_an_onnx_classifier_becomes_a_bundle_that_everything_works_on(
    foreign: Path, images: Images, preprocessing: Preprocessing, digits_bundle: Path, tmp_path: Path
) -> None:
    found = adopt(foreign, tmp_path / "b", labels=LABELS, preprocessing=preprocessing, images=images)
    bundle = Bundle.open(tmp_path / "b")
    assert bundle.architecture is None
    assert (bundle.signature.input_name, bundle.signature.output_name) == ("pixels", "scores")
    assert bundle.signature.batch == (1, 1, 32)
    assert found.accuracy > 0.95
    assert found.warnings == ()
    reference = Bundle.open(digits_bundle).samples().logits
    np.testing.assert_allclose(bundle.samples().logits, reference, atol=1e-4)
    text = bundle.onnx.read_bytes()
    assert b"somebody" not in text
    assert b"elsewhere" not in text
    metadata = {item.key: item.value for item in onnx.load(bundle.onnx).metadata_props}
    assert json.loads(metadata["labels"]) == list(LABELS)
    parity = compile_bundle(bundle, "onnxruntime", "fp32").evidence["parity"]
    assert parity["agreement"] == 1.0
    assert parity["reference"].startswith("the adopted file in ONNX Runtime 1.")
    assert compile_bundle(bundle, "onnxruntime", "int8").evidence["parity"]["agreement"] >= 0.985


def test_a_torchscript_classifier_becomes_a_bundle(
    images: Images, preprocessing: Preprocessing, digits_bundle: Path, tmp_path: Path
) -> None:
    source = Bundle.open(digits_bundle)
    assert source.torchscript is not None
    found = adopt(
        source.torchscript, tmp_path / "b", labels=LABELS, preprocessing=preprocessing, images=images
    )
    assert found.bundle.torchscript is not None
    np.testing.assert_allclose(found.bundle.samples().logits, source.samples().logits, atol=1e-4)
    assert compile_bundle(found.bundle, "onnxruntime").evidence["parity"]["agreement"] == 1.0


def test_a_torchscript_file_that_was_saved_in_training_mode_is_stored_in_evaluation_mode(
    images: Images, preprocessing: Preprocessing, tmp_path: Path
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = torch.nn.Sequential(
            torch.nn.Conv2d(1, 6, 3), torch.nn.BatchNorm2d(6), torch.nn.Dropout(0.5), torch.nn.Flatten(),
            torch.nn.Linear(216, 10),
        )  # fmt: skip
    path = tmp_path / "network.pt"
    torch.jit.save(torch.jit.script(network), path)
    adopt(path, tmp_path / "b", labels=LABELS, preprocessing=preprocessing, images=images)
    (report,) = verify(tmp_path / "b", target="torchscript", isolated=False).files
    assert report.status == "passed", report.problems
    stored = Bundle.open(tmp_path / "b").torchscript
    assert stored is not None
    assert not torch.jit.load(stored).training


def test_fused_attention_is_refused_with_the_way_out(
    images: Images, preprocessing: Preprocessing, tmp_path: Path
) -> None:
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    network = torch.nn.Sequential(
        torch.nn.Flatten(2), torch.nn.Unflatten(2, (8, 8)), torch.nn.Flatten(1, 2),
        torch.nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), torch.nn.Flatten(),
        torch.nn.Linear(64, 10),
    ).eval()  # fmt: skip
    path = tmp_path / "network.pt"
    with torch.no_grad():
        torch.jit.save(torch.jit.trace(network, torch.zeros(2, 1, 8, 8), check_trace=False), path)
    with pytest.raises(InvalidInputError, match=r"set_fastpath_enabled\(False\)"):
        adopt(path, tmp_path / "b", labels=LABELS, preprocessing=preprocessing, images=images)
    with torch.no_grad():
        torch.jit.save(traced(network, torch.zeros(2, 1, 8, 8)), path)
    adopt(path, tmp_path / "b", labels=LABELS, preprocessing=preprocessing, images=images)


@pytest.mark.parametrize("layer", ["BatchNorm", "Dropout"])
@pytest.mark.parametrize("suffix", [".pt", ".pt2"])
def test_a_network_that_was_traced_in_training_mode_is_refused_with_the_way_out(
    suffix: str, layer: str, images: Images, preprocessing: Preprocessing, tmp_path: Path
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = torch.nn.Sequential(
            torch.nn.Conv2d(1, 6, 3),
            torch.nn.BatchNorm2d(6) if layer == "BatchNorm" else torch.nn.Dropout(0.5),
            torch.nn.Flatten(),
            torch.nn.Linear(216, 10),
        )
    path, example = tmp_path / f"network{suffix}", torch.zeros(4, 1, 8, 8)
    if suffix == ".pt":
        torch.jit.save(torch.jit.trace(network, example, check_trace=False), path)
    else:
        batch = torch.export.Dim("batch", min=1, max=64)
        torch.export.save(torch.export.export(network, (example,), dynamic_shapes=({0: batch},)), path)
    with pytest.raises(InvalidInputError, match=r"network\.eval\(\)"):
        adopt(path, tmp_path / "b", labels=LABELS, preprocessing=preprocessing, images=images)
    assert not (tmp_path / "b").exists()


class _Branching(torch.nn.Module):
    """Another layer answers where a value is above all that images have."""

    def __init__(self) -> None:
        super().__init__()
        self.usual, self.bright = torch.nn.Linear(64, 10), torch.nn.Linear(64, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if bool((images > 50).any()):
            return self.bright(images.flatten(1))
        return self.usual(images.flatten(1))


def test_a_branch_of_a_torchscript_file_stays_one_whichever_way_the_test_images_take(
    images: Images, preprocessing: Preprocessing, tmp_path: Path
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = _Branching().eval()
    path = tmp_path / "network.pt"
    torch.jit.save(torch.jit.script(network), path)
    bundle = adopt(path, tmp_path / "b", labels=LABELS, preprocessing=preprocessing, images=images).bundle
    usual = torch.from_numpy(preprocessing.normalise(images.test[:4]))
    for target in ("onnxruntime", "torchscript"):
        with load(bundle, target) as classifier:
            for shown in (usual, usual + 100):
                with torch.no_grad():
                    expected = network(shown).numpy()
                np.testing.assert_allclose(classifier.logits(shown.numpy()), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(InvalidInputError, match="control flow"):
        compile_bundle(bundle, "onnxruntime", "fp16")


@pytest.mark.parametrize("program", [False, True])
def test_a_torch_network_of_one_answer_without_an_axis_is_a_classifier_of_two_classes(
    program: bool, images: Images, preprocessing: Preprocessing, tmp_path: Path
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = torch.nn.Sequential(
            torch.nn.Conv2d(1, 6, 3), torch.nn.Flatten(), torch.nn.Linear(216, 1), torch.nn.Flatten(0)
        ).eval()
    path, example = tmp_path / ("network.pt2" if program else "network.pt"), torch.zeros(2, 1, 8, 8)
    if program:
        batch = torch.export.Dim("batch", min=1, max=64)
        torch.export.save(torch.export.export(network, (example,), dynamic_shapes=({0: batch},)), path)
    else:
        torch.jit.save(torch.jit.trace(network, example), path)
    binary = Images(images.test, images.labels % 2, images.calibration, {})
    found = adopt(path, tmp_path / "b", labels=("even", "odd"), preprocessing=preprocessing, images=binary)
    with torch.no_grad():
        expected = network(torch.from_numpy(preprocessing.normalise(images.test))).numpy()
    np.testing.assert_allclose(found.bundle.samples().logits[:, 1], expected, atol=1e-5)
    assert not found.bundle.samples().logits[:, 0].any()


class _Spectrum(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.fft.rfft2(images).abs().flatten(1)[:, :10]


def test_a_torchscript_file_that_cannot_be_taken_is_one_line_with_the_cause(
    images: Images, preprocessing: Preprocessing, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    half = torch.nn.Sequential(torch.nn.Conv2d(1, 6, 3), torch.nn.Flatten(), torch.nn.Linear(216, 10)).half()
    for network, cause in ((half.eval(), "Half"), (_Spectrum().eval(), "fft_rfft2")):
        path = tmp_path / "network.pt"
        torch.jit.save(torch.jit.script(network), path)
        with pytest.raises(InvalidInputError, match=cause):
            adopt(path, tmp_path / "b", labels=LABELS, preprocessing=preprocessing, images=images)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("batch", [None, 4])
def test_a_program_of_torch_export_becomes_a_bundle(
    batch: int | None, digits_bundle: Path, images: Images, preprocessing: Preprocessing, tmp_path: Path
) -> None:
    source = Bundle.open(digits_bundle)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = torch.nn.Sequential(
            torch.nn.Conv2d(1, 6, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(216, 10)
        ).eval()
    dynamic = None if batch else ({0: torch.export.Dim("batch", min=1, max=64)},)
    example = torch.zeros(batch or 2, *source.signature.input_shape)
    path = tmp_path / "network.pt2"
    torch.export.save(torch.export.export(network, (example,), dynamic_shapes=dynamic), path)
    found = adopt(path, tmp_path / "b", labels=LABELS, preprocessing=preprocessing, images=images)
    assert found.bundle.signature.batch == ((1, 1, 32) if batch is None else (4, 4, 4))
    with torch.no_grad():
        expected = network(torch.from_numpy(preprocessing.normalise(images.test))).numpy()
    np.testing.assert_allclose(found.bundle.samples().logits, expected, atol=1e-5)
    other = tmp_path / "other.pt2"
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("other/archive_format", "pt2")
        archive.writestr("other/models/model.json", "{}")
    with pytest.raises(InvalidInputError, match=r"not a torch\.export program"):
        adopt(other, tmp_path / "c", labels=LABELS, preprocessing=preprocessing, images=images)


def test_command_takes_flags_labels_and_arrays(
    foreign: Path, images: Images, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "labels.txt").write_text("\n".join(LABELS) + "\n")
    np.savez(tmp_path / "test.npz", images=images.test, labels=images.labels)
    words = ["adopt", str(foreign), "--labels", str(tmp_path / "labels.txt"), "-o", str(tmp_path / "b")]
    words += ["--size", "8", "--channels", "1", "--mean", "0.3", "--std", "0.38", "--json"]
    words += ["--samples", str(tmp_path / "test.npz")]
    assert run([*words, "--dry-run"]) == 0
    assert not (tmp_path / "b").exists()
    capsys.readouterr()
    assert run(words) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["accuracy"] > 0.95
    assert any("int8" in warning for warning in answer["warnings"])
    assert run(words) == 2  # the bundle is there
    assert run([*words, "--dry-run"]) == 2
    assert run([*words, "--samples", "read-later.npz"]) == 2, "before images are read"
    assert run([*words, "--force"]) == 0
    assert run(words[:-2]) == 2  # no images


def test_wrong_preprocessing_is_noticed(foreign: Path, images: Images, tmp_path: Path) -> None:
    wrong = Preprocessing(height=8, width=8, channels=1, mean=(40.0,), std=(0.001,))
    found = adopt(foreign, tmp_path / "b", labels=LABELS, preprocessing=wrong, images=images)
    assert "no better than chance" in found.warnings[0]


def test_labels_of_another_count_are_refused(
    foreign: Path, images: Images, preprocessing: Preprocessing, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInputError, match="10 labels"):
        adopt(foreign, tmp_path / "b", labels=LABELS[:9], preprocessing=preprocessing, images=images)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("batch", [None, 4])
def test_images_that_depend_on_their_neighbours_are_noticed(
    batch: int | None, foreign: Path, images: Images, preprocessing: Preprocessing, tmp_path: Path
) -> None:
    model = onnx.load(rebatched(foreign, batch))
    model.graph.node[0].input[0] = "centred"
    model.graph.node.insert(0, helper.make_node("Sub", ["pixels", "mean"], ["centred"]))
    model.graph.node.insert(0, helper.make_node("ReduceMean", ["pixels", "axis"], ["mean"]))
    model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "axis"))
    onnx.save(model, foreign)
    with pytest.raises(InvalidInputError, match="come together"):
        adopt(foreign, tmp_path / "b", labels=LABELS, preprocessing=preprocessing, images=images)


def test_a_fixed_batch_stays_fixed(
    foreign: Path, images: Images, preprocessing: Preprocessing, tmp_path: Path
) -> None:
    model = onnx.load(foreign)
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(model, foreign)
    found = adopt(foreign, tmp_path / "b", labels=LABELS, preprocessing=preprocessing, images=images)
    assert found.bundle.signature.batch == (4, 4, 4)
    assert found.accuracy > 0.95


# --- forms of files that people bring ------------------------------------------------------------------


def rebatched(path: Path, batch: object, *, inner: int | None = None) -> Path:
    """The foreign network with another batch axis, and a Reshape to [inner, 48] before its last layer."""
    model = onnx.load(path)
    for value in (model.graph.input[0], model.graph.output[0]):
        axis = value.type.tensor_type.shape.dim[0]
        axis.Clear()
        if isinstance(batch, int):
            axis.dim_value = batch
        elif batch:
            axis.dim_param = str(batch)
    if inner is not None:
        flatten = next(node for node in model.graph.node if node.op_type == "Flatten")
        model.graph.initializer.append(numpy_helper.from_array(np.array([inner, -1]), "rows"))
        flatten.CopyFrom(helper.make_node("Reshape", [flatten.input[0], "rows"], [flatten.output[0]]))
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    ("batch", "inner", "taken"),
    [
        (1, None, (1, 1, 1)),
        (4, None, (4, 4, 4)),
        ("N", None, (1, 1, 32)),
        ("", None, (1, 1, 32)),
        (0, None, (1, 1, 32)),
        (-1, None, (1, 1, 32)),
        (1, 1, (1, 1, 1)),
        ("N", 1, (1, 1, 1)),  # says any, was traced with one
    ],
)
def test_every_way_to_write_a_batch_axis_is_taken_for_what_it_means(
    batch: object,
    inner: int | None,
    taken: tuple[int, int, int],
    foreign: Path,
    images: Images,
    preprocessing: Preprocessing,
    digits_bundle: Path,
    tmp_path: Path,
) -> None:
    rebatched(foreign, batch, inner=inner)
    found = adopt(foreign, tmp_path / "b", labels=LABELS, preprocessing=preprocessing, images=images)
    assert found.bundle.signature.batch == taken
    reference = Bundle.open(digits_bundle).samples().logits
    np.testing.assert_allclose(found.bundle.samples().logits, reference, atol=1e-4)
    evidence = compile_bundle(found.bundle, "onnxruntime", isolated=False).evidence
    assert evidence["parity"]["agreement"] == 1.0


def test_domains_that_no_node_uses_and_weights_listed_as_inputs_are_left_out(
    foreign: Path, images: Images, preprocessing: Preprocessing, tmp_path: Path
) -> None:
    model = onnx.load(foreign)
    model.opset_import.extend([helper.make_opsetid("ai.onnx.ml", 3), helper.make_opsetid("com.microsoft", 1)])
    for tensor in model.graph.initializer:
        model.graph.input.insert(0, helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    onnx.save(model, foreign)
    found = adopt(foreign, tmp_path / "b", labels=LABELS, preprocessing=preprocessing, images=images)
    stored = onnx.load(found.bundle.onnx)
    assert [item.domain for item in stored.opset_import] == [""]
    assert [value.name for value in stored.graph.input] == ["pixels"]
    assert found.accuracy > 0.95


# Of images with channels last, as files declare them: sizes that are open fit both ways, but ONNX convolves
# channels first, so the graph turns its images.
TURNED: dict[str, list[str | int | None]] = {
    "channels last": [8, 8, 1],
    "channels last, sizes open": ["H", "W", "C"],
    "channels last, channels open": [8, 8, None],
    "all of them": [8, 8, 1],
}


@pytest.mark.parametrize("form", [*TURNED, "halves", "doubles", "map of one pixel"])
def test_other_forms_of_images_and_answers_are_taken(
    form: str,
    foreign: Path,
    images: Images,
    preprocessing: Preprocessing,
    digits_bundle: Path,
    tmp_path: Path,
) -> None:
    """As tf2onnx and fp16 converters write them; networks without a last flatten."""
    model = onnx.load(foreign)
    nodes, sizes, scores = model.graph.node, TURNED.get(form, [1, 8, 8]), [10]
    kind = TensorProto.FLOAT16 if form in ("halves", "all of them") else TensorProto.FLOAT
    kind = TensorProto.DOUBLE if form == "doubles" else kind
    nodes[0].input[0], nodes[-1].output[0] = "inside", "outside"
    if form in TURNED:
        nodes.insert(0, helper.make_node("Transpose", ["floats"], ["inside"], perm=[0, 3, 1, 2]))
    else:
        nodes.insert(0, helper.make_node("Identity", ["floats"], ["inside"]))
    nodes.insert(0, helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT))
    if form in ("map of one pixel", "all of them"):
        scores = [10, 1, 1]
        model.graph.initializer.append(numpy_helper.from_array(np.array([2, 3]), "last axes"))
        nodes.append(helper.make_node("Unsqueeze", ["outside", "last axes"], ["map"]))
    else:
        nodes.append(helper.make_node("Identity", ["outside"], ["map"]))
    nodes.append(helper.make_node("Cast", ["map"], ["scores"], to=kind))
    for value, shape in ((model.graph.input[0], sizes), (model.graph.output[0], scores)):
        value.CopyFrom(helper.make_tensor_value_info(value.name, kind, ["N", *shape]))
    onnx.save(model, foreign)
    found = adopt(foreign, tmp_path / "b", labels=LABELS, preprocessing=preprocessing, images=images)
    reference = Bundle.open(digits_bundle).samples().logits
    tolerance = 0.05 if kind == TensorProto.FLOAT16 else 1e-4
    np.testing.assert_allclose(found.bundle.samples().logits, reference, atol=tolerance)
    stored = onnx.load(found.bundle.onnx).graph
    for value, rank in ((stored.input[0], 4), (stored.output[0], 2)):
        assert value.type.tensor_type.elem_type == TensorProto.FLOAT
        assert len(value.type.tensor_type.shape.dim) == rank
    assert compile_bundle(found.bundle, "onnxruntime", isolated=False).evidence["parity"]["agreement"] == 1


def in_halves(path: Path, *, weights_only: bool = False) -> None:
    """The network with fp16 weights; it computes in fp16, or casts them before it computes."""
    model = onnx.load(path)
    graph = model.graph
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            name, half = tensor.name, numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(half, f"{name}.half" if weights_only else name))
            if weights_only:
                cast = helper.make_node("Cast", [tensor.name], [name], to=TensorProto.FLOAT)
                graph.node.insert(0, cast)
    if not weights_only:
        del graph.value_info[:]
        for value in (graph.input[0], graph.output[0]):
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    onnx.save(model, path)


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_a_network_that_computes_in_fp16_is_held_to_the_rounding_of_fp16(
    target: str, foreign: Path, images: Images, preprocessing: Preprocessing, tmp_path: Path
) -> None:
    if not get_target(target).availability().available:
        pytest.skip(f"{target} is not here")
    in_halves(foreign)
    found = adopt(foreign, tmp_path / "b", labels=LABELS, preprocessing=preprocessing, images=images)
    assert found.accuracy > 0.95
    (report,) = verify(found.bundle, target="onnxruntime", isolated=False).files
    assert (report.status, report.precision) == ("passed", "fp32")
    assert report.parity is not None
    assert report.parity.max_difference > 1e-4  # fp32 has to be nearer
    compiled = compile_bundle(found.bundle, target, isolated=False)
    assert compiled.evidence["gate"]["relative_error"] == GATES["fp16"].relative_error
    compared = compare_bundle(found.bundle, select=[target], seconds=0.01, rounds=1)
    assert [row.verdict for row in compared.rows] == ["recommended"]


def test_weights_in_fp16_alone_loosen_no_limit(
    foreign: Path, images: Images, preprocessing: Preprocessing, tmp_path: Path
) -> None:
    in_halves(foreign, weights_only=True)
    found = adopt(foreign, tmp_path / "b", labels=LABELS, preprocessing=preprocessing, images=images)
    gate = compile_bundle(found.bundle, "onnxruntime", isolated=False).evidence["gate"]
    assert (gate["max_difference"], gate["relative_error"]) == (1e-4, None)


@pytest.mark.parametrize(
    "name", ["x'; touch PWNED; '", "$(touch PWNED)", "a,b*", "é", "n" * 300, "serving:0"]
)
def test_names_of_tensors_are_such_that_every_script_can_hold(
    name: str, foreign: Path, images: Images, preprocessing: Preprocessing, tmp_path: Path
) -> None:
    model = onnx.load(foreign)
    for value, new in ((model.graph.input[0], name), (model.graph.output[0], f"{name}out")):
        old, value.name = value.name, new
        for node in model.graph.node:
            node.input[:] = [new if item == old else item for item in node.input]
            node.output[:] = [new if item == old else item for item in node.output]
    onnx.save(model, foreign)
    found = adopt(foreign, tmp_path / "b", labels=LABELS, preprocessing=preprocessing, images=images)
    signature = found.bundle.signature
    kept = (name, f"{name}out") if name == "serving:0" else ("input", "logits")
    assert (signature.input_name, signature.output_name) == kept
    assert found.accuracy > 0.95


def ending(path: Path, *kinds: str, rows: int = 10) -> Path:
    """The foreign network with operators after its logits; only the first ``rows`` classes are kept."""
    model = onnx.load(path)
    last = model.graph.node[-1]
    for index in (1, 2):
        tensor = next(item for item in model.graph.initializer if item.name == last.input[index])
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[:rows].copy(), tensor.name))
    for index, kind in enumerate(kinds):
        name = "scores" if index == len(kinds) - 1 else f"end{index}"
        before, model.graph.node[-1].output[0] = f"before{index}", f"before{index}"
        attributes = {"axis": 1} if kind.endswith("max") else {}
        model.graph.node.append(helper.make_node(kind, [before], [name], **attributes))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = rows
    onnx.save(model, path)
    return path


def softmax_of(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


@pytest.mark.parametrize(
    ("kinds", "outputs"),
    [
        ((), "logits"),
        (("Softmax",), "probabilities"),
        (("Softmax", "Identity"), "probabilities"),
        (("LogSoftmax",), "logits"),
        (("LogSoftmax", "Exp"), "probabilities"),
        (("Sigmoid",), "sigmoid"),
        (("Softmax", "Clip"), "probabilities"),
        (("Sigmoid", "Clip"), "sigmoid"),
        (("Neg", "Exp", "Neg", "Exp"), "logits"),
    ],
)
def test_predictions_are_the_probabilities_of_the_network_whatever_it_ends_with(
    kinds: tuple[str, ...],
    outputs: str,
    foreign: Path,
    images: Images,
    preprocessing: Preprocessing,
    digits_bundle: Path,
    tmp_path: Path,
) -> None:
    found = adopt(
        ending(foreign, *kinds), tmp_path / "b", labels=LABELS, preprocessing=preprocessing, images=images
    )
    assert found.bundle.signature.outputs == outputs
    logits = Bundle.open(digits_bundle).samples().logits[:8].astype(np.float64)
    expected = 1 / (1 + np.exp(-logits)) if outputs == "sigmoid" else softmax_of(logits)
    if kinds[:1] == ("Neg",):
        expected = softmax_of(np.exp(-np.exp(-logits)))
    with load(tmp_path / "b") as classifier:
        for answer, row in zip(classifier.predict(images.test[:8]), expected, strict=True):
            assert answer.probability == pytest.approx(row.max(), abs=1e-4)
            there = {LABELS[index] for index in np.flatnonzero(row >= 0.5)}
            assert answer.present is None or {item.label for item in answer.present} == there
            assert (answer.present is None) == (outputs != "sigmoid")
        labelled = Labelled("digits", images.test[:8], images.labels[:8])
        assert evaluate(classifier, labelled).confidence == pytest.approx(
            expected.max(axis=1).mean(), abs=1e-4
        )


def test_probabilities_that_were_rounded_to_int8_are_still_probabilities(
    foreign: Path, images: Images, preprocessing: Preprocessing, tmp_path: Path
) -> None:
    """As ONNX Runtime's quantiser writes a network that ends in softmax: a sum of rounded ones is not 1."""
    model = onnx.load(ending(foreign, "Softmax"))
    model.graph.node[-1].output[0] = "exact"
    model.graph.initializer.append(numpy_helper.from_array(np.float32(1 / 40), "scale"))
    model.graph.initializer.append(numpy_helper.from_array(np.uint8(0), "zero"))
    for kind, before, after in (
        ("QuantizeLinear", "exact", "rounded"),
        ("DequantizeLinear", "rounded", "scores"),
    ):
        model.graph.node.append(helper.make_node(kind, [before, "scale", "zero"], [after]))
    onnx.save(model, foreign)
    found = adopt(foreign, tmp_path / "b", labels=LABELS, preprocessing=preprocessing, images=images)
    sums = found.bundle.samples().logits.sum(axis=1)
    assert np.abs(sums - 1).max() > 0.01
    assert found.bundle.signature.outputs == "probabilities"


def squeezed(path: Path) -> Path:
    """The network with answers [B] instead of [B, 1]."""
    model = onnx.load(path)
    model.graph.node[-1].output[0] = "column"
    model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "axis"))
    model.graph.node.append(helper.make_node("Squeeze", ["column", "axis"], ["scores"]))
    del model.graph.output[0].type.tensor_type.shape.dim[1:]
    onnx.save(model, path)
    return path


def test_answers_that_look_like_probabilities_are_warned_of_where_they_are_taken_for_logits(
    foreign: Path, images: Images, preprocessing: Preprocessing, tmp_path: Path
) -> None:
    path = ending(foreign, "Neg", "Exp", "Neg", "Exp")
    for wish, warned in ((None, True), ("logits", False)):
        found = adopt(
            path,
            tmp_path / str(wish),
            labels=LABELS,
            preprocessing=preprocessing,
            images=images,
            outputs=wish,  # type: ignore[arg-type]
        )
        assert any("between 0 and 1" in warning for warning in found.warnings) == warned


def test_sigmoids_of_several_heads_are_sigmoids(
    foreign: Path, images: Images, preprocessing: Preprocessing, tmp_path: Path
) -> None:
    path = ending(foreign)
    model = onnx.load(path)
    model.graph.node[-1].output[0] = "logits"
    for number, (first, last) in enumerate(((0, 4), (4, 10))):
        for name, value in ((f"first{number}", first), (f"last{number}", last), (f"axis{number}", 1)):
            model.graph.initializer.append(numpy_helper.from_array(np.array([value]), name))
        bounds = ["logits", f"first{number}", f"last{number}", f"axis{number}"]
        model.graph.node.append(helper.make_node("Slice", bounds, [f"head{number}"]))
        model.graph.node.append(helper.make_node("Sigmoid", [f"head{number}"], [f"chance{number}"]))
    model.graph.node.append(helper.make_node("Concat", ["chance0", "chance1"], ["scores"], axis=1))
    onnx.save(model, path)
    found = adopt(path, tmp_path / "b", labels=LABELS, preprocessing=preprocessing, images=images)
    assert found.bundle.signature.outputs == "sigmoid"


@pytest.mark.parametrize("outputs", [None, "probabilities", "sigmoid"])
@pytest.mark.parametrize("sliced", [False, True])
def test_one_probability_is_one_of_two_classes_whatever_it_is_called(
    outputs: str | None,
    sliced: bool,
    foreign: Path,
    images: Images,
    preprocessing: Preprocessing,
    tmp_path: Path,
) -> None:
    """Softmax of two, of which the file gives the second; and a sigmoid that somebody calls a probability."""
    path = ending(foreign, "Softmax", rows=2) if sliced else ending(foreign, "Sigmoid", "Clip", rows=1)
    if sliced:
        model = onnx.load(path)
        model.graph.node[-1].output[0] = "both"
        for name, value in (("first", 1), ("last", 2), ("axis", 1)):
            model.graph.initializer.append(numpy_helper.from_array(np.array([value]), name))
        model.graph.node.append(helper.make_node("Slice", ["both", "first", "last", "axis"], ["scores"]))
        model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 1
        onnx.save(model, path)
    binary = Images(images.test, images.labels % 2, images.calibration, {})
    found = adopt(
        path,
        tmp_path / "b",
        labels=("other", "this"),
        preprocessing=preprocessing,
        images=binary,
        outputs=outputs,  # type: ignore[arg-type]
    )
    assert found.bundle.signature.outputs == "probabilities"
    answers = found.bundle.samples().logits
    assert np.allclose(answers.sum(1), 1, atol=1e-5)
    assert len(set(answers.argmax(1).tolist())) == 2


@pytest.mark.parametrize(("kinds", "squeeze"), [(("Sigmoid",), False), ((), False), (("Sigmoid",), True)])
def test_one_output_is_a_classifier_of_two_classes(
    kinds: tuple[str, ...],
    squeeze: bool,
    foreign: Path,
    images: Images,
    preprocessing: Preprocessing,
    digits_bundle: Path,
    tmp_path: Path,
) -> None:
    path = ending(foreign, *kinds, rows=1)
    path = squeezed(path) if squeeze else path
    binary = Images(images.test, (images.labels == 0).astype(np.int64), images.calibration, {})
    with pytest.raises(InvalidInputError, match="2 labels"):
        adopt(path, tmp_path / "b", labels=("zero",), preprocessing=preprocessing, images=binary)
    labels = ("other", "zero")
    found = adopt(path, tmp_path / "b", labels=labels, preprocessing=preprocessing, images=binary)
    logits = Bundle.open(digits_bundle).samples().logits[:20, 0].astype(np.float64)
    with load(found.bundle) as classifier:
        for answer, logit in zip(classifier.predict(images.test[:20]), logits, strict=True):
            chance = 1 / (1 + np.exp(-logit))
            assert answer.label == labels[int(chance >= 0.5)]
            assert answer.probability == pytest.approx(max(chance, 1 - chance), abs=1e-4)
    assert compile_bundle(found.bundle, "onnxruntime", isolated=False).evidence["parity"]["agreement"] == 1


@pytest.mark.parametrize(
    ("opset", "kind", "mode", "factor"),
    [
        (7, "Upsample", "linear", 2.0),
        (9, "Upsample", "linear", 2.0),
        (9, "Upsample", "nearest", 1.7),
        (10, "Resize", "linear", 2.0),
        (10, "Resize", "linear", 0.5),
        (10, "Resize", "nearest", 1.7),
        (10, "Resize", "nearest", 0.7),
    ],
)
def test_a_graph_of_an_old_opset_answers_as_the_file_does(
    opset: int, kind: str, mode: str, factor: float, tmp_path: Path
) -> None:
    """onnx.version_converter alone gives Resize other coordinates: 41 % of the labels stay right."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (60, 8, 8, 1), dtype=np.uint8)
    side = int(8 * np.float32(factor))
    weights = {"w": (random.normal(size=(side * side, 10)) * 0.3).astype(np.float32)}
    scales = np.array([1, 1, factor, factor], np.float32)
    if opset < 9:
        node = helper.make_node(kind, ["x"], ["r"], mode=mode, scales=scales.tolist())
    else:
        weights["scales"] = scales
        node = helper.make_node(kind, ["x", "scales"], ["r"], mode=mode)
    graph = helper.make_graph(
        [node, helper.make_node("Flatten", ["r"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["y"])],
        "old",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 10])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=5),
        tmp_path / "old.onnx",
    )
    preprocessing = Preprocessing(8, 8, 1, (0.0,), (1.0,))
    session = onnxruntime.InferenceSession(tmp_path / "old.onnx", providers=["CPUExecutionProvider"])
    expected = session.run(None, {"x": preprocessing.normalise(images)})[0]
    found = adopt(
        tmp_path / "old.onnx",
        tmp_path / "b",
        labels=LABELS,
        preprocessing=preprocessing,
        images=Images(images, expected.argmax(axis=1), images, {}),
    )
    assert found.accuracy == 1
    assert onnx.load(found.bundle.onnx).opset_import[0].version == 20
    with load(found.bundle) as classifier:
        answers = classifier.logits(preprocessing.normalise(images))
    np.testing.assert_allclose(answers, expected, atol=1e-4)


def test_a_graph_that_no_newer_opset_answers_like_keeps_its_own(tmp_path: Path) -> None:
    """Hardmax over what follows axis 1 together became Hardmax over axis 1."""
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), dtype=np.uint8)
    weight = np.random.default_rng(1).normal(size=(64, 10)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Hardmax", ["x"], ["h"], axis=1),
            helper.make_node("Flatten", ["h"], ["f"]),
            helper.make_node("MatMul", ["f", "w"], ["y"]),
        ],
        "old",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 10])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6)
    onnx.save(model, tmp_path / "old.onnx")
    labels = weight[images.reshape(40, 64).argmax(axis=1)].argmax(axis=1)
    found = adopt(
        tmp_path / "old.onnx",
        tmp_path / "b",
        labels=LABELS,
        preprocessing=Preprocessing(8, 8, 1, (0.0,), (1.0,)),
        images=Images(images, labels, images, {}),
    )
    assert found.accuracy == 1
    version = onnx.load(found.bundle.onnx).opset_import[0].version
    assert (version == 11) == any("opset 11" in warning for warning in found.warnings)


# --- hostile files ---------------------------------------------------------------------------------


def external(model: onnx.ModelProto, **facts: str) -> onnx.ModelProto:
    """Points the first weight at a file."""
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in facts.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return model


def domain(model: onnx.ModelProto) -> onnx.ModelProto:
    model.graph.node[0].domain = "com.evil"
    model.opset_import.append(helper.make_opsetid("com.evil", 1))
    return model


def function(model: onnx.ModelProto) -> onnx.ModelProto:
    body = [helper.make_node("Relu", ["x"], ["y"])]
    model.functions.append(helper.make_function("", "F", ["x"], ["y"], body, model.opset_import))
    return model


def two_inputs(model: onnx.ModelProto) -> onnx.ModelProto:
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))
    return model


def wrong_type(model: onnx.ModelProto) -> onnx.ModelProto:
    model.graph.node[0].input[0] = "cast"
    model.graph.node.insert(0, helper.make_node("Cast", ["pixels"], ["cast"], to=TensorProto.FLOAT))
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    return model


def feature_map(model: onnx.ModelProto) -> onnx.ModelProto:
    model.graph.output[0].CopyFrom(
        helper.make_tensor_value_info(model.graph.node[4].output[0], TensorProto.FLOAT, ["batch", 48, 4, 4])
    )
    return model


def cycle(model: onnx.ModelProto) -> onnx.ModelProto:
    model.graph.node[0].input[0] = model.graph.node[3].output[0]
    return model


def missing_weight(model: onnx.ModelProto) -> onnx.ModelProto:
    del model.graph.initializer[0]
    return model


def blow_up(model: onnx.ModelProto) -> onnx.ModelProto:
    size = np.array([1, 1, 1 << 16, 1 << 16])
    model.graph.initializer.append(numpy_helper.from_array(size, "size"))
    model.graph.initializer.append(numpy_helper.from_array(np.array([2, 3]), "axes"))
    model.graph.node[0].input[0] = "image"
    model.graph.node.insert(0, helper.make_node("ReduceMean", ["big", "axes"], ["image"], keepdims=1))
    model.graph.node.insert(0, helper.make_node("Expand", ["one", "size"], ["big"]))
    model.graph.node.insert(0, helper.make_node("ReduceMean", ["pixels", "axes"], ["one"], keepdims=1))
    return model


def control_flow(model: onnx.ModelProto) -> onnx.ModelProto:
    name = model.graph.node[0].output[0]
    branch = helper.make_graph(
        [helper.make_node("Identity", [name], ["out"])],
        "branch",
        [],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    model.graph.node.append(
        helper.make_node("If", ["yes"], ["unused"], then_branch=branch, else_branch=branch)
    )
    return model


def group_normalization(model: onnx.ModelProto) -> onnx.ModelProto:
    model.opset_import[0].version, model.ir_version = 21, 10
    first = model.graph.node[0]
    ones = numpy_helper.from_array(np.ones(16, np.float32), "ones")
    model.graph.initializer.append(ones)
    name, first.output[0] = first.output[0], "raw"
    node = helper.make_node("GroupNormalization", ["raw", "ones", "ones"], [name], num_groups=2)
    model.graph.node.insert(1, node)
    return model


HOSTILE: dict[str, tuple[Callable[[onnx.ModelProto], onnx.ModelProto], str]] = {
    "parent folder": (lambda m: external(m, location="../secret.bin"), "location '../secret.bin'"),
    "absolute path": (lambda m: external(m, location="/etc/passwd"), "location '/etc/passwd'"),
    "windows path": (lambda m: external(m, location="..\\secret.bin"), "not safe"),
    "symbolic link": (lambda m: external(m, location="link.bin"), "a link"),
    "linked folder": (lambda m: external(m, location="linked/secret.bin"), "a link"),
    "hard link": (lambda m: external(m, location="hard.bin"), "no plain file"),
    "device": (lambda m: external(m, location="pipe"), "no plain file"),
    "no such file": (lambda m: external(m, location="none.bin"), "not there"),
    "no location": (lambda m: external(m, offset="0"), "keys"),
    "unknown key": (lambda m: external(m, location="plain.bin", basepath="/etc"), "keys"),
    "negative offset": (lambda m: external(m, location="plain.bin", offset="-8"), "not safe"),
    "negative length": (lambda m: external(m, location="plain.bin", length="-1"), "not safe"),
    "huge length": (lambda m: external(m, location="plain.bin", length=str(1 << 62)), "not safe"),
    "length no number": (lambda m: external(m, location="plain.bin", length="all"), "not safe"),
    "unknown domain": (domain, "com.evil"),
    "functions": (function, "functions"),
    "two inputs": (two_inputs, "2 inputs"),
    "input of bytes": (wrong_type, "channels first"),
    "output of a map": (feature_map, r"float32 \[B, K\]"),
    "cycle": (cycle, "not valid ONNX"),
    "missing weight": (missing_weight, "not valid ONNX"),
    "tensor of 16 GiB": (blow_up, "too large"),
    "control flow": (control_flow, "flat graph"),
    "group normalization": (group_normalization, "opset_version=20"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_onnx_is_refused_quickly_and_nothing_is_written(
    case: str, foreign: Path, images: Images, preprocessing: Preprocessing, tmp_path: Path
) -> None:
    (tmp_path / "secret.bin").write_bytes(b"s" * 4096)
    folder = tmp_path / "model"
    (folder / "real").mkdir(parents=True)
    (folder / "plain.bin").write_bytes(b"p" * 4096)
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    (folder / "linked").symlink_to(tmp_path)
    os.link(tmp_path / "secret.bin", folder / "hard.bin")
    os.mkfifo(folder / "pipe")
    change, words = HOSTILE[case]
    path = folder / "hostile.onnx"
    path.write_bytes(change(onnx.load(foreign)).SerializeToString())
    begin = time.monotonic()
    with pytest.raises(InvalidInputError, match=words):
        adopt(path, tmp_path / "b", labels=LABELS, preprocessing=preprocessing, images=images)
    assert time.monotonic() - begin < 5
    assert not (tmp_path / "b").exists()


def test_external_data_in_a_plain_file_beside_the_model_is_taken_in(foreign: Path, tmp_path: Path) -> None:
    model = onnx.load(foreign)
    plain = onnx.ModelProto.FromString(model.SerializeToString())
    onnx.save(model, tmp_path / "split.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    assert (tmp_path / "w.bin").stat().st_size > 1000
    read = read_foreign_onnx(tmp_path / "split.onnx")
    for ours, theirs in zip(read.graph.initializer, plain.graph.initializer, strict=True):
        np.testing.assert_array_equal(numpy_helper.to_array(ours), numpy_helper.to_array(theirs))


def test_ten_million_nodes_are_refused_before_parsing(tmp_path: Path) -> None:
    node = helper.make_node("Relu", ["x"], ["x"]).SerializeToString()
    one = b"\x0a" + bytes([len(node)]) + node  # field 1 of the graph
    body = one * 10_000_000
    length, size = len(body), b""
    while length:
        size += bytes([length & 0x7F | (0x80 if length >> 7 else 0)])
        length >>= 7
    path = tmp_path / "many.onnx"
    path.write_bytes(b"\x08\x0a\x3a" + size + body)  # ir_version, then field 7: the graph
    begin = time.monotonic()
    with pytest.raises(InvalidInputError, match="too many nodes"):
        read_foreign_onnx(path)
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize("seed", range(4))
def test_damaged_onnx_never_ends_in_anything_but_one_clear_error(
    seed: int, foreign: Path, images: Images, preprocessing: Preprocessing, tmp_path: Path
) -> None:
    random = np.random.default_rng(seed)
    whole = foreign.read_bytes()
    structure = [i for i in range(len(whole)) if i < 1200 or i > len(whole) - 1200]
    few = Images(images.test[:8], images.labels[:8], None, {})
    for trial in range(40):
        data = bytearray(whole)
        for _ in range(int(random.integers(1, 4))):
            data[int(random.choice(structure))] = int(random.integers(256))
        if trial % 4 == 0:
            data = data[: int(random.integers(len(data)))]
        path = tmp_path / "damaged.onnx"
        path.write_bytes(bytes(data))
        with contextlib.suppress(SmashError):  # anything else fails the test
            adopt(path, tmp_path / "b", labels=LABELS, preprocessing=preprocessing, images=few, force=True)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "1 to"),
        (b"hello, this is text", "damaged|nodes"),
        (b"\x3a\xff\xff\xff\xff\x0f", "beyond the end"),
    ],
)
def test_files_that_are_no_onnx(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(content)
    with pytest.raises(InvalidInputError, match=words):
        read_foreign_onnx(tmp_path / "x.onnx")


def test_pickled_networks_are_refused_without_loading(
    tmp_path: Path, images: Images, preprocessing: Preprocessing
) -> None:
    import torch

    class Bomb:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "exploded",))

    torch.save(Bomb(), tmp_path / "network.pt")
    with pytest.raises(InvalidInputError, match="TorchScript"):
        adopt(
            tmp_path / "network.pt", tmp_path / "b", labels=LABELS, preprocessing=preprocessing, images=images
        )
    assert not (tmp_path / "exploded").exists()


def test_preprocessing_comes_from_file_flags_or_the_model(digits_bundle: Path, tmp_path: Path) -> None:
    flags = {"height": 8, "width": 8, "channels": 1, "mean": [0.3], "std": [0.38]}
    (tmp_path / "p.json").write_text(json.dumps({**flags, "mean": [0.5]}))
    assert read_preprocessing(tmp_path / "p.json", {}, Path("m.pt")).mean == (0.5,)
    assert read_preprocessing(tmp_path / "p.json", flags, Path("m.pt")).mean == (0.3,)
    with pytest.raises(UsageError, match="no mean, std"):
        read_preprocessing(None, {"height": 8, "width": 8, "channels": 1}, Path("m.pt"))
    model = onnx.load(digits_bundle / "model.onnx")
    helper.set_model_props(model, {"preprocessing": json.dumps({**flags, "std": [0.25]})})
    onnx.save(model, tmp_path / "m.onnx")
    assert read_preprocessing(None, {}, tmp_path / "m.onnx").std == (0.25,)


def test_short_side_is_given_as_such_or_as_timm_does(tmp_path: Path) -> None:
    flags = {"height": 224, "width": 224, "channels": 3, "mean": [0.5] * 3, "std": [0.5] * 3}
    assert read_preprocessing(None, {**flags, "short_side": 256}, Path("m.pt")).short_side == 256
    assert read_preprocessing(None, {**flags, "crop_pct": 0.875}, Path("m.pt")).short_side == 256
    assert read_preprocessing(None, {**flags, "crop_pct": 0.95}, Path("m.pt")).short_side == 235
    for wrong in ({"crop_pct": 2.0}, {"crop_pct": 0.9, "short_side": 9}, {"crop_pct": 0.9, "width": 100}):
        with pytest.raises(InvalidInputError, match="crop_pct"):
            read_preprocessing(None, {**flags, **wrong}, Path("m.pt"))


def test_classes_of_a_data_set_in_another_order_are_matched_by_name(preprocessing: Preprocessing) -> None:
    plain = images_from_data("digits", LABELS, preprocessing, test_count=50, calibration_count=10)
    turned = images_from_data("digits", LABELS[::-1], preprocessing, test_count=50, calibration_count=10)
    np.testing.assert_array_equal(plain.test, turned.test)
    np.testing.assert_array_equal(9 - plain.labels, turned.labels)
    with pytest.raises(InvalidInputError, match="none of the labels"):
        images_from_data("digits", LABELS[:9], preprocessing)


@pytest.mark.parametrize("short", [None, 12])
def test_files_of_a_folder_are_decoded_as_prediction_does(short: int | None, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for index in range(40):
        path = tmp_path / ("cat", "dog")[index % 2] / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, (20 + index % 3, 33, 3), dtype=np.uint8)).save(path)
    block = Preprocessing(8, 8, 3, (0.5,) * 3, (0.5,) * 3, "bicubic", short_side=short)
    found = images_from_data(f"folder:{tmp_path}", ("dog", "cat"), block, test_count=4, calibration_count=4)
    every = {block.decode(path).tobytes(): path.parent.name for path in tmp_path.rglob("*.png")}
    assert [every[image.tobytes()] for image in found.test] == [("dog", "cat")[i] for i in found.labels]
    assert found.calibration is not None
    assert all(image.tobytes() in every for image in found.calibration)


def test_images_that_do_not_fit_are_refused(
    images: Images, preprocessing: Preprocessing, tmp_path: Path
) -> None:
    np.savez(tmp_path / "a.npz", images=images.test[:, :7], labels=images.labels)
    with pytest.raises(InvalidInputError, match="uint8"):
        images_from_arrays(tmp_path / "a.npz", None, preprocessing, 10)
    np.savez(tmp_path / "locked.npz", images=images.test, labels=images.labels)
    data = bytearray((tmp_path / "locked.npz").read_bytes())
    for mark, flags in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        data[data.index(mark) + flags] |= 1  # encrypted
    (tmp_path / "locked.npz").write_bytes(data)
    with pytest.raises(InvalidInputError, match="cannot be read"):
        images_from_arrays(tmp_path / "locked.npz", None, preprocessing, 10)
    np.savez(tmp_path / "more.npz", images=images.test, labels=images.labels, names=images.labels)
    told = "images uint8 and labels int64 alone; received arrays images, labels, names"
    with pytest.raises(InvalidInputError, match=told):
        images_from_arrays(tmp_path / "more.npz", None, preprocessing, 10)
    np.savez_compressed(tmp_path / "small.npz", images=images.test, labels=images.labels)
    with pytest.raises(InvalidInputError, match="received a compressed entry"):
        images_from_arrays(tmp_path / "small.npz", None, preprocessing, 10)
    np.savez(tmp_path / "fortran.npz", images=np.asfortranarray(images.test), labels=images.labels)
    with pytest.raises(InvalidInputError, match="Fortran order"):
        images_from_arrays(tmp_path / "fortran.npz", None, preprocessing, 10)
    np.savez(tmp_path / "b.npz", images=images.test, labels=images.labels + 5)
    with pytest.raises(InvalidInputError, match="0 to 9"):
        images_from_arrays(tmp_path / "b.npz", None, preprocessing, 10)
