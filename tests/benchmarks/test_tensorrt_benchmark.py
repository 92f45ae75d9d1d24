"""The TensorRT benchmark without a GPU: it says so, and its parts work with runtimes that are here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import tensorrt as benchmark
from smash_export.bundle.bundle import Bundle
from tests.benchmarks.bare import run_bare

ROOT = Path(__file__).resolve().parents[2]
MEASURED: dict[str, Any] = {
    "latency": {
        "1": {
            "torch eager fp16": {"p50_ms": 1.0},
            "tensorrt fp16": {"p50_ms": 0.4},
            "tensorrt int8": {"p50_ms": 0.45},
        }
    },
    "engines": {
        "fp16": {"build_s": 10.0, "rebuild_s": 2.0, "parity": {"drop": 0.0}},
        "int8": {"parity": {"drop": 0.7}},
    },
    "gpu_ms": {"tensorrt fp16": 0.38},
    "trtexec": {"fp16": {"compute_p50_ms": {1: 0.39}, "latency_p50_ms": 0.35}},
}


def test_a_machine_with_nothing_to_measure_is_one_line_and_exit_3() -> None:
    if not all(benchmark.here().values()):
        pytest.skip("there is something to measure here")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.tensorrt"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 3
    (line,) = done.stderr.strip().splitlines()
    assert "no GPU and no TensorRT" in line


@pytest.mark.slow
def test_a_machine_with_pytorch_alone_measures_pytorch(tmp_path: Path) -> None:
    out = tmp_path / "tensorrt.json"
    done = run_bare("benchmarks.tensorrt", "--device", "cpu", "--seconds", "0.01", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "engines and files need click" in done.stderr
    found = json.loads(out.read_text())
    assert set(found["latency"]) == {"1", "8", "32"}
    assert found["latency"]["8"]["torch eager fp16"]["p50_ms"] > 0
    assert {goal["met"] for goal in benchmark.goals_of(found)} == {None}  # no engine to hold against it


def test_goals_that_nothing_measured_are_neither_met_nor_missed() -> None:
    goals = benchmark.goals_of({})
    assert [goal["met"] for goal in goals] == [None] * 7
    assert all(goal["note"] for goal in goals)


def test_goals_are_judged_from_what_was_measured() -> None:
    verdicts = {goal["what"]: goal["met"] for goal in benchmark.goals_of(MEASURED)}
    assert list(verdicts.values()) == [True, False, True, False, True, False, True]


def test_the_committed_results_state_every_goal() -> None:
    document = json.loads((ROOT / "benchmarks" / "results" / "tensorrt.json").read_text())
    assert {goal["what"] for goal in document["goals"]} == {goal["what"] for goal in benchmark.goals_of({})}


def test_parity_and_latency_of_the_graphs_at_each_precision(digits_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(digits_bundle)
    problems: list[str] = []
    sessions = benchmark.onnxruntime_sessions(bundle, "cpu", tmp_path, problems)
    assert problems == []
    found = benchmark.measure(bundle, sessions, seconds=0.01)
    assert set(found["parity"]) == {f"onnxruntime cpu {name}" for name in benchmark.PRECISIONS}
    assert found["parity"]["onnxruntime cpu fp32"]["agreement"] == 1
    assert set(found["latency"]) == {"1", "8", "32"}
    assert found["latency"]["8"]["onnxruntime cpu int8"]["p50_ms"] > 0


def test_pytorch_is_measured_with_the_way_to_the_device_and_back() -> None:
    import numpy as np

    from smash_export.device_search.latency import random_weights
    from smash_search.model.interpreter import FrozenNetwork
    from smash_search.space.architecture import InputSpec
    from smash_search.space.space import space_for

    spec = InputSpec(1, (8, 8))
    architecture = space_for(spec).draw(0, 0)
    network = FrozenNetwork(architecture, random_weights(architecture, spec, 10)).eval()
    session = benchmark.TorchSession(network, "cpu", half=False)
    logits = session.run(np.ones((3, 1, 8, 8), np.float32))
    assert (logits.shape, logits.dtype) == ((3, 10), np.float32)


@pytest.mark.parametrize(
    ("number", "release"), [("8601", "8.6"), ("8502", None), ("100300", "10"), ("110100", "11")]
)
def test_any_trtexec_is_told_by_its_banner_and_none_ends_the_benchmark(
    number: str, release: str | None, tmp_path: Path
) -> None:
    program = tmp_path / "trtexec"
    program.write_text(
        f"#!/bin/sh\necho '&&&& RUNNING TensorRT.trtexec [TensorRT v{number}] [b1] # trtexec --help'\n"
    )
    program.chmod(0o755)
    assert benchmark.trtexec_release(str(program)) == release
    if release is None:
        problems: list[str] = []
        assert benchmark.run_trtexec(tmp_path, str(program), problems) == {}
        assert "of no release that is known" in problems[0]
