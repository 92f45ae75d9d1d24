"""compile --all: one line for every target and precision, whatever becomes of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from smash_export import cli
from smash_export.bundle.bundle import Bundle
from smash_export.compiling import everything
from smash_targets.base import get_target


def test_what_is_here_is_compiled_and_what_is_not_is_a_line(
    digits_bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = [(get_target(name), precision) for name, precision in FEW]
    monkeypatch.setattr(everything, "wishes", lambda: few)
    seen: list[everything.Outcome] = []
    outcomes = everything.compile_all(
        digits_bundle_copy, threads=1, isolated=False, on_outcome=seen.append, max_drop=0.7
    )
    assert seen == outcomes
    compiled, missing = outcomes
    assert (compiled.status, compiled.problem) == ("compiled", "")
    assert compiled.accuracy is not None
    assert compiled.accuracy > 0.5
    if not get_target("tensorrt").availability().available:
        assert missing.status == "missing"
        assert "pip install" in missing.problem
    assert Bundle.open(digits_bundle_copy).find_compiled("onnxruntime", "fp32")


FEW = (("onnxruntime", "fp32"), ("tensorrt", "fp16"))


def test_every_target_and_precision_is_meant(digits_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["compile", str(digits_bundle), "--all", "--dry-run", "--json"]) == 0
    files = json.loads(capsys.readouterr().out)["files"]
    assert ["onnxruntime", "int8", True] in files
    assert {target for target, _, _ in files} >= {
        "torchscript",
        "openvino",
        "ncnn",
        "mnn",
        "litert",
        "tensorrt",
    }


def test_a_dry_run_tells_the_loss_that_is_allowed(
    digits_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compile", str(digits_bundle), "-t", "onnxruntime", "-p", "int8", "--max-drop", "1.25"]
    assert cli.run([*words, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["gate"]["drop"] == 1.25


@pytest.mark.parametrize(
    "words", [[], ["--all", "--target", "mnn"], ["--all", "-p", "int8"], ["--all", "-o", "batch=1"]]
)
def test_all_and_target_exclude_each_other(words: list[str], digits_bundle: Path) -> None:
    assert cli.run(["compile", str(digits_bundle), *words, "--json"]) == 2
