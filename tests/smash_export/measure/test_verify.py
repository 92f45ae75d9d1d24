"""Verification finds what is wrong with a file, by numbers a user of a classifier can act on."""

from __future__ import annotations

import functools
import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from smash_base.errors import MissingRuntimeError, UsageError, VerificationError
from smash_export.bundle.bundle import Bundle, Samples
from smash_export.cli import run
from smash_export.measure.labelled import Labelled
from smash_export.measure.verify import (
    FileReport,
    Parity,
    check_parity,
    compare_batches,
    compare_logits,
    measure_parity,
    reference_samples,
)
from smash_export.measure.verify import verify_bundle as verify_anywhere
from smash_targets.base import (
    TARGETS,
    Availability,
    CompileRequest,
    CompileResult,
    ModelSignature,
    Session,
    SessionOptions,
    Target,
    get_target,
)

LOGITS = np.array([[3, 1, 0], [0, 2, 1], [0, 1, 4], [2, 1.5, 0]], np.float32)
LABELS = np.array([0, 1, 2, 1])


def wrong_onnx(source: Path, destination: Path, scale: float = 0.5, value: float | None = None) -> None:
    """The same graph with its last weights changed: a valid file that answers wrongly."""
    model = onnx.load(source)
    tensor = model.graph.initializer[-2]
    weights = numpy_helper.to_array(tensor).copy()
    weights += np.random.default_rng(0).normal(0, scale, weights.shape).astype(weights.dtype)
    if value is not None:
        weights[0, 0] = value
    tensor.CopyFrom(numpy_helper.from_array(weights, tensor.name))
    onnx.save(model, destination)


def add_file(
    path: Path, target: str, precision: str, make: Callable[[Bundle, Path], None], name: str = "model.onnx"
) -> None:
    """Add a file without verification, as somebody with another tool could."""
    bundle = Bundle.open(path)
    staging = bundle.staging(target, precision)
    make(bundle, staging / name)
    bundle.add_compiled(target, precision, staging, name, {}, {})


class Wrapped(Session):
    """A real session that records the batches it is given, and can be made to fail at some."""

    def __init__(self, inner: Session, wrong_at: int | None = None) -> None:
        self.inner, self.wrong_at, self.info = inner, wrong_at, inner.info
        self.sizes: list[int] = []

    def run(self, batch: np.ndarray) -> np.ndarray:
        self.sizes.append(len(batch))
        return self.inner.run(batch) + (1.0 if len(batch) == self.wrong_at else 0.0)


# Most tests stay in one process: quicker, and targets of tests are known here only.
verify_bundle = functools.partial(verify_anywhere, isolated=False)


@pytest.fixture
def session(digits_bundle: Path) -> Session:
    bundle = Bundle.open(digits_bundle)
    return get_target("onnxruntime").open(bundle.onnx, bundle.signature, SessionOptions(threads=1))


def test_equal_logits_pass_every_gate() -> None:
    parity = compare_logits(LOGITS, LOGITS.copy(), LABELS)
    assert (parity.max_difference, parity.mean_difference, parity.agreement) == (0, 0, 1)
    assert (parity.accuracy, parity.accuracy_reference, parity.drop) == (0.75, 0.75, 0)
    assert parity.cosine == pytest.approx(1)
    assert not any(parity.problems(kind) for kind in ("fp32", "tf32", "bf16", "fp16", "int8"))


def test_a_changed_label_is_named_with_its_margin() -> None:
    received = LOGITS.copy()
    received[3] = [1.4, 1.6, 0]
    received[0] = [3.5, 1, 0]
    parity = compare_logits(LOGITS, received, LABELS)
    (flip,) = parity.flips
    assert (flip.image, flip.label, flip.expected, flip.received) == (3, 1, 0, 1)
    assert flip.margin == pytest.approx(0.5)
    assert parity.max_difference == pytest.approx(0.6)
    assert parity.worst_image == 3
    assert (parity.agreement, parity.accuracy, parity.drop) == (0.75, 1.0, -25)
    problems = parity.problems("fp32")
    assert len(problems) == 2
    assert "at most 0.0001, received 0.6" in problems[0]
    assert "received 75.00% (1 of 4 changed)" in problems[1]


@pytest.mark.parametrize(
    ("precision", "error", "passes"),
    [("fp32", 9e-5, True), ("fp32", 2e-4, False), ("fp16", 0.01, True), ("fp16", 0.05, False)],
)
def test_the_gates_of_exact_precisions_are_by_logits(precision: str, error: float, passes: bool) -> None:
    expected = np.tile([1, -1], (1000, 1)).astype(np.float32)
    received = expected + np.float32(error) * np.tile([1, -1], (1000, 1)).astype(np.float32)
    problems = compare_logits(expected, received, np.zeros(1000, np.int64)).problems(precision)
    assert (not problems) == passes


@pytest.mark.parametrize(("changed", "passes"), [(3, True), (4, False)])
def test_fp16_may_change_as_many_labels_as_chance_explains(changed: int, passes: bool) -> None:
    expected = np.tile([0.001, 0, 9], (512, 1)).astype(np.float32)  # near-ties, beside a logit that is not
    expected[:, 2] = -9
    received = expected.copy()
    received[:changed, 1] = 0.002
    problems = compare_logits(expected, received, np.full(512, 2)).problems("fp16")
    assert (not problems) == passes
    assert all(f"{changed} of 512 changed" in problem for problem in problems)


def test_a_tie_within_rounding_is_no_defect_of_an_fp32_file() -> None:
    expected = np.array([[1, 1 - 1e-5], [0, 1]], np.float32)
    received = np.array([[1 - 2e-5, 1], [0, 1]], np.float32)
    parity = compare_logits(expected, received, np.array([0, 1]))
    assert parity.flip_count == 1
    assert not parity.problems("fp32")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_fail_every_precision(value: float) -> None:
    received = LOGITS.copy()
    received[1, 2] = value
    parity = compare_logits(LOGITS, received, LABELS)
    assert not parity.finite
    assert parity.worst_image == 1
    for precision in ("fp32", "fp16", "int8"):
        assert parity.problems(precision) == ["expected finite logits, received NaN or infinity"]
    json.dumps(parity.to_json(), allow_nan=False)
    with pytest.raises(VerificationError, match="NaN"):
        check_parity(parity, "int8", "this file")


def test_another_shape_is_an_error() -> None:
    with pytest.raises(VerificationError, match="another shape"):
        compare_logits(LOGITS, LOGITS[:, :2], LABELS)


def test_smallest_usual_and_largest_batch_are_run(digits_bundle: Path, session: Session) -> None:
    bundle = Bundle.open(digits_bundle)
    recording = Wrapped(session)
    parity = measure_parity(recording, bundle.samples(), bundle.preprocessing, (1, 4, 32))
    assert set(parity.by_batch) == {1, 4, 32}
    assert {1, 4, 32, 597 % 32} <= set(recording.sizes)
    assert parity.max_difference <= 1e-4
    assert parity.agreement == 1


def test_a_fixed_batch_is_filled_up(digits_bundle: Path, session: Session) -> None:
    bundle = Bundle.open(digits_bundle)
    recording = Wrapped(session)
    parity = measure_parity(recording, bundle.samples(), bundle.preprocessing, (8, 8, 8))
    assert set(recording.sizes) == {8}
    assert parity.agreement == 1


@pytest.mark.parametrize("size", [1, 4, 32])
def test_a_file_that_is_wrong_at_one_batch_only_is_found(
    digits_bundle: Path, session: Session, size: int
) -> None:
    bundle = Bundle.open(digits_bundle)
    parity = measure_parity(Wrapped(session, size), bundle.samples(), bundle.preprocessing, (1, 4, 32))
    assert parity.by_batch[size] == pytest.approx(1, abs=1e-4)
    assert parity.problems("fp32")


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16", "int8"])
@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda logits: np.roll(logits, 1, axis=1), "batches of SIZE|expected a difference"),
        (lambda logits: np.full_like(logits, np.nan), "finite logits in batches of SIZE"),
    ],
)
def test_what_a_smaller_batch_answers_wrong_is_refused_at_every_precision(
    digits_bundle: Path,
    session: Session,
    precision: str,
    size: int,
    wrong: Callable[[np.ndarray], np.ndarray],
    words: str,
) -> None:
    class Wrong(Wrapped):
        def run(self, batch: np.ndarray) -> np.ndarray:
            logits = self.inner.run(batch)
            return wrong(logits) if len(batch) == size else logits

    bundle = Bundle.open(digits_bundle)
    samples = bundle.samples()
    few = Samples(samples.images[:64], samples.labels[:64], samples.logits[:64])
    parity = measure_parity(Wrong(session), few, bundle.preprocessing, (1, 4, 32))
    for found in (parity, Parity.from_json(json.loads(json.dumps(parity.to_json(), allow_nan=False)))):
        assert any(re.search(words.replace("SIZE", str(size)), line) for line in found.problems(precision))


def test_labels_of_an_int8_file_may_differ_between_batches_by_what_rounding_explains() -> None:
    logits = np.random.default_rng(0).normal(size=(512, 10))
    turned = logits.copy()
    for image in range(8):  # of 512, which is below three in a hundred
        turned[image] = np.roll(turned[image], 1)
    labels = logits.argmax(axis=1)
    assert not compare_batches(logits, {1: turned, 32: logits}, labels).problems("int8")
    for image in range(8, 64):
        turned[image] = np.roll(turned[image], 1)
    problems = compare_batches(logits, {1: turned, 32: logits}, labels).problems("int8")
    assert problems == [
        "expected the same labels in batches of 1 as in the largest, received others for 64 of 512 images"
    ]


def test_torchscript_and_onnx_agree_with_eager(digits_bundle: Path) -> None:
    reports = list(verify_bundle(Bundle.open(digits_bundle), threads=1))
    assert [(report.target, report.source, report.status) for report in reports] == [
        ("torchscript", True, "passed"),
        ("onnxruntime", True, "passed"),
    ]
    for report in reports:
        assert report.parity is not None
        assert report.parity.images == 597
        assert report.parity.max_difference <= 1e-4
        assert report.parity.agreement == 1
        assert report.parity.accuracy > 0.95
        assert report.runtime is not None
        assert report.runtime.target == report.target


def test_onnx_is_compared_with_torchscript_on_other_data(
    digits_bundle: Path, digits_images: tuple[np.ndarray, np.ndarray]
) -> None:
    bundle = Bundle.open(digits_bundle)
    images, labels = digits_images
    labelled = Labelled("digits", images[:100], labels[:100])
    samples, reference = reference_samples(bundle, labelled, threads=1)
    assert reference == "TorchScript"
    (report,) = verify_bundle(bundle, target="onnxruntime", samples=samples, reference=reference)
    assert report.parity is not None
    assert (report.status, report.parity.images, report.parity.reference) == ("passed", 100, "TorchScript")


def test_without_torchscript_the_reference_is_the_onnx_file(
    digits_bundle: Path, digits_images: tuple[np.ndarray, np.ndarray]
) -> None:
    bundle = Bundle.open(digits_bundle)
    table = {name: entry for name, entry in bundle.manifest.files.items() if name != "model.torchscript.pt"}
    bundle = Bundle(bundle.path, bundle.manifest.model_copy(update={"files": table}))
    images, labels = digits_images
    _, reference = reference_samples(bundle, Labelled("digits", images[:10], labels[:10]))
    assert reference == "model.onnx in ONNX Runtime"


class Absent(Target):
    """A runtime that is installed nowhere."""

    name, extra = "absent", "absent"

    def availability(self) -> Availability:
        return Availability(False, reason="no module named absent", install="pip install absent")

    def compile(self, request: CompileRequest, destination: Path) -> CompileResult:
        raise NotImplementedError

    def open(self, path: Path, signature: ModelSignature, options: SessionOptions) -> Session:
        raise NotImplementedError


@pytest.fixture
def with_absent(digits_bundle_copy: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(TARGETS, "absent", f"{__name__}:Absent")
    assert __name__ in sys.modules
    add_file(digits_bundle_copy, "absent", "fp32", lambda bundle, path: path.write_bytes(b"x") and None)
    return digits_bundle_copy


def test_a_missing_runtime_is_skipped_unless_it_is_named(with_absent: Path) -> None:
    bundle = Bundle.open(with_absent)
    reports = {report.target: report for report in verify_bundle(bundle)}
    assert reports["absent"] == FileReport(
        "absent", "fp32", False, "skipped", ("no module named absent. pip install absent",)
    )
    with pytest.raises(MissingRuntimeError, match="pip install absent"):
        list(verify_bundle(bundle, target="absent"))
    assert run(["verify", str(with_absent), "--in-process"]) == 0
    assert run(["verify", str(with_absent), "--strict", "--in-process"]) == 3
    assert run(["verify", str(with_absent), "--target", "absent"]) == 3


def test_a_file_that_does_not_exist_is_a_usage_error(digits_bundle: Path) -> None:
    with pytest.raises(UsageError, match="smash-export compile"):
        list(verify_bundle(Bundle.open(digits_bundle), target="onnxruntime", precision="int8"))
    assert run(["verify", str(digits_bundle), "--target", "nonsense"]) == 2


def test_the_command_prints_pure_json(digits_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", str(digits_bundle), "--json", "--threads", "1"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["passed"] is True
    assert [item["status"] for item in document["files"]] == ["passed", "passed"]
    assert document["files"][1]["parity"]["agreement"] == 1


def test_a_wrong_file_gives_exit_code_4_and_its_pictures(
    digits_bundle_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_file(
        digits_bundle_copy, "onnxruntime", "fp32", lambda bundle, path: wrong_onnx(bundle.onnx, path, 1.0)
    )
    arguments = [
        "verify",
        str(digits_bundle_copy),
        "--in-process",
        "--json",
        "--save-worst",
        str(tmp_path / "worst"),
    ]
    assert run([*arguments, "--dry-run"]) == 4
    assert not (tmp_path / "worst").exists()
    capsys.readouterr()
    assert run(arguments) == 4
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["passed"] is False
    report = next(item for item in document["files"] if item["target"] == "onnxruntime")
    assert report["status"] == "failed"
    assert report["parity"]["flip_count"] > 0
    assert "smash-export compile" in captured.err
    names = {path.name for path in (tmp_path / "worst").iterdir()}
    assert "onnxruntime-fp32-worst.png" in names
    assert f"onnxruntime-fp32-flip-{report['parity']['flips'][0]['image']}.png" in names
    with Image.open(tmp_path / "worst" / "onnxruntime-fp32-worst.png") as picture:
        assert min(picture.size) >= 192


def test_a_file_that_cannot_be_opened_is_a_failure_not_a_crash(digits_bundle_copy: Path) -> None:
    add_file(
        digits_bundle_copy, "onnxruntime", "fp32", lambda bundle, path: path.write_bytes(b"garbage") and None
    )
    reports = {report.target: report for report in verify_bundle(Bundle.open(digits_bundle_copy))}
    assert reports["onnxruntime"].status == "failed"
    assert reports["onnxruntime"].problems
    assert run(["verify", str(digits_bundle_copy), "--in-process"]) == 4


def test_a_whole_data_set_can_be_used(digits_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", str(digits_bundle), "--data", "digits", "--json", "--in-process"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["reference"] == "TorchScript"
    assert document["images"] > 100


def test_a_damaged_bundle_is_refused(digits_bundle_copy: Path) -> None:
    shutil.copy(digits_bundle_copy / "README.md", digits_bundle_copy / "model.onnx")
    assert run(["verify", str(digits_bundle_copy)]) == 6


def test_reports_have_a_json_form(digits_bundle: Path) -> None:
    (report,) = verify_bundle(Bundle.open(digits_bundle), target="onnxruntime")
    document = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert set(document["parity"]["by_batch"]) == {"1", "32"}
    assert replace(report, status="failed").to_json()["status"] == "failed"
