"""The GPU benchmark at toy size on the processor: the same code, in seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu as benchmark
from tests.benchmarks.bare import run_bare

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_every_figure_is_measured_on_a_machine_with_pytorch_only(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    words = ["--size", "toy", "--device", "cpu", "--seconds", "0.01", "--out", str(out)]
    done = run_bare("benchmarks.gpu", *words)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert found["hypernet_step"]["step_ms"] > 0
    assert found["scoring"]["networks_per_second"] > 0
    assert found["training"]["images_per_second"] > 0
    assert 0.05 < found["share_of_convolutions"]["share_of_convolutions"] < 0.99
    assert [goal["met"] for goal in benchmark.goals_of(found)] == [None] * 4  # neither a GPU nor full size


def test_figures_of_a_gpu_at_full_size_count() -> None:
    results = {
        "size": "paper", "device": "cuda", "gpu": "a GPU",
        "hypernet_step": {"step_ms": 80.0}, "scoring": {"networks_per_second": 4.0},
        "training": {"images_per_second": 9000.0}, "share": {"share_of_convolutions": 0.7},
    }  # fmt: skip
    assert [(goal["value"], goal["met"]) for goal in benchmark.goals_of(results)] == [
        (80.0, True), (4.0, True), (9000.0, True), (0.7, True),
    ]  # fmt: skip


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_and_exit_code_3() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 3
    assert done.stderr.strip().splitlines() == [
        "PyTorch finds no CUDA device; at toy size: --size toy --device cpu"
    ]


def test_the_committed_result_states_every_figure() -> None:
    document = json.loads((ROOT / "benchmarks" / "results" / "gpu.json").read_text())
    assert [goal["what"] for goal in document["goals"]] == list(benchmark.GOALS.values())
