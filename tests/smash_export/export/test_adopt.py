"""adopt: foreign classifiers become bundles, hostile files become one clear line."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from smash_base.errors import InvalidInputError, SmashError, UsageError
from smash_base.preprocess import Preprocessing
from smash_export.bundle.bundle import Bundle
from smash_export.cli import run
from smash_export.compiling.compile import compile_bundle
from smash_export.export.adopt import Images, adopt, images_from_arrays, read_labels, read_preprocessing
from smash_export.export.foreign_onnx import read_foreign_onnx

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
    assert compile_bundle(bundle, "onnxruntime", "fp32").evidence["parity"]["agreement"] == 1.0
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


def test_images_that_depend_on_their_neighbours_are_noticed(
    foreign: Path, images: Images, preprocessing: Preprocessing, tmp_path: Path
) -> None:
    model = onnx.load(foreign)
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


def test_labels_are_read_from_text_and_json(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("cat\n dog \n\n")
    (tmp_path / "a.json").write_text('["cat", "dog"]')
    assert read_labels(tmp_path / "a.txt") == read_labels(tmp_path / "a.json") == ("cat", "dog")
    for text, words in (("cat\ncat\n", "cat"), ("cat\n\ndog\n", "empty"), ("", "empty")):
        (tmp_path / "b.txt").write_text(text)
        with pytest.raises(InvalidInputError, match=words):
            read_labels(tmp_path / "b.txt")
    with pytest.raises(InvalidInputError, match="do not exist"):
        read_labels(tmp_path / "none.txt")


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


def test_images_that_do_not_fit_are_refused(
    images: Images, preprocessing: Preprocessing, tmp_path: Path
) -> None:
    np.savez(tmp_path / "a.npz", images=images.test[:, :7], labels=images.labels)
    with pytest.raises(InvalidInputError, match="uint8"):
        images_from_arrays(tmp_path / "a.npz", None, preprocessing, 10)
    np.savez(tmp_path / "b.npz", images=images.test, labels=images.labels + 5)
    with pytest.raises(InvalidInputError, match="0 to 9"):
        images_from_arrays(tmp_path / "b.npz", None, preprocessing, 10)
