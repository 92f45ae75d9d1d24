"""A bundle opens exactly when every file is what the manifest says; anything else is one clear line."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import random
import shutil
import subprocess
import sys
import textwrap
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smash_base import files
from smash_base.errors import InvalidInputError, SmashError, UsageError, VerificationError
from smash_base.preprocess import Preprocessing
from smash_export.bundle.bundle import Bundle, Samples, write_bundle
from smash_export.bundle.manifest import parse_manifest, safe_path
from smash_export.bundle.signature import check_signature
from smash_export.cli import run
from smash_targets.base import ModelSignature

PREPROCESSING = Preprocessing(height=4, width=4, channels=1, mean=(0.5,), std=(0.5,))
SIGNATURE = ModelSignature("input", "logits", (1, 4, 4), 3, (1, 1, 8))


def small_bundle(destination: Path, **changes: Any) -> Bundle:
    """A bundle of a few hundred bytes; its model files are never run here."""
    images = np.arange(6 * 16, dtype=np.uint8).reshape(6, 4, 4, 1)
    logits = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1, 2]]
    arguments: dict[str, Any] = {
        "onnx": b"an onnx file",
        "torchscript": b"a traced file",
        "architecture": None,
        "weights": {"head.bias": np.zeros(3, np.float32)},
        "labels": ["cat", "dog", "owl"],
        "preprocessing": PREPROCESSING,
        "signature": SIGNATURE,
        "samples": Samples(images, np.array([0, 1, 2, 0, 1, 2]), logits),
        "calibration": images,
        "provenance": {"seed": 3, "versions": {"numpy": "2"}},
    }
    return write_bundle(destination, **{**arguments, **changes})


def add(bundle: Bundle, content: bytes, target: str = "onnxruntime", precision: str = "fp32") -> None:
    staging = bundle.staging(target, precision)
    (staging / "model.bin").write_bytes(content)
    bundle.add_compiled(target, precision, staging, "model.bin", {"note": 1}, {"ok": True})


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    bundle = small_bundle(tmp_path_factory.mktemp("template") / "bundle")
    add(bundle, b"compiled")
    return bundle.path


@pytest.fixture
def bundle_path(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "bundle"))


def every_file(path: Path) -> list[str]:
    return sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.is_file() and p.name != ".lock")


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    bundle = small_bundle(tmp_path / "b")
    assert bundle.labels == ("cat", "dog", "owl")
    assert bundle.signature == SIGNATURE
    assert bundle.preprocessing == PREPROCESSING
    assert bundle.onnx.read_bytes() == b"an onnx file"
    assert bundle.torchscript is not None
    assert bundle.torchscript.read_bytes() == b"a traced file"
    assert bundle.architecture is None
    samples = bundle.samples()
    assert (samples.images.dtype, samples.labels.dtype, samples.logits.dtype) == (
        np.uint8,
        np.int64,
        np.float32,
    )
    assert samples.images[5, 3, 3, 0] == 95
    assert bundle.calibration().shape == (6, 4, 4, 1)
    weights = bundle.weights()
    assert weights is not None
    assert weights["head.bias"].shape == (3,)
    assert "cat, dog, owl" in (bundle.path / "README.md").read_text()


def test_parts_may_be_absent(tmp_path: Path) -> None:
    bundle = small_bundle(tmp_path / "b", torchscript=None, weights=None, calibration=None)
    assert bundle.torchscript is None
    assert bundle.weights() is None
    with pytest.raises(UsageError, match="no calibration images"):
        bundle.calibration()


def test_architecture_json_is_a_best_json(tmp_path: Path) -> None:
    from smash_search.space.architecture import InputSpec
    from smash_search.space.best import read_best
    from smash_search.space.space import space_for

    space = space_for(InputSpec(1, (8, 8)))
    architecture = space.draw(0, 0)
    preprocessing = Preprocessing(height=8, width=8, channels=1, mean=(0.5,), std=(0.5,))
    images = np.zeros((3, 8, 8, 1), np.uint8)
    bundle = small_bundle(
        tmp_path / "b",
        architecture=architecture,
        preprocessing=preprocessing,
        signature=ModelSignature("input", "logits", (1, 8, 8), 3),
        samples=Samples(images, np.arange(3), np.eye(3, dtype=np.float32)),
        calibration=None,
    )
    assert bundle.architecture == architecture
    assert bundle.manifest.architecture == architecture.key
    best = read_best(bundle.path / "architecture.json")
    assert (best.input, best.classes) == (InputSpec(1, (8, 8)), ("cat", "dog", "owl"))


def test_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = small_bundle(tmp_path / "a"), small_bundle(tmp_path / "b")
    for name in every_file(first.path):
        if name != "manifest.json":
            assert (first.path / name).read_bytes() == (second.path / name).read_bytes(), name
    usual = {"created": "2026-01-01T00:00:00Z", "digest": None}
    texts = [bundle.manifest.model_copy(update=usual) for bundle in (first, second)]
    assert texts[0] == texts[1]


def test_an_existing_destination_is_kept_unless_forced(tmp_path: Path) -> None:
    small_bundle(tmp_path / "b")
    with pytest.raises(UsageError, match="exists already"):
        small_bundle(tmp_path / "b", onnx=b"other")
    assert Bundle.open(tmp_path / "b").onnx.read_bytes() == b"an onnx file"
    small_bundle(tmp_path / "b", onnx=b"other", force=True)
    assert Bundle.open(tmp_path / "b").onnx.read_bytes() == b"other"
    assert os.listdir(tmp_path) == ["b"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ["cat", "dog"]}, "2 labels for 3 classes"),
        ({"labels": ["cat", "dog", "owl\n"]}, "printable"),
        ({"labels": ["cat", "dog", " "]}, "printable"),
        ({"signature": ModelSignature("input", "logits", (1, 5, 5), 3)}, "the signature takes"),
        ({"calibration": np.zeros((2, 4, 4, 1), np.float32)}, "calibration images"),
        ({"calibration": np.zeros((0, 4, 4, 1), np.uint8)}, "calibration images"),
        ({"provenance": {"loss": float("nan")}}, "JSON"),
        ({"provenance": {"model": object()}}, "JSON"),
    ],
)
def test_parts_that_do_not_fit_write_nothing(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        small_bundle(tmp_path / "b", **changes)
    assert os.listdir(tmp_path) == []


def test_samples_that_do_not_fit_write_nothing(tmp_path: Path) -> None:
    images, labels, logits = np.zeros((2, 4, 4, 1), np.uint8), np.arange(2), np.zeros((2, 3), np.float32)
    for samples in (
        Samples(images[:1], labels, logits),
        Samples(images, labels + 2, logits),
        Samples(images, labels, logits[:, :2]),
        Samples(images, labels, logits + np.float32(np.inf)),
        Samples(images[:, :3], labels, logits),
    ):
        with pytest.raises(InvalidInputError, match="sample"):
            small_bundle(tmp_path / "b", samples=samples)
    assert os.listdir(tmp_path) == []


def test_one_flipped_bit_anywhere_is_found(template: Path, bundle_path: Path) -> None:
    names = [name for name in every_file(bundle_path) if name != "manifest.json"]
    assert len(names) == 7  # four model files, samples, calibration, card; and the compiled one
    checked = 0
    for name in names:
        path = bundle_path / name
        whole = path.read_bytes()
        for position in {0, len(whole) // 2, len(whole) - 1}:
            path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
            with pytest.raises(InvalidInputError, match="SHA-256") as caught:
                Bundle.open(bundle_path)
            assert name in str(caught.value)
            checked += 1
        path.write_bytes(whole)
    assert checked >= 20
    Bundle.open(bundle_path)


def test_every_missing_file_is_found(bundle_path: Path) -> None:
    for name in every_file(bundle_path):
        path = bundle_path / name
        whole = path.read_bytes()
        path.unlink()
        with pytest.raises(InvalidInputError, match=r"incomplete|does not exist") as caught:
            Bundle.open(bundle_path)
        assert name in str(caught.value)
        path.write_bytes(whole)
    Bundle.open(bundle_path)


def test_truncated_and_longer_files_are_found(bundle_path: Path) -> None:
    path = bundle_path / "model.onnx"
    for content in (b"", b"an onnx fil", b"an onnx file "):
        path.write_bytes(content)
        with pytest.raises(InvalidInputError, match="another size"):
            Bundle.open(bundle_path)


@pytest.mark.parametrize(
    "name",
    ["extra.bin", "targets/extra", "targets/onnxruntime/fp32/Thumbs.db", "targets/ncnn/fp16/x", ".DS_Store"],
)
def test_a_file_that_the_manifest_does_not_list_is_named_and_nothing_else(
    bundle_path: Path, name: str
) -> None:
    assert Bundle.open(bundle_path).unlisted() == []
    (bundle_path / name).parent.mkdir(parents=True, exist_ok=True)
    (bundle_path / name).write_bytes(b"x")
    bundle = Bundle.open(bundle_path)
    assert bundle.unlisted() == [name]
    bundle.record("notes", 1)
    assert Bundle.open(bundle_path).manifest.records["notes"] == 1


def test_links_pipes_and_folders_that_are_not_listed_are_never_followed(bundle_path: Path) -> None:
    (bundle_path / "lost+found").mkdir(mode=0)
    (bundle_path / "loop").symlink_to(bundle_path)
    os.mkfifo(bundle_path / "pipe")
    names = Bundle.open(bundle_path).unlisted()
    assert names[-2:] == ["loop (a link)", "pipe"]
    assert names[:-2] in ([], ["lost+found/ (may not be read)"])  # root may read it


def test_links_are_refused_even_to_the_right_content(bundle_path: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    shutil.move(bundle_path / "model.onnx", outside)
    (bundle_path / "model.onnx").symlink_to(outside)
    with pytest.raises(InvalidInputError, match="a link"):
        Bundle.open(bundle_path)
    (bundle_path / "model.onnx").unlink()
    shutil.move(outside, bundle_path / "model.onnx")
    shutil.move(bundle_path / "targets", outside)
    (bundle_path / "targets").symlink_to(outside)
    with pytest.raises(InvalidInputError, match="a link"):
        Bundle.open(bundle_path)


def test_a_pipe_in_place_of_a_file_is_refused_and_not_read(bundle_path: Path) -> None:
    (bundle_path / "model.onnx").unlink()
    os.mkfifo(bundle_path / "model.onnx")
    with pytest.raises(InvalidInputError, match="not a regular file"):
        Bundle.open(bundle_path)


def test_what_is_no_bundle_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    for name, message in (
        ("nothing", "is not a bundle"),
        ("file", "is not a bundle"),
        ("folder", "manifest"),
    ):
        with pytest.raises(InvalidInputError, match=message) as caught:
            Bundle.open(tmp_path / name)
        assert caught.value.exit_code == 6


def test_one_flipped_bit_of_the_manifest_is_found(bundle_path: Path) -> None:
    path = bundle_path / "manifest.json"
    bundle = Bundle.open(bundle_path)
    facts = {"accuracy": 0.9766666666666667, "small": 1.25e-07, "path": "a\\b\x1f", "when": "2026-11-25"}
    bundle.record("bench", facts)
    whole = path.read_bytes()
    for place in random.Random(0).sample(range(8 * len(whole)), 400):
        data = bytearray(whole)
        data[place // 8] ^= 1 << place % 8
        path.write_bytes(bytes(data))
        with pytest.raises(InvalidInputError):
            Bundle.open(bundle_path)
    path.write_bytes(whole)
    Bundle.open(bundle_path)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("0.9766666666666667", "0.9766666666666668"),  # the same double or not: another spelling
        ("1.25e-07", "1.25E-07"),
        ("\\u001f", "\\u001F"),
        ('"colour"', '"Colour"'),
    ],
)
def test_a_manifest_that_says_the_same_otherwise_was_changed(
    bundle_path: Path, before: str, after: str
) -> None:
    path = bundle_path / "manifest.json"
    facts = {"colour": 1, "accuracy": 0.9766666666666667, "small": 1.25e-07, "text": "\x1f"}
    Bundle.open(bundle_path).record("bench", facts)
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
    with pytest.raises(InvalidInputError, match="was changed since"):
        Bundle.open(bundle_path)


def test_white_space_and_line_ends_are_no_content_and_older_manifests_open(bundle_path: Path) -> None:
    path = bundle_path / "manifest.json"
    document = json.loads(path.read_text())
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert Bundle.open(bundle_path).manifest.digest is not None
    path.write_text(json.dumps(document))
    assert Bundle.open(bundle_path).manifest.digest == document.pop("digest")
    path.write_text(json.dumps(document))
    bundle = Bundle.open(bundle_path)
    assert bundle.manifest.digest is None
    bundle.record("notes", 1)  # whoever writes it gives it one
    assert Bundle.open(bundle_path).manifest.digest is not None


def test_a_signature_holds_for_this_manifest_and_this_key_only(
    bundle_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if shutil.which("ssh-keygen") is None:
        pytest.skip("OpenSSH is not installed")
    for name in ("maker", "other"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)], check=True
        )
    maker, other, manifest = tmp_path / "maker.pub", tmp_path / "other.pub", bundle_path / "manifest.json"
    with pytest.raises(InvalidInputError, match="signature of the manifest"):
        check_signature(bundle_path, maker)
    subprocess.run(
        ["ssh-keygen", "-q", "-Y", "sign", "-f", tmp_path / "maker", "-n", "smash-export", manifest],
        check=True,
        capture_output=True,
    )
    assert check_signature(bundle_path, maker).startswith("SHA256:")
    assert Bundle.open(bundle_path).unlisted() == []
    with pytest.raises(VerificationError, match="does not hold"):
        check_signature(bundle_path, other)
    with pytest.raises(InvalidInputError, match="no public keys"):
        check_signature(bundle_path, tmp_path / "maker")
    assert run(["verify", str(bundle_path), "--signature", str(other), "--json"]) == 4
    Bundle.open(bundle_path).record("notes", 1)
    with pytest.raises(VerificationError, match="does not hold"):
        check_signature(bundle_path, maker)


def edit(path: Path, change: Any) -> None:
    document = json.loads((path / "manifest.json").read_text())
    document.pop("digest", None)  # as anybody can who makes a bundle by hand
    change(document)
    (path / "manifest.json").write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(schema=2), "newer version"),
        (lambda d: d.update(schema=0), "schema"),
        (lambda d: d.update(schema=True), "schema"),
        (lambda d: d.update(schema="1"), "schema"),
        (lambda d: d.pop("schema"), "schema"),
        (lambda d: d.update(colour="red"), "colour"),
        (lambda d: d["signature"].update(extra=1), "extra"),
        (lambda d: d["preprocessing"].update(crop=3), "preprocessing"),
        (lambda d: d["labels"].pop(), "2 labels for 3 classes"),
        (lambda d: d["labels"].append("bat"), "4 labels for 3 classes"),
        (lambda d: d["signature"].update(classes=4), "3 labels for 4 classes"),
        (lambda d: d["signature"].update(classes="3"), "classes"),
        (lambda d: d["signature"].update(batch=[4, 2, 8]), "batch"),
        (lambda d: d["files"].pop("model.onnx"), "missing"),
        (lambda d: d["files"].update({"../evil": d["files"]["model.onnx"]}), "plain relative path"),
        (lambda d: d["files"].update({"other.bin": d["files"]["model.onnx"]}), "unknown"),
        (lambda d: d["compiled"][0].update(main="../../../etc/passwd"), "plain relative path"),
        (lambda d: d["compiled"][0].update(main="absent.bin"), "main"),
        (lambda d: d["compiled"][0].update(target="../x"), "target"),
        (lambda d: d["compiled"][0].update(precision="fp8"), "precision"),
        (lambda d: d["compiled"].append(d["compiled"][0]), "twice"),
        (lambda d: d["files"]["model.onnx"].update(size=-1), "size"),
        (lambda d: d["files"]["model.onnx"].update(sha256="0" * 63), "sha256"),
    ],
)
def test_each_wrong_field_is_named(bundle_path: Path, change: Any, message: str) -> None:
    edit(bundle_path, change)
    with pytest.raises(InvalidInputError, match=message):
        Bundle.open(bundle_path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"schema": 1, "schema": 1}',
        '{"schema": NaN}',
        "[" * 5000,
        "\xff\xfe",
        "9" * 5000,
    ],
)
def test_what_is_no_json_object_is_refused(bundle_path: Path, text: str) -> None:
    (bundle_path / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InvalidInputError):
        Bundle.open(bundle_path)


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "..", "a/../b", "a//b", "", ".", "a/.hidden", "a\\b", "a\nb", "c:x", "a/" * 9 + "a"],
)
def test_paths_that_leave_the_bundle_are_refused(path: str) -> None:
    with pytest.raises(ValueError, match=r"path|deep"):
        safe_path(path)


JSON_VALUES: list[Any] = [
    None, True, 0, -1, 1, 2**31, 2**63, 10**40, 0.5, -1e308, "", "x", "../x", "/", "\x00", "é" * 300,
    [], [[]], {}, {"": {}}, {"a": [1, None]}, ["x"] * 100,
]  # fmt: skip


def mutate(document: Any, rng: random.Random) -> Any:
    """Replace, remove, repeat or rename something somewhere in a JSON document."""
    document = copy.deepcopy(document)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        places: list[tuple[Any, Any]] = []
        todo = [document]
        while todo:
            node = todo.pop()
            keys = list(node) if isinstance(node, dict) else range(len(node))
            for key in keys:
                places.append((node, key))
                if isinstance(node[key], dict | list):
                    todo.append(node[key])
        if not places:
            break
        node, key = rng.choice(places)
        action = rng.randrange(5)
        if action == 0:
            del node[key]
        elif action == 1 and isinstance(node, dict):
            node[f"{key}{rng.choice(['', 'x', '/..', ' '])}{rng.randrange(3)}"] = node[key]
        elif action == 2 and isinstance(node, list):
            node.insert(rng.randrange(len(node) + 1), copy.deepcopy(node[key]))
        elif action == 3 and isinstance(node[key], str) and node[key]:
            at = rng.randrange(len(node[key]))
            node[key] = node[key][:at] + chr(rng.randrange(1, 300)) + node[key][at + 1 :]
        elif action == 3 and type(node[key]) is int:
            node[key] += rng.choice((-1, 1, 1000))
        else:
            node[key] = copy.deepcopy(rng.choice(JSON_VALUES))
    return document


def opens_cleanly(path: Path) -> bool:
    """Whether the bundle opens; anything but a clean refusal or a consistent bundle is a failure."""
    refusal = None
    try:
        bundle = Bundle.open(path)
    except SmashError as error:
        refusal = error
    if refusal is not None:
        assert refusal.exit_code == 6
        assert "\n" not in str(refusal)
        assert len(str(refusal)) < 3000
        return False
    assert len(bundle.labels) == bundle.signature.classes
    assert bundle.signature.input_shape == bundle.preprocessing.input_shape
    for file in bundle.compiled:
        assert path.resolve() in file.main.resolve().parents
        assert file.main.exists()
    return True


@pytest.mark.slow
def test_thousands_of_mutated_manifests_open_consistently_or_are_refused(bundle_path: Path) -> None:
    rng = random.Random(0)
    manifest = bundle_path / "manifest.json"
    document = json.loads(manifest.read_text())
    del document["digest"]  # which would refuse whatever the rules of the fields let pass
    opened = 0
    for _ in range(3500):
        manifest.write_text(json.dumps(mutate(document, rng)))
        opened += opens_cleanly(bundle_path)
    assert 0 < opened < 1750  # provenance, notes and dates may change; most else may not


@pytest.mark.slow
def test_damaged_manifest_bytes_are_refused_cleanly(bundle_path: Path) -> None:
    rng = random.Random(1)
    manifest = bundle_path / "manifest.json"
    whole = manifest.read_bytes()
    for _ in range(1600):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 1, 3))):
            at = rng.randrange(len(data))
            action = rng.randrange(3)
            if action == 0:
                data[at] = rng.randrange(256)
            elif action == 1:
                del data[at : at + rng.choice((1, 50, 5000))]
            else:
                data[at:at] = data[max(0, at - 40) : at]
            if not data:
                break
        manifest.write_bytes(data)
        opens_cleanly(bundle_path)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=20,
    ),
    key=st.sampled_from(
        ["schema", "created", "labels", "preprocessing", "signature", "architecture", "provenance", "files",
         "compiled", "pending", "recommendation", "records"]
    ),
)  # fmt: skip
def test_any_json_in_any_field_is_read_or_refused(template: Path, key: str, value: Any) -> None:
    document = {**json.loads((template / "manifest.json").read_text()), key: value}
    with contextlib.suppress(InvalidInputError):
        parse_manifest(document)


def rewrite_samples(path: Path, data: bytes) -> None:
    """Damage that the manifest vouches for: what a hostile maker of a bundle could do."""
    (path / "samples.npz").write_bytes(data)

    def change(document: dict[str, Any]) -> None:
        document["files"]["samples.npz"] = {
            "size": len(data),
            "sha256": files.sha256(path / "samples.npz"),
        }

    edit(path, change)


def npz(entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return stream.getvalue()


def npy(array: np.ndarray, allow_pickle: bool = False) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=allow_pickle)
    return stream.getvalue()


def test_hostile_samples_are_refused_without_allocating(bundle_path: Path) -> None:
    good = {
        "images.npy": npy(np.zeros((2, 4, 4, 1), np.uint8)),
        "labels.npy": npy(np.zeros(2, np.int64)),
        "logits.npy": npy(np.zeros((2, 3), np.float32)),
    }
    rewrite_samples(bundle_path, npz(good))
    assert len(Bundle.open(bundle_path).samples()) == 2
    header = good["images.npy"].replace(b"(2, 4, 4, 1)", b"(2**60,4,1,)")
    huge = good["images.npy"].replace(b"(2, 4, 4, 1), ", b"(9999999999,),")
    for data in (
        b"not a zip",
        npz(good)[:-30],
        npz({**good, "images.npy": header}),
        npz({**good, "images.npy": huge}),
        npz({**good, "images.npy": npy(np.array([{}]), allow_pickle=True)}),
        npz({**good, "images.npy": npy(np.zeros((2, 4, 4, 1), np.float64))}),
        npz({**good, "images.npy": b""}),
        npz({**good, "evil.npy": b""}),
        npz({**good, "labels.npy": npy(np.array([0, 3]))}),
        npz({**good, "labels.npy": npy(np.array([0, -1]))}),
        npz({"images.npy": good["images.npy"]}),
        npz({**good, "images.npy": npy(np.zeros((50000, 4, 4, 1), np.uint8))}, zipfile.ZIP_DEFLATED),
    ):
        rewrite_samples(bundle_path, data)
        with pytest.raises(InvalidInputError):
            Bundle.open(bundle_path).samples()


def test_results_are_recorded(bundle_path: Path) -> None:
    bundle = Bundle.open(bundle_path)
    bundle.record("latency", {"p50": np.float32(0.5), "machine": ("a", "b")})
    bundle.record("recommendation", {"target": "onnxruntime", "precision": "fp32", "reason": "fastest"})
    again = Bundle.open(bundle_path)
    assert again.manifest.records == {"latency": {"p50": 0.5, "machine": ["a", "b"]}}
    assert again.recommendation is not None
    assert again.recommendation.reason == "fastest"
    for section, value in (("../x", 1), ("latency", float("nan")), ("recommendation", {"target": "x"})):
        with pytest.raises(InvalidInputError):
            bundle.record(section, value)
    assert Bundle.open(bundle_path).manifest == again.manifest


def test_a_compiled_file_replaces_the_earlier_one(bundle_path: Path) -> None:
    bundle = Bundle.open(bundle_path)
    add(bundle, b"better")
    add(bundle, b"small", precision="int8")
    file = Bundle.open(bundle_path).find_compiled("onnxruntime")
    assert file is not None
    assert file.main.read_bytes() == b"better"
    assert [(item.target, item.precision) for item in bundle.compiled] == [
        ("onnxruntime", "fp32"),
        ("onnxruntime", "int8"),
    ]
    assert sorted(os.listdir(bundle_path / "targets" / "onnxruntime")) == ["fp32", "int8"]


def test_a_folder_with_links_or_odd_names_is_not_added(bundle_path: Path) -> None:
    bundle = Bundle.open(bundle_path)
    for make in (
        lambda folder: (folder / "model.bin").symlink_to("/etc/hostname"),
        lambda folder: (folder / ".hidden").write_bytes(b"x"),
        lambda folder: (folder / "other.bin").write_bytes(b"x"),
    ):
        staging = bundle.staging("ncnn", "fp32")
        make(staging)
        with pytest.raises(InvalidInputError):
            bundle.add_compiled("ncnn", "fp32", staging, "model.bin", {}, {})
    assert Bundle.open(bundle_path).find_compiled("ncnn") is None


def test_rejected_and_half_written_folders_do_not_matter(bundle_path: Path) -> None:
    bundle = Bundle.open(bundle_path)
    (bundle.staging("ncnn", "fp16") / "half").write_bytes(b"x")
    rejected = bundle.rejected_folder("ncnn", "fp32")
    rejected.mkdir(parents=True)
    (rejected / "report.json").write_text("{}")
    assert [file.target for file in Bundle.open(bundle_path).compiled] == ["onnxruntime"]


def test_what_a_killed_compilation_left_goes_with_the_next_one(bundle_path: Path) -> None:
    bundle = Bundle.open(bundle_path)
    killed, working = bundle.staging("ncnn", "fp16"), bundle.staging("ncnn", "int8")
    long_ago = time.time() - 2 * files.LEFT_SECONDS
    (killed / "deep").mkdir()
    (killed / "deep" / "half").write_bytes(b"x")
    for item in (killed / "deep" / "half", killed / "deep", killed, working):
        os.utime(item, (long_ago, long_ago))
    (working / "half").write_bytes(b"x")
    assert bundle.staging("ncnn", "fp16").exists()
    assert not killed.exists()
    assert working.exists()


KILLED = """
    import os, sys
    from pathlib import Path
    countdown = int(sys.argv[2])

    def counted(function):
        def call(*arguments, **keywords):
            global countdown
            if countdown == 0:
                os._exit(9)
            countdown -= 1
            return function(*arguments, **keywords)
        return call

    for name in ("rename", "replace", "fsync"):
        setattr(os, name, counted(getattr(os, name)))
    from smash_export.bundle.bundle import Bundle
    bundle = Bundle.open(sys.argv[1])
    for target, content in (("onnxruntime", b"second"), ("ncnn", b"new")):
        staging = bundle.staging(target, "fp32")
        (staging / "model.bin").write_bytes(content)
        bundle.add_compiled(target, "fp32", staging, "model.bin", {}, {})
"""


@pytest.mark.slow
def test_a_kill_at_any_step_of_adding_leaves_a_bundle_that_opens(template: Path, tmp_path: Path) -> None:
    script = tmp_path / "killed.py"
    script.write_text(textwrap.dedent(KILLED))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    for steps in range(100):
        path = Path(shutil.copytree(template, tmp_path / f"bundle-{steps}"))
        code = subprocess.run(
            [sys.executable, script, path, str(steps)], env=environment, check=False
        ).returncode
        bundle = Bundle.open(path)
        contents = {file.target: file.main.read_bytes() for file in bundle.compiled}
        assert contents.get("onnxruntime", b"second") in (b"compiled", b"second")
        assert contents.get("ncnn", b"new") == b"new"
        add(bundle, b"third")  # and it can be written to again
        add(bundle, b"fourth", target="ncnn")
        assert {f.main.read_bytes() for f in Bundle.open(path).compiled} == {b"third", b"fourth"}
        if code == 0:
            break
    assert code == 0
    assert steps > 10


def test_readers_and_writers_at_once_see_whole_bundles(bundle_path: Path) -> None:
    stop = threading.Event()
    errors: list[BaseException] = []

    def read() -> None:
        while not stop.is_set():
            try:
                bundle = Bundle.open(bundle_path)
                assert bundle.find_compiled("onnxruntime") is not None
            except BaseException as error:  # noqa: BLE001 - reported by the main thread
                errors.append(error)
                return

    def write(number: int) -> None:
        try:
            bundle = Bundle.open(bundle_path)
            for turn in range(4):
                add(bundle, f"{number} {turn}".encode(), target=f"runtime{number}")
                add(bundle, f"{number} {turn}".encode())
                bundle.record(f"turn{number}", turn)
        except BaseException as error:  # noqa: BLE001 - reported by the main thread
            errors.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    writers = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    for thread in readers + writers:
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    for thread in readers:
        thread.join()
    assert not errors
    bundle = Bundle.open(bundle_path)
    assert {file.target for file in bundle.compiled} == {"onnxruntime", "runtime0", "runtime1", "runtime2"}
    assert bundle.manifest.records == {f"turn{number}": 3 for number in range(3)}
