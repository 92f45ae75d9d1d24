"""The one list of files that verify, bench, compare, predict and Triton choose from."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

from smash_base.errors import UsageError
from smash_export.bundle.bundle import Bundle
from smash_export.bundle.runnable import missing_file, runnable_files, selected_files


def add_copy(
    bundle: Bundle, target: str, precision: str, evidence: Mapping[str, object] = MappingProxyType({})
) -> None:
    """A compiled file that is model.onnx under another name."""
    staging = bundle.staging(target, precision)
    shutil.copy(bundle.onnx, staging / "model.onnx")
    bundle.add_compiled(target, precision, staging, "model.onnx", {"copied": True}, evidence)


@pytest.fixture
def bundle(digits_bundle_copy: Path) -> Bundle:
    return Bundle.open(digits_bundle_copy)


def test_source_files_stand_in_for_compiled_ones_until_there_are_some(bundle: Bundle) -> None:
    assert [file.name for file in runnable_files(bundle)] == ["torchscript:fp32", "onnxruntime:fp32"]
    assert all(file.source and file.size == file.path.stat().st_size for file in runnable_files(bundle))
    add_copy(bundle, "onnxruntime", "int8")  # another precision: model.onnx still runs at fp32
    add_copy(bundle, "onnxruntime", "fp32")
    files = runnable_files(bundle)
    assert [file.name for file in files] == ["torchscript:fp32", "onnxruntime:int8", "onnxruntime:fp32"]
    assert files[1].notes == {"copied": True}
    assert not files[2].source


def test_files_are_chosen_by_target_by_precision_and_by_both(bundle: Bundle) -> None:
    add_copy(bundle, "openvino", "int8")
    assert [file.name for file in runnable_files(bundle, "openvino")] == ["openvino:int8"]
    assert [file.name for file in runnable_files(bundle, precision="int8")] == ["openvino:int8"]
    names = [file.name for file in selected_files(bundle, ["openvino:int8", "torchscript"])]
    assert names == ["torchscript:fp32", "openvino:int8"]
    assert len(selected_files(bundle)) == 3


@pytest.mark.parametrize("allowed", [3, 3.0])
def test_a_file_stays_held_to_the_loss_that_it_was_allowed(bundle: Bundle, allowed: float) -> None:
    """From Python it may be a whole number."""
    add_copy(bundle, "onnxruntime", "int8", {"gate": {"drop": allowed}})
    (file,) = runnable_files(Bundle.open(bundle.path), "onnxruntime", "int8")
    assert file.max_drop == 3


def test_a_file_that_is_not_there_is_one_error_with_the_command_that_makes_it(bundle: Bundle) -> None:
    expected = f"smash-export compile {bundle.path} --target ncnn --precision fp16"
    assert expected in str(missing_file(bundle, "ncnn", "fp16"))
    with pytest.raises(UsageError, match=r"Make it: smash-export compile .* --target ncnn --precision fp16"):
        runnable_files(bundle, "ncnn", "fp16")
    made = f"Make it: smash-export bake {bundle.path} --precision fp16"
    assert made in str(missing_file(bundle, "baked", "fp16")), "compile does not write it"
    with pytest.raises(UsageError, match="--target ncnn"):
        selected_files(bundle, ["torchscript", "ncnn"])
