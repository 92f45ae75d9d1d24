"""``smash-export trtexec``, its scripts on a device, and ``smash-export trtexec-results``."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from smash_export import cli
from smash_export.bundle.bundle import Bundle
from smash_export.deploy.dla import read_calibration_cache
from smash_export.deploy.trtexec import ScriptSettings, scripts
from smash_export.export.adopt import Images, adopt
from smash_export.measure.gates import GATES
from smash_targets.base import ModelSignature
from smash_targets.tensorrt.trtexec import EngineCommand, Release

ROOT = Path(__file__).resolve().parents[2]
NUMBERS = {
    "8.5": "8502",
    "8.6": "8601",
    "10.0": "100001",
    "10.7": "100700",
    "10.16": "101600",
    "11.1": "110100",
}


def run_json(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> Any:
    capsys.readouterr()
    assert cli.run([*map(str, words), "--json", "-q"]) == code, capsys.readouterr().err
    text = capsys.readouterr().out
    return json.loads(text) if text.strip() else None


@pytest.fixture
def device(tmp_path: Path) -> Any:
    """Runs a script as a device with that trtexec would."""
    program = tmp_path / "trtexec"
    stand_in = Path(__file__).with_name("trtexec_stand_in.py")
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {stand_in} "$@"\n')
    program.chmod(0o755)

    def run(script: Path, version: str = "10.16", **settings: str) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": "/usr/bin:/bin",
            "TRTEXEC": str(program),
            "PYTHONPATH": str(ROOT),
            "STAND_IN_VERSION": version,
            "STAND_IN_NUMBER": NUMBERS[version],
            "OMP_NUM_THREADS": "1",
            **settings,
        }
        return subprocess.run(
            ["sh", str(script)], env=environment, capture_output=True, text=True, timeout=120, check=False
        )

    return run


def write(folder: Path, release: Release, dla: bool) -> Path:
    """The scripts of an fp16 engine, without a bundle around them."""
    settings = ScriptSettings(release, device="jetson-orin", dla=0 if dla else None, gpu_fallback=dla)
    command = EngineCommand(
        "model.onnx", "model.engine", "input", (1, 8, 8), "fp16", release, dla=settings.dla, gpu_fallback=dla
    )
    signature = ModelSignature("input", "logits", (1, 8, 8), 10)
    for name, text in scripts(command, settings, GATES["fp16"], signature).items():
        (folder / name).write_text(text)
    return folder


def test_commands_are_printed_and_nothing_written_with_dry_run(
    digits_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("trtexec", digits_bundle, "--precision", "fp16", "--batch", "1,8,32", "--dry-run")
    found = run_json(capsys, *words)
    build, *measure, check = found["commands"]
    assert "--stronglyTyped" in build
    assert "--fp16" not in build
    assert "--optShapes=input:8x1x8x8" in build
    assert [line.split("--shapes=")[1].split()[0] for line in measure] == [
        "input:1x1x8x8",
        "input:8x1x8x8",
        "input:32x1x8x8",
    ]
    assert "--exportOutput=check_000000.output.json" in check
    assert not (digits_bundle / "targets" / "trtexec").exists()
    assert "--fp16" in run_json(capsys, *words, "--for", "8.6")["commands"][0]


def test_a_batch_that_the_network_fixes_is_the_batch_of_the_engine(
    digits_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = onnx.load(digits_bundle / "model.onnx")
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(model, tmp_path / "four.onnx")
    bundle = Bundle.open(digits_bundle)
    samples = bundle.samples()
    images = Images(samples.images[:40], samples.labels[:40], None, {})
    adopt(
        tmp_path / "four.onnx",
        tmp_path / "four",
        labels=bundle.labels,
        preprocessing=bundle.preprocessing,
        images=images,
    )
    build, measure, check = run_json(capsys, "trtexec", tmp_path / "four", "--dry-run")["commands"]
    assert "--onnx=model.onnx" in build
    assert "--loadInputs=input:images_000000.bin" in check
    assert not [line for line in (build, measure, check) if "hapes=" in line]  # the file says them itself
    assert cli.run(["trtexec", str(tmp_path / "four"), "--batch", "1", "--dry-run", "-q"]) == 2
    assert "within the bundle's 4 to 4" in capsys.readouterr().err


def test_a_release_that_may_refuse_the_opset_is_a_warning(
    digits_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for release, warned in (("8.6", True), ("10", False), ("11", False)):
        assert cli.run(["trtexec", str(digits_bundle), "--for", release, "--dry-run", "-q"]) == 0
        assert ("reads opsets up to 17, this graph has 20" in capsys.readouterr().err) == warned


def test_a_dla_line_is_one_that_can_build_or_refused_with_the_next_step(
    digits_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["trtexec", digits_bundle, "-p", "fp16", "--device", "jetson-orin", "--dla", 0, "--dry-run"]
    assert cli.run([*map(str, words)]) == 2
    assert "--gpu-fallback" in capsys.readouterr().err
    build = run_json(capsys, *words, "--gpu-fallback")["commands"][0]
    assert {"--useDLACore=0", "--allowGPUFallback", "--fp16"} <= set(build.split())
    assert "--stronglyTyped" not in build
    assert "Shapes" not in build
    build = run_json(capsys, *words, "--gpu-fallback", "--for", "11")["commands"][0]
    assert "--stronglyTyped" in build
    for wrong in (
        ["--gpu-fallback"],
        ["--dla", 0],
        ["--device", "jetson-orin", "--dla", 0, "--gpu-fallback"],  # fp32
        ["-p", "fp16", "--device", "jetson-orin", "--dla", 0, "--gpu-fallback", "--batch", "1,2"],
        ["--device", "jetson-orin", "--hardware", "ampere+"],
        ["--batch", "64"],
        ["--batch", "1,1"],
    ):
        run_json(capsys, "trtexec", digits_bundle, *wrong, "--dry-run", code=2)


def test_a_dla_before_11_gets_the_fp32_graph_and_ranges_of_every_tensor(
    digits_bundle_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import onnx

    words = ["trtexec", digits_bundle_copy, "-p", "int8", "--device", "jetson-orin", "--dla", 1]
    written = run_json(capsys, *words, "--gpu-fallback", "--batch", "4", "--images", 8)
    folder = digits_bundle_copy / written["folder"]
    graph = onnx.load(folder / "model.onnx").graph
    assert not any("Quantize" in node.op_type for node in graph.node)
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_value == 4
    text = (folder / "calibration.cache").read_text()
    assert text.startswith("TRT-100300-EntropyCalibration2\n")
    ranges = read_calibration_cache(text)
    assert {"input", "logits", *(name for node in graph.node for name in node.output)} <= set(ranges)
    bundle = Bundle.open(digits_bundle_copy)
    images = bundle.preprocessing.normalise(bundle.calibration())
    assert 0 < ranges["input"] <= 1.001 * float(np.abs(images).max())
    assert "--calib=calibration.cache" in (folder / "build_engine.sh").read_text()


def test_fewer_calibration_images_are_accepted_by_the_option_that_the_refusal_names(
    digits_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, few = Bundle.open(digits_bundle), tmp_path / "few"
    samples, calibration = bundle.samples(), bundle.calibration()[:100]
    images = Images(samples.images, samples.labels, calibration, {})
    adopt(bundle.onnx, few, labels=bundle.labels, preprocessing=bundle.preprocessing, images=images)
    dla = ["--device", "jetson-orin", "--dla", "0", "--gpu-fallback"]
    for words in (["check"], ["bake", "--runtime", "mnn"], ["trtexec"], ["trtexec", *dla]):
        command = [words[0], str(few), "-p", "int8", *words[1:], "-q"]
        assert cli.run(command) == 6
        assert "--option calibration_minimum=100" in capsys.readouterr().err
        assert cli.run([*command, "--option", "calibration_minimum=100"]) == 0, capsys.readouterr().err
    assert (few / "targets/trtexec/int8/calibration.cache").is_file()
    assert cli.run(["check", str(few), "--option", "calibration_minimum=100", "-q"]) == 2
    assert "precision fp32 has no option" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("precision", "option", "words"),
    [
        ("fp32", "max_drop=1", "precision fp32 has no option 'max_drop'"),
        ("int8", "max_dorp=1", "precision int8 has no option 'max_dorp'"),
        ("int8", "max_drop=101", "expected 0 to 100 points of accuracy; received 101"),
        ("int8", "activations=u8", "TensorRT takes int8 activations only"),
    ],
)
def test_a_dry_run_refuses_the_options_that_the_run_would(
    precision: str, option: str, words: str, digits_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("trtexec", "bake"):
        for how in (("--dry-run",), ()):
            assert cli.run([command, str(digits_bundle), "-p", precision, "-o", option, *how, "-q"]) == 2
            assert words in capsys.readouterr().err


@pytest.mark.parametrize(("version", "precision"), [("8.6", "fp32"), ("10.16", "int8"), ("11.1", "fp16")])
def test_from_the_bundle_to_a_checked_device(
    version: str, precision: str, digits_bundle_copy: Path, device: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    release = version.partition(".")[0] if version != "8.6" else version
    words = (
        "trtexec",
        digits_bundle_copy,
        "-p",
        precision,
        "--for",
        release,
        "--batch",
        "1,16",
        "--images",
        40,
    )
    written = run_json(capsys, *words)
    folder = digits_bundle_copy / written["folder"]
    assert written["parity"]["images"] == 597
    assert device(folder / "bench_engine.sh", version).returncode == 1  # nothing is built yet
    for name in ("build_engine.sh", "bench_engine.sh", "check_engine.sh"):
        done = device(folder / name, version)
        assert done.returncode == 0, done.stderr + done.stdout
    assert done.stdout.splitlines()[-1] == "PASSED"
    assert done.stdout.startswith("40 images, ")
    assert sorted(path.name for path in folder.glob("check_*.json")) == [
        f"check_{start:06d}.output.json" for start in (0, 16, 32)
    ]
    results = [*folder.glob("bench_b*.*"), *folder.glob("check_*.json"), folder / "build.log"]
    copies = folder.parents[2].parent / "results"  # as they come from the device
    copies.mkdir()
    for path in results:
        shutil.move(path, copies)
    (folder / "model.engine").unlink()
    (folder / "check.log").unlink()
    words = ("trtexec-results", *sorted(copies.iterdir()), "--bundle", digits_bundle_copy, "-p", precision)
    found = run_json(capsys, *words)
    assert found["parity"]["images"] == 48  # the last batch was filled up with real images
    assert found["parity"]["agreement"] >= 0.975
    assert [(row["file"], row["batch"], row["n"]) for row in found["measured"]] == [
        ("bench_b1", 1, 2),
        ("bench_b16", 16, 2),
    ]
    assert found["measured"][0]["provider"].startswith("trtexec ")
    assert found["problems"] == []


@pytest.mark.parametrize(("spoil", "reason"), [("labels", "same label"), ("nan", "no numbers")])
def test_wrong_answers_fail_on_the_device_and_here(
    spoil: str, reason: str, digits_bundle_copy: Path, device: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    written = run_json(capsys, "trtexec", digits_bundle_copy, "--batch", "32", "--images", 32)
    folder = digits_bundle_copy / written["folder"]
    assert device(folder / "build_engine.sh").returncode == 0
    done = device(folder / "check_engine.sh", STAND_IN_SPOIL=spoil)
    assert done.returncode == 4
    assert "FAILED" in done.stdout
    assert reason in done.stdout
    answers = digits_bundle_copy.parent / "check_000000.output.json"
    shutil.move(folder / answers.name, answers)
    for name in ("model.engine", "build.log", "check.log"):
        (folder / name).unlink()
    run_json(capsys, "trtexec-results", answers, "--bundle", digits_bundle_copy, code=4)


def test_answers_are_read_alike_where_numbers_have_a_comma(
    tmp_path: Path, device: Any, digits_bundle_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The awk of Ubuntu, mawk, reads 1.5 as 1 in such a language."""
    if shutil.which("localedef") is not None:
        words = ["localedef", "-i", "de_DE", "-f", "UTF-8", str(tmp_path / "de_DE.UTF-8")]
        subprocess.run(words, capture_output=True, check=False)
    written = run_json(capsys, "trtexec", digits_bundle_copy, "--batch", "32", "--images", 32)
    folder = digits_bundle_copy / written["folder"]
    spoken = {"LOCPATH": str(tmp_path), "LC_ALL": "de_DE.UTF-8"}
    assert device(folder / "build_engine.sh", **spoken).returncode == 0
    done = device(folder / "check_engine.sh", **spoken)
    assert done.returncode == 0, done.stdout
    assert "32 images, 1.0000 same label" in done.stdout


@pytest.mark.parametrize(
    ("release", "version", "dla", "code"),
    [
        ("10", "11.1", False, 3),
        ("11", "10.16", False, 3),
        ("10", "8.6", False, 3),
        ("10", "10.16", True, 3),  # no DLA since 10.8
        ("10", "10.7", True, 0),
        ("11", "11.1", True, 3),
        ("10", "10.0", False, 0),
        ("8.6", "8.5", False, 3),  # JetPack 5
        ("8.6", "8.6", False, 0),
    ],
)
def test_the_script_checks_the_version_that_it_meets(
    release: Release, version: str, dla: bool, code: int, tmp_path: Path, device: Any
) -> None:
    folder = write(tmp_path, release, dla)
    (folder / "model.onnx").write_bytes(b"network")
    done = device(folder / "build_engine.sh", version)
    assert done.returncode == code, done.stderr
    if code:
        words = ("smash-export trtexec", "TensorRT has DLA", "JetPack 5 has 8.5.2")
        assert any(text in done.stderr for text in words)
    assert (folder / "model.engine").exists() == (code == 0)


def test_a_device_without_trtexec_is_told_so(tmp_path: Path) -> None:
    done = subprocess.run(
        ["sh", write(tmp_path, "10", False) / "build_engine.sh"],
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, "set TRTEXEC=" in done.stderr) == (3, True)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not here")
@pytest.mark.parametrize("release", ["8.6", "10", "11"])
@pytest.mark.parametrize("dla", [False, True])
def test_shellcheck_finds_nothing(release: Release, dla: bool, tmp_path: Path) -> None:
    found = sorted(write(tmp_path, release, dla).glob("*.sh"))
    assert len(found) == 3
    done = subprocess.run(["shellcheck", "-s", "sh", *found], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_last_batch_is_filled_up_and_the_images_are_all_there(
    digits_bundle_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = digits_bundle_copy / run_json(capsys, "trtexec", digits_bundle_copy, "--batch", "32")["folder"]
    shipped = sorted(folder.glob("images_*.bin"))
    assert len(shipped) == 19
    assert {path.stat().st_size for path in shipped} == {32 * 64 * 4}
    assert len((folder / "expected.txt").read_text().splitlines()) == 597
    last = np.frombuffer(shipped[-1].read_bytes(), "<f4").reshape(32, -1)
    first = np.frombuffer(shipped[0].read_bytes(), "<f4").reshape(32, -1)
    np.testing.assert_array_equal(last[597 - 18 * 32 :], first[: 19 * 32 - 597])


# --- results without a bundle ------------------------------------------------------------------------

STAMP = "[11/24/2026-19:00:00] "
TIMES = "min = 0.1 ms, max = 0.3 ms, mean = 0.2 ms, median = 0.19 ms"
SUMMARY = f"{STAMP}[I] Throughput: 5000.5 qps\n{STAMP}[I] GPU Compute Time: {TIMES}, percentile"


def banner(verdict: str, number: str, words: str = "--shapes=input:8x1x8x8") -> str:
    return f"&&&& {verdict} TensorRT.trtexec [TensorRT v{number}] [b1] # trtexec {words}\n"


def whole(number: str, tail: str, end: str | None = None) -> str:
    end = banner("PASSED", number) if end is None else end
    return banner("RUNNING", number) + f"{SUMMARY}{tail}\n" + end


@pytest.mark.parametrize(
    ("log", "version", "p99", "code"),
    [
        (whole("8403", "(99%) = 0.29 ms"), "8.4.3", 0.29, 0),
        (whole("8601", "(90%) = 0.25 ms, percentile(99%) = 0.28 ms"), "8.6.1", 0.28, 0),
        (whole("100001", "(99%) = 1e-05 ms"), "10.0.1", 1e-5, 0),
        (whole("110100", "(99%) = 0.2 ms", f"{STAMP}[E] out of memory\n"), "11.1.0", 0.2, 4),
        (whole("101600", "(99%) = 0.2 ms", banner("FAILED", "101600")), "10.16.0", 0.2, 4),
    ],
)
def test_logs_of_each_kind(
    log: str, version: str, p99: float, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bench_b8.log").write_text(log)
    found = run_json(capsys, "trtexec-results", tmp_path / "bench_b8.log", code=code)
    (row,) = found["measured"]
    assert (row["provider"], row["batch"], row["p99"]) == (f"trtexec {version}", 8, p99)
    assert row["images/s"] == pytest.approx(40004)
    assert bool(found["problems"]) == bool(code)


def test_a_log_of_fixed_shapes_tells_its_batch_and_a_skipped_tactic_is_no_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (
        banner("RUNNING", "100300", "--loadEngine=e")
        + f"{STAMP}[I] Input binding for input with dimensions 4x3x32x32 is created.\n"
        + f"{STAMP}[E] Error[4]: tactic skipped\n{STAMP}[E] Error: of something tried\n"
        + f"{SUMMARY}(99%) = 0.2 ms\n"
        + banner("PASSED", "100300", "--loadEngine=e")
    )
    (tmp_path / "a.log").write_text(text)
    found = run_json(capsys, "trtexec-results", tmp_path / "a.log")
    (row,) = found["measured"]
    assert (row["batch"], row["images/s"]) == (4, pytest.approx(20002))
    assert found["problems"] == []
    (tmp_path / "a.log").write_text(text.replace("PASSED", "FAILED"))
    run_json(capsys, "trtexec-results", tmp_path / "a.log", code=4)


def test_layer_info_and_profile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def layers(output: dict[str, str], **tensors: Any) -> str:
        return json.dumps({"Layers": [{"Name": "c", "Outputs": [{"Name": "o", **output}]}], **tensors})

    old = layers({"Format/Datatype": "Channel major FP16 format"}, Bindings=["input"])
    new = layers({"Format": "Row major", "Datatype": "Int8"}, **{"I/O Tensors": [{"Name": "input"}]})
    (tmp_path / "old.layers.json").write_text(old)
    (tmp_path / "new.layers.json").write_text(new)
    layer = '{ "name" : "a "b" \\ c", "timeMs" : 3, "averageMs" : 1, "percentage" : nan }'
    text = f'[\n  {{ "count" : 3 }}\n, {layer}\n]'
    (tmp_path / "profile.json").write_text(text)
    files = [tmp_path / name for name in ("old.layers.json", "new.layers.json", "profile.json")]
    first, second, third = run_json(capsys, "trtexec-results", *files)["files"]
    assert (first["precisions"], second["precisions"]) == ({"fp16": 1}, {"int8": 1})
    assert third["layers"][0]["name"] == 'a "b" \\ c'


@pytest.mark.parametrize("content", ["", "hello", "[", "{}", '{"Layers": 3}', "[1, 2]"])
def test_files_that_are_not_of_trtexec(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text(content)
    assert cli.run(["trtexec-results", str(tmp_path / "file")]) == 6
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert cli.run(["trtexec-results", str(tmp_path / "missing")]) == 6


def test_answers_must_tell_their_images(
    digits_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out.json").write_text(
        '[ { "name" : "logits", "dimensions" : "1x10", "values" : [1,2,3,4,5,6,7,8,9,0] } ]'
    )
    run_json(capsys, "trtexec-results", tmp_path / "out.json", "--bundle", digits_bundle, code=2)
    (tmp_path / "out.json").rename(tmp_path / "check_000900.output.json")
    run_json(
        capsys, "trtexec-results", tmp_path / "check_000900.output.json", "--bundle", digits_bundle, code=6
    )
    (tmp_path / "log").write_text(banner("PASSED", "101600"))
    run_json(capsys, "trtexec-results", tmp_path / "log", "--bundle", digits_bundle, code=2)


def checked_by_awk(
    folder: Path, exported: str, expected: str, *, output: str, difference: str
) -> subprocess.CompletedProcess[str]:
    """What the script of a device says of exported answers for two classes, and those that are expected."""
    (folder / "check_000000.output.json").write_text(exported)
    (folder / "expected.txt").write_text(expected)
    words = ["awk", "-v", "classes=2", "-v", "agreement=1", "-v", "drop=0", "-v", f"difference={difference}"]
    words += ["-f", str(ROOT / "smash_export/deploy/check_outputs.awk.txt"), "expected.txt"]
    return subprocess.run(
        [*words, "check_000000.output.json"],
        cwd=folder,
        env={**os.environ, "OUTPUT": output},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(("below", "same"), [("0.3, 0.4", "1.0000"), ("0.3, 0.5", "0.6667")])
def test_no_class_is_an_answer_of_a_device_where_some_image_has_none(
    below: str, same: str, tmp_path: Path
) -> None:
    """Which of two classes that are not there is the likelier may change: nothing is there either way."""
    exported = f'[{{ "name" : "p" , "values" : [ 0.9, 0.2, {below}, 0.1, 0.8 ] }}]'
    expected = "0 0 0.9 0.2\n2 2 0.4 0.3\n1 1 0.1 0.8\n"
    done = checked_by_awk(tmp_path, exported, expected, output="p", difference="-1")
    assert f"3 images, {same} same label, accuracy {same}" in done.stdout, done.stdout + done.stderr
    assert done.returncode == (0 if same == "1.0000" else 4)


@pytest.mark.parametrize(("name", "code"), [("lo.its", 0), ("lo\\its", 1), ("lo.*", 1), ("logits", 1)])
def test_the_name_of_the_output_is_text_and_no_pattern(name: str, code: int, tmp_path: Path) -> None:
    exported = '[{ "name" : "logits" , "values" : [ 9, 1 ] }, { "name" : "lo.its" , "values" : [ 1, 2 ] }]'
    done = checked_by_awk(tmp_path, exported, "1 1 1 2\n", output=name, difference="0.1")
    assert (done.returncode == 0) == (code == 0), done.stdout + done.stderr
