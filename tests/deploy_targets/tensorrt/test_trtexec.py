"""Every generated line against the option table of its version."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from smash_base.errors import UsageError
from smash_targets.tensorrt.trtexec import (
    EngineCommand,
    Release,
    bench_words,
    build_words,
    check_words,
    options,
    problems,
    versions_of,
)

CASES = list(itertools.product(("8.6", "10", "11"), ("fp32", "tf32", "fp16", "int8"), (False, True)))


def command(release: Release = "10", precision: str = "fp16", **values: Any) -> EngineCommand:
    return EngineCommand("model.onnx", "model.engine", "input", (3, 32, 32), precision, release, **values)


@pytest.mark.parametrize(("release", "precision", "compatible"), CASES)
def test_every_line_is_taken_by_every_version_it_is_for(
    release: Release, precision: str, compatible: bool
) -> None:
    line = command(release, precision, batches=(1, 8, 32), version_compatible=compatible, hardware="ampere+")
    for version in versions_of(release):
        assert problems(build_words(line), version) == []
        assert problems(bench_words(line, 8, inputs="i.bin", results="r"), version) == []
        assert problems(check_words(line, 32, "i.bin", "o.json"), version) == []
    if release == "11":
        assert not {"--fp16", "--int8", "--best"} & set(build_words(line))


def test_the_table_is_whole() -> None:
    assert len(options()) == 163
    assert options()["--fp16"].states["11.0"] == "-"


@pytest.mark.parametrize(
    ("word", "version"),
    [
        ("--fp16", "11.0"),
        ("--stronglyTyped=false", "10.16"),
        ("--noCudaGraph", "10.16"),
        ("--workspace=100", "10.0"),
        ("--memPoolSize=workspace:2Gi", "11.1"),
        ("--duration=10abc", "11.1"),
        ("--inputIOFormats=fp16:chw", "11.0"),
        ("--inputIOFormats=chw", "10.16"),
        ("--hardwareCompatibilityLevel=sameComputeCapability", "10.7"),
        ("--builderOptimizationLevel=6", "10.3"),
        ("--nothing", "8.6"),
    ],
)
def test_what_a_version_does_not_take_is_said(word: str, version: str) -> None:
    assert problems(["--onnx=m.onnx", word], version)


def test_shapes_out_of_order_repetitions_and_contradictions() -> None:
    shapes = ["--minShapes=input:4x3x8x8", "--optShapes=input:2x3x8x8", "--maxShapes=input:8x3x8x8"]
    assert problems(["--onnx=m", *shapes], "10.16")
    assert problems(["--onnx=m", "--verbose", "--verbose"], "10.16")
    assert problems(["--loadEngine=e", "--saveEngine=e"], "10.16")


def test_a_static_graph_gets_no_shapes_and_dla_one_batch() -> None:
    assert not any("Shapes" in word for word in build_words(command(batches=None)))
    with pytest.raises(UsageError, match="fixed shapes"):
        command(batches=(1, 2, 4), dla=0)
    assert "--useCudaGraph" not in bench_words(command(batches=None, dla=0), 1)
    assert "--noCudaGraph" in bench_words(command("11", batches=(1, 1, 1), dla=0), 1)


@pytest.mark.parametrize("release", ["10", "11"])
def test_equal_measurements_have_every_flag_that_changed_its_default(release: Release) -> None:
    words = bench_words(command(release, batches=(1, 8, 32)), 8)
    assert {"--useCudaGraph", "--noDataTransfers", "--useSpinWait", "--separateProfileRun"} <= set(words)


@pytest.mark.parametrize("release", ["8.6", "10", "11"])
def test_transfers_are_measured_when_they_are_asked_for(release: Release) -> None:
    words = bench_words(command(release, batches=(1, 1, 1)), 1, transfers=True)
    assert "--noDataTransfers" not in words
    assert ("--includeDataTransfers" in words) == (release == "11")
    assert "--useCudaGraph" in words


def test_a_dla_is_refused_without_a_fallback_and_a_fallback_without_a_dla() -> None:
    with pytest.raises(UsageError, match="kDIRECT_IO") as caught:
        build_words(command(batches=(1, 1, 1), dla=0))
    assert "--gpu-fallback" in str(caught.value)
    assert "--allowGPUFallback" in build_words(command(batches=(1, 1, 1), dla=0, gpu_fallback=True))
    with pytest.raises(UsageError, match="for a DLA"):
        command(gpu_fallback=True)


def test_answers_are_copied_back_also_where_that_is_not_the_default() -> None:
    words = check_words(command("11", batches=(1, 8, 32)), 32, "i.bin", "o.json")
    assert "--includeDataTransfers" in words
    assert "--noDataTransfers" not in check_words(command(batches=(1, 8, 32)), 32, "i.bin", "o.json")
