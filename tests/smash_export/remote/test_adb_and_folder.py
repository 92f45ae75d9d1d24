"""A device by adb (a stand-in of its command line, no phone), and one that a folder is carried to."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from smash_export.cli import run
from smash_export.remote.adb import AdbTransport
from smash_export.remote.device import DeviceError
from smash_search.space.best import read_best
from tests.smash_export.device_search.job.test_job import small  # noqa: F401 - a fixture

pytestmark = pytest.mark.slow

STAND_IN = Path(__file__).with_name("adb_stand_in.py")


@pytest.fixture
def adb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of the stand-in's device; ``adb`` is on the PATH."""
    programs, root = tmp_path / "programs", tmp_path / "phone"
    programs.mkdir()
    (programs / "adb").write_text(f'#!/bin/sh\nexec {sys.executable} {STAND_IN} "$@"\n')
    (programs / "adb").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setenv("ADB_STAND_IN", str(root))
    return root


def test_a_bundle_is_measured_by_the_stand_in_of_adb(
    adb: Path, edge: Path, digits_bundle_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["bench", str(digits_bundle_copy), "--target", "onnxruntime", "--seconds", "0.1"]
    there = ["--adb", "SERIAL", "--device-program", str(edge)]
    assert run([*words, *there, "--json", "--quiet"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["machine"]["device"] == "adb SERIAL"
    assert not list((adb / "data/local/tmp/smash-export").iterdir()), "the device is left clean"
    assert run([*words, "--adb", "OTHER", "--quiet"]) == 3
    assert "adb devices" in capsys.readouterr().err
    assert run([*words, "--adb", "a b", "--quiet"]) == 2


def test_adb_says_which_file_was_missing(adb: Path, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="cannot stat"):
        AdbTransport("SERIAL").get("/nothing", tmp_path / "back")


def test_a_folder_with_a_space_in_its_name_replaces_the_earlier_one(adb: Path, tmp_path: Path) -> None:
    bundle, there = tmp_path / "my bundle", adb / "data/local/tmp/my bundle"
    bundle.mkdir()
    (bundle / "old").touch()
    AdbTransport("SERIAL").put(bundle, str(there))
    (bundle / "old").rename(bundle / "new")
    AdbTransport("SERIAL").put(bundle, str(there))
    assert [path.name for path in there.iterdir()] == ["new"]


def test_a_bundle_is_carried_from_within(
    digits_bundle_copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where "." is its name; and not into itself, which never ends."""
    monkeypatch.chdir(digits_bundle_copy)
    before = sorted(digits_bundle_copy.rglob("*"))
    assert run(["bench", ".", "--device-folder", "stick", "--quiet"]) == 2
    assert "outside of it" in capsys.readouterr().err
    assert sorted(digits_bundle_copy.rglob("*")) == before
    assert run(["bench", ".", "--device-folder", "../stick", "--quiet"]) == 3
    (task,) = (digits_bundle_copy.parent / "stick").iterdir()
    name = digits_bundle_copy.name
    assert sorted(path.name for path in task.iterdir()) == [name, "run.sh"]
    assert f" bench {name} " in (task / "run.sh").read_text()


def test_a_folder_is_carried_to_the_device_and_back(
    edge: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kit, table, carried = tmp_path / "kit.zip", tmp_path / "table.json", tmp_path / "stick"
    assert run(["latency", "kit", str(kit), "--data", "digits", "--networks", "10", "--quiet"]) == 0
    words = ["latency", "build", str(kit), str(table), "--seconds", "0.02", "--quiet"]
    words += ["--device-folder", str(carried), "--device-program", str(edge)]
    assert run(words) == 3
    told = re.search(r"run there: sh (\S+/run\.sh)", capsys.readouterr().err)
    assert told is not None
    on_device = tmp_path / "device"
    shutil.copytree(carried, on_device)
    subprocess.run(["sh", told[1]], cwd=on_device, check=True, capture_output=True)
    shutil.rmtree(carried)
    shutil.copytree(on_device, carried)
    assert run(words) == 0
    assert len(json.loads(table.read_text())["networks"]) == 10
    elsewhere = tmp_path / "elsewhere.json"
    assert run([*words[:3], str(elsewhere), *words[4:]]) == 0, (
        "the same task, whatever its answer is called here"
    )
    assert elsewhere.read_bytes() == table.read_bytes()
    kit.write_bytes(kit.read_bytes() + b"another")
    assert run(words) in (3, 6), "another kit is another task"


def carried_tasks(carried: Path) -> list[str]:
    """Run every task of the folder, as the device would; their names."""
    tasks = sorted(path.name for path in carried.iterdir())
    for task in tasks:
        subprocess.run(["sh", f"{task}/run.sh"], cwd=carried, check=True, capture_output=True)
    return tasks


def test_several_commands_are_prepared_for_one_way_and_each_finds_its_answer(
    edge: Path, digits_bundle_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Though each records what it found in the bundle that the others were prepared for."""
    carried, bundle = tmp_path / "stick", str(digits_bundle_copy)
    there = ["--device-folder", str(carried), "--device-program", str(edge), "--quiet"]
    commands = [
        ["bench", bundle, "--target", "onnxruntime", "--seconds", "0.05", *there],
        ["bench", bundle, "--target", "onnxruntime", "--seconds", "0.06", *there],
        ["verify", bundle, "--target", "onnxruntime", *there],
        ["compare", bundle, "--seconds", "0.05", *there],
    ]
    assert [run(words) for words in commands] == [3] * len(commands)
    assert len(carried_tasks(carried)) == len(commands)
    answers = [run(words) for words in commands]
    assert answers == [0] * len(commands), capsys.readouterr().err
    assert run(["compile", bundle, "--target", "onnxruntime", "--quiet"]) == 0
    assert [run(words) for words in commands] == [3] * len(commands), "another bundle is another task"


def test_an_answer_that_was_in_the_folder_says_how_it_is_measured_anew(
    edge: Path, digits_bundle_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    carried = tmp_path / "stick"
    words = ["bench", str(digits_bundle_copy), "--target", "onnxruntime", "--seconds", "0.05"]
    words += ["--device-folder", str(carried), "--device-program", str(edge)]
    assert run(words) == 3
    (task,) = carried_tasks(carried)
    capsys.readouterr()
    assert run(words) == 0
    assert str(carried / task) in capsys.readouterr().err.replace("\n", "")


def test_a_program_that_the_device_does_not_find_is_named_and_prepared_anew(
    edge: Path, digits_bundle_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A relative one is below the home folder there, as over ssh, wherever the script lies."""
    carried, home = tmp_path / "stick", tmp_path / "home"
    (home / "smash").mkdir(parents=True)
    (home / "smash" / "run it").symlink_to(edge)
    words = ["bench", str(digits_bundle_copy), "--target", "onnxruntime", "--seconds", "0.05"]
    words += ["--device-folder", str(carried), "--quiet", "--device-program"]

    def carry() -> None:
        (task,) = carried.iterdir()
        there = {"HOME": str(home), "PATH": "/usr/bin:/bin"}
        subprocess.run(["sh", f"{task.name}/run.sh"], cwd=carried, env=there, check=True, capture_output=True)

    assert run([*words, "smash/elsewhere"]) == 3
    carry()
    capsys.readouterr()
    assert run([*words, "smash/elsewhere"]) == 3
    said = capsys.readouterr().err.replace("\n", " ")
    assert "lacks 'smash/elsewhere'" in said
    assert "--device-program" in said
    assert run([*words, "smash/'run it'"]) == 3
    assert "waits for the device" in capsys.readouterr().err
    carry()
    assert run([*words, "smash/'run it'"]) == 0, capsys.readouterr().err


@pytest.mark.usefixtures("small")
def test_a_search_goes_on_with_what_a_carried_folder_brings_back(
    edge: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    carried, folder = tmp_path / "stick", tmp_path / "run"
    words = ["search", "--data", "digits", "--space", "edge-tiny", "--run", str(folder), "--device", "cpu"]
    words += ["--max-latency", "200ms", "--device-networks", "10", "--quiet"]
    words += ["--device-folder", str(carried), "--device-program", str(edge)]
    known: list[str] = []
    for _ in range(4):  # the table, and what may be picked
        code = run(words)
        if code == 0:
            break
        assert code == 3, capsys.readouterr().err
        time.sleep(2.1)  # a zip file knows the time to two seconds
        tasks = carried_tasks(carried)
        assert len(tasks) == len(known) + 1, "one way there more for each question"
        known = tasks
    assert code == 0
    assert read_best(folder / "best.json").search.measures["latency_ms"] < 200
    words[words.index(str(carried))] = str(tmp_path / "another")
    assert run(words) == 2
    assert "measured on another device" in capsys.readouterr().err.replace("\n", " ")


def test_files_that_compile_rejected_are_shown_by_a_device_too(
    edge: Path, digits_bundle_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rejected = digits_bundle_copy / "targets" / "onnxruntime" / "int8.rejected"
    rejected.mkdir(parents=True)
    (rejected / "report.json").write_text(json.dumps({"problems": ["2 of 10 labels changed"]}))
    carried, bundle = tmp_path / "stick", str(digits_bundle_copy)
    there = ["--device-folder", str(carried), "--device-program", str(edge)]
    commands = [["verify", bundle, *there], ["compare", bundle, "--seconds", "0.05", *there]]
    for words in commands:
        assert run(words) == 3
    carried_tasks(carried)
    for words in commands:
        capsys.readouterr()
        assert run(words) == 0
        assert "rejected by compile: 2 of 10 labels changed" in " ".join(capsys.readouterr().out.split())
        assert run([*words, "--json"]) == 0
        (file,) = json.loads(capsys.readouterr().out)["rejected"]
        assert (file["target"], file["precision"]) == ("onnxruntime", "int8")
