"""What trtexec does after parsing: a combination gives a line that can build, or a refusal."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from smash_base.errors import UsageError
from smash_targets.tensorrt.consequences import NetworkFacts, Refusal, refusals
from smash_targets.tensorrt.trtexec import EngineCommand, Release, build_words, problems, versions_of

COMBINATIONS = list(
    itertools.product(
        ("8.6", "10", "11"),
        ("fp32", "tf32", "fp16", "int8"),
        (False, True),  # on a Jetson
        (None, 0),  # DLA core
        (False, True),  # fallback to the GPU
        (None, (1, 1, 1), (1, 8, 32)),  # batches
        ("none", "ampere+"),
    )
)
DLA_VERSIONS = {"8.6": ["8.6"], "10": ["10.0", "10.3", "10.7"], "11": ["11.4"]}


def test_every_combination_is_a_line_that_can_build_or_a_refusal_with_the_next_step() -> None:
    built = refused = 0
    for release, precision, jetson, dla, fallback, batches, hardware in COMBINATIONS:
        values: dict[str, Any] = {
            "dla": dla, "gpu_fallback": fallback, "batches": batches, "hardware": hardware, "jetson": jetson,
        }  # fmt: skip
        try:
            command = EngineCommand("m.onnx", "m.engine", "x", (3, 8, 8), precision, release, **values)
            words = build_words(command)
        except UsageError as error:
            refused += bool(error.hint or error.expected)
            continue
        built += 1
        given = {word.partition("=")[0] for word in words}
        versions = DLA_VERSIONS[release] if dla is not None else versions_of(release)
        for version in versions:
            assert refusals(words, version, command.network) == []
            assert version == "11.4" or problems(words, version) == []
        if dla is not None:  # what NVIDIA's source says of such a line
            assert fallback
            assert precision in ("fp16", "int8")
            assert batches is None or len(set(batches)) == 1
            assert ("--stronglyTyped" in given) == (release == "11")
            assert ("--calib" in given) == (precision == "int8" and release != "11")
            assert command.holds == ("fp32" if release != "11" else precision)
        assert ("--minShapes" in given) == (batches is not None)
        assert not (jetson and hardware == "ampere+")
    assert (built, refused) == (144, 432)


def line(*words: str, holds: str = "fp32", static: bool = True, version: str = "10.3") -> list[Refusal]:
    return refusals(["--onnx=m", *words], version, NetworkFacts(holds, static))  # type: ignore[arg-type]


DLA = ("--useDLACore=0", "--allowGPUFallback")


@pytest.mark.parametrize(
    ("words", "holds", "version", "reason", "change"),
    [
        ((*DLA, "--stronglyTyped"), "fp16", "10.3", "sets kFP16 and kPREFER", "weak typing"),
        (("--useDLACore=0", "--fp16"), "fp32", "10.3", "kDIRECT_IO", "--gpu-fallback"),
        ((*DLA, "--int8", "--fp16"), "int8", "10.3", "no Q/DQ nodes before TensorRT 11", "--calib="),
        ((*DLA, "--int8", "--fp16"), "fp32", "8.6", "made-up range", "--calib"),
        ((*DLA, "--fp16"), "fp32", "10.13", "no DLA", "GPU"),
        (DLA, "fp16", "11.1", "no DLA", "GPU"),
        (("--stronglyTyped", "--fp16"), "fp16", "10.16", "not for a strongly typed", "leave --fp16 out"),
        (("--int8", "--calib=f"), "int8", "8.6", "not used beside Q/DQ", "leave --calib out"),
        ((), "int8", "10.3", "need --int8 or strong", "--int8"),
        ((), "fp16", "10.3", "need --fp16 or strong", "--fp16"),
        (("--minShapes=x:1x3",), "fp32", "10.3", "fixed shapes", "leave them out"),
    ],
)
def test_each_consequence_alone(
    words: tuple[str, ...], holds: str, version: str, reason: str, change: str
) -> None:
    found = line(*words, holds=holds, version=version)
    (refusal,) = [item for item in found if reason in item.reason]
    assert change in refusal.change
    assert refusal.source


def test_lines_that_nvidia_documents_are_not_refused() -> None:
    assert line(*DLA, "--fp16") == []
    assert line(*DLA, "--int8", "--fp16", "--calib=f") == []
    assert line(*DLA, holds="int8", version="11.4") == []
    assert line("--stronglyTyped", holds="int8") == []
    formats = ("--inputIOFormats=fp16:chw16", "--outputIOFormats=fp16:chw16")
    assert line("--useDLACore=0", "--fp16", *formats) == []
    assert refusals(["--loadEngine=e", "--useDLACore=0"], "10.3", NetworkFacts("fp32", True)) == []


def test_open_shapes_without_a_range_and_jetson() -> None:
    assert "open dimension to 1" in line(static=False)[0].reason
    jetson = NetworkFacts("fp32", True, jetson=True)
    words = ["--onnx=m", "--hardwareCompatibilityLevel=ampere+"]
    assert "JetPack" in refusals(words, "10.3", jetson)[0].reason
    assert refusals(words, "10.3", NetworkFacts("fp32", True)) == []


@pytest.mark.parametrize("release", ["8.6", "10"])
def test_int8_on_a_dla_reads_ranges_by_tensor(release: Release) -> None:
    words = build_words(
        EngineCommand("m.onnx", "e", "x", (3, 8, 8), "int8", release, batches=None, dla=1, gpu_fallback=True)
    )
    assert {"--int8", "--fp16", "--calib=calibration.cache", "--useDLACore=1"} <= set(words)
