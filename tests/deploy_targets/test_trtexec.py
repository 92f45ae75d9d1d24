"""Every generated line against the option table of its version."""

import itertools
import subprocess
from pathlib import Path

import pytest

from deploy_targets.trtexec import EngineCommand, bench_words, build_words, options, problems, versions_of
from smash_base.errors import UsageError
from smash_export.trtexec import ScriptSettings, scripts

CASES = list(itertools.product(("8.6", "10", "11"), ("fp32", "tf32", "fp16", "int8"), (False, True)))


def command(release="10", precision="fp16", **values) -> EngineCommand:
    return EngineCommand("model.onnx", "model.engine", "input", (3, 32, 32), precision, release, **values)


@pytest.mark.parametrize(("release", "precision", "compatible"), CASES)
def test_every_line_is_taken_by_every_version_it_is_for(release, precision, compatible):
    line = command(release, precision, batches=(1, 8, 32), version_compatible=compatible, hardware="ampere+")
    for version in versions_of(release):
        assert problems(build_words(line), version) == []
        assert problems(bench_words(line, 8, inputs="i.bin", results="r"), version) == []
    if release == "11":
        assert not {"--fp16", "--int8", "--best"} & set(build_words(line))


def test_the_table_is_whole():
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
def test_what_a_version_does_not_take_is_said(word, version):
    assert problems(["--onnx=m.onnx", word], version)


def test_shapes_out_of_order_repetitions_and_contradictions():
    shapes = ["--minShapes=input:4x3x8x8", "--optShapes=input:2x3x8x8", "--maxShapes=input:8x3x8x8"]
    assert problems(["--onnx=m", *shapes], "10.16")
    assert problems(["--onnx=m", "--verbose", "--verbose"], "10.16")
    assert problems(["--loadEngine=e", "--saveEngine=e"], "10.16")


def test_a_static_graph_gets_no_shapes_and_dla_one_batch():
    assert not any("Shapes" in word for word in build_words(command(batches=None)))
    with pytest.raises(UsageError, match="fixed shapes"):
        command(batches=(1, 2, 4), dla=0)
    assert "--noCudaGraph" in bench_words(command("11", batches=(1, 1, 1), dla=0), 1)


STAND_IN = """#!/bin/sh
echo "&&&& RUNNING TensorRT.trtexec [TensorRT v{number}] # trtexec $*"
[ "$1" = --help ] && exit 0
{python} -c "
import sys
from deploy_targets.trtexec import problems
wrong = problems(sys.argv[1:], '{version}')
print(wrong); sys.exit(bool(wrong))" "$@" || exit 1
for word in "$@"; do case "$word" in --saveEngine=*) : > "${{word#*=}}" ;; esac; done
"""


@pytest.mark.parametrize(
    ("release", "number", "version", "code"),
    [
        ("8.6", "8601", "8.6", 0),
        ("10", "101600", "10.16", 0),
        ("11", "110100", "11.1", 0),
        ("10", "110100", "11.1", 3),
    ],
)
def test_scripts_run_against_a_grammar_checker(tmp_path: Path, release, number, version, code):
    import sys

    program = tmp_path / "trtexec"
    program.write_text(STAND_IN.format(number=number, version=version, python=sys.executable))
    program.chmod(0o755)
    line = command(release, "int8", batches=(1, 8, 32))
    for name, text in scripts(line, ScriptSettings(release=release, batches=(1, 8, 32))).items():
        (tmp_path / name).write_text(text)
        root = Path(__file__).parents[2]
        environment = {"PATH": "/usr/bin:/bin", "TRTEXEC": str(program), "PYTHONPATH": str(root)}
        done = subprocess.run(["sh", name], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
