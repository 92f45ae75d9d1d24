"""A compiled file gets its name only after it was proven on the runtime that will run it."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from smash_base import files
from smash_base.errors import MissingRuntimeError, UsageError, VerificationError
from smash_export.bundle.bundle import Bundle
from smash_export.cli import run
from smash_export.compiling.compile import compile_bundle as compile_anywhere
from smash_export.export.adopt import Adopted, Images, adopt
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

# Targets that only these tests know cannot be found by another process.
compile_bundle = functools.partial(compile_anywhere, isolated=False)


class Careless(Target):
    """ONNX Runtime, behind a converter that spoils the weights in the way ``option`` says."""

    name, extra, precisions, options = "careless", "cpu", ("fp32",), ("how",)

    def availability(self) -> Availability:
        return get_target("onnxruntime").availability()

    def compile(self, request: CompileRequest, destination: Path) -> CompileResult:
        self.check_request(request)
        how = request.options.get("how", "right")
        path = destination / "model.onnx"
        if how == "missing":
            return CompileResult("model.onnx")
        if how == "garbage":
            path.write_bytes(b"this is no model")
            return CompileResult("model.onnx")
        if how == "crash":
            path.write_bytes(b"half")
            raise RuntimeError("converter bug")
        model = onnx.load(request.onnx)
        tensor = model.graph.initializer[-2]
        weights = numpy_helper.to_array(tensor).copy()
        if how == "swapped":
            weights[[0, 1]] = weights[[1, 0]]
        elif how == "rounded":
            weights = np.round(weights, 2)
        elif how == "nan":
            weights[0, 0] = np.nan
        tensor.CopyFrom(numpy_helper.from_array(weights, tensor.name))
        onnx.save(model, path)
        return CompileResult("model.onnx", {"how": how})

    def open(self, path: Path, signature: ModelSignature, options: SessionOptions) -> Session:
        return get_target("onnxruntime").open(path, signature, options)


class Absent(Careless):
    name = "absent"

    def availability(self) -> Availability:
        return Availability(False, reason="it is not installed", install="pip install absent")


@pytest.fixture(autouse=True)
def _targets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TARGETS, "careless", f"{__name__}:Careless")
    monkeypatch.setitem(TARGETS, "absent", f"{__name__}:Absent")


def contents(path: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file() and p.name != ".lock"
    }


def test_a_right_file_is_added_with_its_evidence(digits_bundle_copy: Path) -> None:
    file = compile_bundle(digits_bundle_copy, "onnxruntime", threads=1)
    assert file.folder == digits_bundle_copy / "targets" / "onnxruntime" / "fp32"
    again = Bundle.open(digits_bundle_copy).find_compiled("onnxruntime")
    assert again == file
    parity = file.evidence["parity"]
    assert parity["images"] == 597
    assert parity["agreement"] == 1
    assert parity["max_difference"] <= 1e-4
    assert set(parity["by_batch"]) == {"1", "32"}
    assert file.evidence["runtime"]["target"] == "onnxruntime"
    assert file.evidence["machine"]["cores"] >= 1
    assert os.listdir(file.folder.parent) == ["fp32"]


def test_a_runtime_of_its_own_process_gives_the_same_evidence(digits_bundle_copy: Path) -> None:
    apart = compile_anywhere(digits_bundle_copy, "onnxruntime", threads=1)
    here = compile_bundle(digits_bundle_copy, "onnxruntime", threads=1)
    assert apart.evidence["parity"] == here.evidence["parity"]
    assert apart.evidence["runtime"] == here.evidence["runtime"]
    assert apart.notes == here.notes


def test_torchscript_compiles_too(digits_bundle_copy: Path) -> None:
    file = compile_bundle(digits_bundle_copy, "torchscript", threads=1)
    assert file.evidence["parity"]["agreement"] == 1


def test_compiling_again_replaces_and_stays_whole(digits_bundle_copy: Path) -> None:
    for _ in range(2):
        compile_bundle(digits_bundle_copy, "careless")
    bundle = Bundle.open(digits_bundle_copy)
    assert [(file.target, file.precision) for file in bundle.compiled] == [("careless", "fp32")]
    assert bundle.compiled[0].notes == {"how": "right"}


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("swapped", "same label"),
        ("rounded", "a difference of at most 0.0001"),
        ("nan", "NaN"),
        ("garbage", "model.onnx"),
        ("missing", "expected the file model.onnx"),
    ],
)
def test_a_wrong_file_is_rejected_and_the_earlier_one_stays(
    digits_bundle_copy: Path, how: str, message: str
) -> None:
    good = compile_bundle(digits_bundle_copy, "careless")
    whole = good.main.read_bytes()
    manifest = (digits_bundle_copy / "manifest.json").read_bytes()
    with pytest.raises(VerificationError, match=message) as caught:
        compile_bundle(digits_bundle_copy, "careless", options={"how": how})
    assert caught.value.exit_code == 4
    rejected = digits_bundle_copy / "targets" / "careless" / "fp32.rejected"
    assert str(rejected) in str(caught.value)
    report = json.loads((rejected / "report.json").read_text())
    assert report["problems"]
    assert (rejected / "model.onnx").exists() == (how != "missing")
    assert (digits_bundle_copy / "manifest.json").read_bytes() == manifest
    assert good.main.read_bytes() == whole
    assert sorted(os.listdir(rejected.parent)) == ["fp32", "fp32.rejected"]
    compile_bundle(digits_bundle_copy, "careless")
    assert os.listdir(rejected.parent) == ["fp32"]  # what was rejected goes when the file is right


def test_a_rejected_first_file_leaves_nothing_under_the_final_name(
    digits_bundle_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["compile", str(digits_bundle_copy), "--target", "careless", "--option", "how=swapped"]
    arguments.append("--in-process")
    assert run(arguments) == 4
    assert "does not do what the network does" in capsys.readouterr().err
    assert os.listdir(digits_bundle_copy / "targets" / "careless") == ["fp32.rejected"]
    assert Bundle.open(digits_bundle_copy).compiled == []


def test_a_crash_of_the_converter_leaves_nothing(digits_bundle_copy: Path) -> None:
    with pytest.raises(RuntimeError, match="converter bug"):
        compile_bundle(digits_bundle_copy, "careless", options={"how": "crash"})
    assert os.listdir(digits_bundle_copy / "targets" / "careless") == []
    Bundle.open(digits_bundle_copy)


def test_wrong_requests_leave_nothing(digits_bundle_copy: Path) -> None:
    before = contents(digits_bundle_copy)
    for target, precision, options in (
        ("careless", "fp16", {}),
        ("careless", "fp32", {"speed": 11}),
        ("onnxruntime", "int8", {"speed": 11}),
        ("onnxruntime", "int8", {"max_drop": "much"}),
        ("nonsense", "fp32", {}),
    ):
        with pytest.raises(UsageError):
            compile_bundle(digits_bundle_copy, target, precision, options)
    with pytest.raises(MissingRuntimeError, match="pip install absent"):
        compile_bundle(digits_bundle_copy, "absent")
    assert contents(digits_bundle_copy) == before


def test_near_misses_are_suggested(digits_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compile", str(digits_bundle), "--target", "onxruntime"]) == 2
    assert "onnxruntime" in capsys.readouterr().err
    assert run(["compile", str(digits_bundle), "--target", "careless", "--option", "how"]) == 2
    assert run(["compile", str(digits_bundle), "--target", "absent"]) == 3


def test_dry_run_writes_nothing(digits_bundle_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(digits_bundle_copy)
    assert run(["compile", str(digits_bundle_copy), "-t", "onnxruntime", "--dry-run", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["dry_run"] is True
    assert document["replaces"] is False
    assert contents(digits_bundle_copy) == before


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("-t onnxruntime -o how=right", "no option 'how'"),
        ("-t onnxruntime -o ep_context=3", "true or false"),
        ("-t onnxruntime -p int8 -o percentile=-3", "percentile"),
        ("-t torch_export -o device=gpu", "cuda:NUMBER"),
        ("-t openvino -p int8 -o bits=4", "no option 'bits'"),
        ("-t litert -o batch=0", "1 to 4096"),
        ("-t tensorrt -o level=9", "0 to 5"),
        ("-t tensorrt -p fp16 -o dla=0 -o batch=[1,2,4]", "fixed shapes"),
        ("-t ncnn -o batch=2", "no options"),
        ("-t onnxruntime --max-drop 1", "max_drop with precision int8"),
    ],
)
def test_a_dry_run_refuses_the_options_that_compiling_would_refuse_also_without_the_runtime(
    words: str, expected: str, digits_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["compile", str(digits_bundle), *words.split(), "--dry-run"]) == 2
    assert expected in " ".join(capsys.readouterr().err.split())


def test_the_command_prints_the_evidence_as_json(
    digits_bundle_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        run(
            [
                "compile",
                str(digits_bundle_copy),
                "-t",
                "careless",
                "-o",
                'how="right"',
                "--json",
                "--in-process",
            ]
        )
        == 0
    )
    document = json.loads(capsys.readouterr().out)
    assert document["notes"] == {"how": "right"}
    assert document["evidence"]["parity"]["flip_count"] == 0


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_lower_precisions_pass_their_gates_on_the_runtime(digits_bundle_copy: Path, precision: str) -> None:
    file = compile_bundle(digits_bundle_copy, "onnxruntime", precision, threads=1)
    assert file.precision == precision
    assert file.size < Bundle.open(digits_bundle_copy).onnx.stat().st_size
    assert file.evidence["parity"]["agreement"] >= (0.985 if precision == "int8" else 0.999)


def test_int8_without_calibration_images_is_refused_before_the_work(digits_bundle_copy: Path) -> None:
    document = json.loads((digits_bundle_copy / "manifest.json").read_text())
    del document["files"]["calibration.npz"], document["digest"]
    (digits_bundle_copy / "manifest.json").write_text(json.dumps(document))
    (digits_bundle_copy / "calibration.npz").unlink()
    with pytest.raises(UsageError, match="no calibration images"):
        compile_bundle(digits_bundle_copy, "onnxruntime", "int8")


FULL_DISK = """
set -e
mount -t tmpfs -o size=1m tmpfs "$1"
cp -r "$2" "$1/bundle"
"$3" -m smash_export.cli compile "$1/bundle" --target onnxruntime --quiet > /dev/null
free=$(df --output=avail -B1 "$1" | tail -1)
head -c $((free - 20000)) /dev/zero > "$1/filler"
code=0
"$3" -m smash_export.cli compile "$1/bundle" --target torchscript --quiet || code=$?
echo "code $code"
ls -A "$1/bundle/targets/torchscript"
cp -r "$1/bundle" "$4"
"""


def test_a_full_disk_leaves_earlier_results(digits_bundle: Path, tmp_path: Path) -> None:
    """On a tmpfs of one megabyte that is full but for 20 kB, in a mount namespace of its own."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], check=False).returncode:
        pytest.skip("this system lets no user mount a small file system")
    (tmp_path / "small").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    arguments = [str(tmp_path / "small"), str(digits_bundle), sys.executable, str(tmp_path / "rescued")]
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", FULL_DISK, "sh", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.stdout.split() == ["code", "1"], done.stderr
    assert "disk full" in done.stderr
    assert "Traceback" not in done.stderr
    rescued = Bundle.open(tmp_path / "rescued")
    assert [file.target for file in rescued.compiled] == ["onnxruntime"]


def quantised(path: Path) -> Path:
    """The network of a bundle with its input rounded to 8 bits: an int8 file as others make them."""
    model = onnx.load(path)
    facts = {"scale": np.array(0.03, np.float32), "zero": np.array(40, np.uint8)}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in facts.items())
    model.graph.node[0].input[0] = "rounded"
    steps = [("QuantizeLinear", "input", "bytes"), ("DequantizeLinear", "bytes", "rounded")]
    for index, (kind, before, after) in enumerate(steps):
        model.graph.node.insert(index, helper.make_node(kind, [before, "scale", "zero"], [after]))
    onnx.save(model, path.with_name("foreign.onnx"))
    return path.with_name("foreign.onnx")


def adopted(digits_bundle_copy: Path, model: Path, destination: Path, count: int | None = None) -> Adopted:
    bundle = Bundle.open(digits_bundle_copy)
    samples = bundle.samples()
    images = Images(samples.images[:count], samples.labels[:count], bundle.calibration(), {})
    return adopt(model, destination, labels=bundle.labels, preprocessing=bundle.preprocessing, images=images)


def test_an_int8_file_is_kept_as_it_is_and_not_quantised_again(
    digits_bundle_copy: Path, tmp_path: Path
) -> None:
    found = adopted(digits_bundle_copy, quantised(digits_bundle_copy / "model.onnx"), tmp_path / "b")
    assert any("int8 already" in warning for warning in found.warnings)
    evidence = compile_bundle(found.bundle, "onnxruntime").evidence
    assert evidence["parity"]["agreement"] >= 0.99
    held = evidence["gate"]
    assert (held["max_difference"], held["drop"]) == (None, 0.5), "each runtime rounds elsewhere"
    with pytest.raises(UsageError, match="--precision fp32, which keeps it"):
        compile_bundle(found.bundle, "onnxruntime", "int8")
    for target in ("ncnn", "mnn"):
        with pytest.raises(UsageError, match=f"{target} does not read int8 graphs.*onnxruntime or openvino"):
            compile_bundle(found.bundle, target)


def test_a_batch_fixed_to_four_is_compiled_for_a_runtime_of_single_images(
    digits_bundle_copy: Path, tmp_path: Path
) -> None:
    if not get_target("ncnn").availability().available:
        pytest.skip("ncnn is not installed")
    model = onnx.load(digits_bundle_copy / "model.onnx")
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(model, tmp_path / "four.onnx")
    found = adopted(digits_bundle_copy, tmp_path / "four.onnx", tmp_path / "b", count=50)
    assert found.bundle.signature.batch == (4, 4, 4)
    assert compile_bundle(found.bundle, "ncnn").evidence["parity"]["agreement"] == 1


@pytest.mark.parametrize("target", ["onnxruntime", "ncnn", "mnn"])
def test_every_runtime_takes_a_larger_loss_at_int8(digits_bundle_copy: Path, target: str) -> None:
    if not get_target(target).availability().available:
        pytest.skip(f"{target} is not installed")
    file = compile_bundle(digits_bundle_copy, target, "int8", max_drop=5.0, isolated=False)
    assert file.precision == "int8"


def test_a_full_disk_of_temporary_files_is_called_that(
    digits_bundle_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Native libraries write half a file there and say nothing."""
    monkeypatch.setattr(files, "FULL_BYTES", 2**62)
    with pytest.raises(OSError, match="No space left"), files.temporary_folder() as folder:
        raise ValueError(folder)
    with files.temporary_folder():  # what succeeds is no matter
        pass
