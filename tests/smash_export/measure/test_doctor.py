"""doctor and targets tell the truth about this machine and never fail."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path

import numpy
import pytest

from smash_export import cli
from smash_export.measure import doctor, machine
from smash_targets import base


def test_doctor_reports_machine_packages_and_extras(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = {(row["package"], row["extra"]): row for row in found["packages"]}
    assert rows["numpy", ""]["found"] == numpy.__version__
    assert rows["torch", "search"]["required"] == ">=2.10"
    assert found["machine"]["cores"] >= 1
    assert found["memory_available_gib"] > 0
    assert found["disk_free_gib"] >= 0
    assert found["extras"]["serve"]["install"] == "pip install 'smash-export[serve]'"
    for extra in found["extras"].values():
        assert extra["ready"] == (not extra["missing"])


def test_doctor_prints_ticks_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "✓" in text
    assert "numpy" in text
    assert "instructions" in text


def test_doctor_leaves_with_3_when_the_base_is_too_old(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = machine.version_of
    monkeypatch.setattr(machine, "version_of", lambda name: "12.2.9" if name == "pillow" else real(name))
    assert cli.run(["doctor", "--json"]) == 3
    rows = {row["package"]: row for row in json.loads(capsys.readouterr().out)["packages"]}
    assert not rows["pillow"]["ok"]


@pytest.mark.parametrize("package", ["onnxruntime", "onnxruntime-openvino", "onnxruntime-gpu"])
def test_a_plain_runtime_does_not_stand_for_that_of_a_gpu(
    monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    real = machine.version_of
    monkeypatch.setattr(importlib.metadata, "packages_distributions", lambda: {"onnxruntime": [package]})
    monkeypatch.setattr(
        machine,
        "version_of",
        lambda name: "1.32.0" if name == package else None if "onnxruntime" in name else real(name),
    )
    found = {row.package: row.found for row in doctor.requirements()}
    assert found["onnxruntime"] == "1.32.0", "any of them will do"
    assert bool(found["onnxruntime-gpu"]) == (package == "onnxruntime-gpu")


@pytest.mark.parametrize(
    ("version", "required", "expected"),
    [
        ("2.13.0+cpu", ">=2.10", True),
        ("2.9.1", ">=2.10", False),
        ("2.10", ">=2.10.0", True),
        ("3.0", ">=2.10,<3", False),
        ("1.0.20261020", ">=1.0.20250503", True),
        ("4.0rc1", ">=4", False),  # comes before 4.0
        ("2.10.0rc1", ">=2.10", False),
        ("4.1rc1", ">=4", True),
        ("1.2", "", True),
        ("1.2", "==1.2.0", True),
        ("1.5", "~=1.4", True),
        ("2.0", "~=1.4", False),
    ],
)
def test_version_ranges(version: str, required: str, expected: bool) -> None:
    assert doctor.in_range(version, required) is expected


def test_targets_lists_every_registered_target(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["targets", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["targets"]
    assert [row["target"] for row in rows] == base.target_names()
    for row in rows:
        assert row["available"] or row["reason"], row


def test_a_target_whose_module_fails_is_a_row_not_a_crash(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(base.TARGETS, "broken", "smash_targets.no_such_module:Target")
    assert cli.run(["targets", "--json"]) == 0
    rows = {row["target"]: row for row in json.loads(capsys.readouterr().out)["targets"]}
    assert rows["broken"]["available"] is False
    assert "no_such_module" in rows["broken"]["reason"]


def test_machine_description_is_small_json_without_host_names() -> None:
    described = machine.describe_machine()
    assert json.loads(json.dumps(described)) == described
    assert set(described["features"]) <= set(machine.FEATURES)
    assert machine.versions(["numpy", "not-a-package"]) == {"numpy": numpy.__version__}
    assert described["python"] == ".".join(map(str, sys.version_info[:3]))


def test_doctor_prints_the_commands_of_an_environment(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["doctor", "--environment", "litert", "--json"]) == 0
    make, install = json.loads(capsys.readouterr().out)["commands"]
    assert make.endswith("-m venv .venv-litert")
    program, *words, pins = install.split()
    assert (program, words) == (".venv-litert/bin/python", ["-m", "pip", "install", "-r"])
    assert "ai-edge-quantizer==" in Path(pins).read_text().lower().replace("_", "-")
    assert cli.run(["doctor", "--environment", "none"]) == 2
