"""Commands on a device by ssh: a real sshd on loopback, and an environment without PyTorch behind it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from smash_export.bundle.bundle import Bundle
from smash_export.cli import run
from smash_export.cli.search import command as search_command
from smash_export.device_search.latency import LatencyTable
from smash_export.remote.device import ReachedDevice, task_id
from smash_export.remote.ssh import SshTransport
from smash_search.space.best import read_best
from tests.smash_export.device_search.job.test_job import small  # noqa: F401 - a fixture
from tests.smash_export.remote.conftest import Sshd

pytestmark = pytest.mark.slow


def test_the_device_has_no_torch(edge: Path) -> None:
    for module in ("torch", "onnx", "sklearn"):
        answer = subprocess.run([edge.with_name("python"), "-c", f"import {module}"], capture_output=True)
        assert b"No module named" in answer.stderr


def test_a_kit_is_measured_there_and_its_table_comes_back(
    sshd: Sshd, edge: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kit, table = tmp_path / "kit.zip", tmp_path / "table.json"
    assert run(["latency", "kit", str(kit), "--data", "digits", "--networks", "10", "--quiet"]) == 0
    words = ["latency", "build", str(kit), str(table), "--seconds", "0.02", *sshd.options(edge)]
    capsys.readouterr()
    assert run([*words, "--json"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert result["networks"] == 10
    known = LatencyTable.read(table)
    assert (known.times > 0).all()
    task = task_id(["latency", "build", "{kit}", "{table}", "--seconds", "0.02"], {"kit": kit})
    assert not (Path.home() / ".cache" / "smash-export" / task).exists(), "the device is left clean"


def test_a_bundle_is_measured_and_verified_there_and_the_evidence_is_here(
    sshd: Sshd, edge: Path, digits_bundle_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = str(digits_bundle_copy)
    there = sshd.options(edge)
    assert run(["compile", bundle, "--target", "onnxruntime", "--quiet"]) == 0
    assert run(["bench", bundle, "--seconds", "0.1", "--target", "onnxruntime", *there]) == 0
    assert "onnxruntime:fp32" in capsys.readouterr().out
    record = Bundle.open(bundle).manifest.model_dump(mode="json")["records"]["bench"]
    assert record["machine"]["device"] == sshd.host
    assert record["files"][0]["latency"]["1"]["p50_ms"] > 0
    assert run(["verify", bundle, "--target", "onnxruntime", *there]) == 0
    assert f"on {sshd.host}" in " ".join(capsys.readouterr().out.split())
    assert run(["bench", bundle, "--max-p50", "0.0000001", "--seconds", "0.1", *there]) == 5
    assert "slower than allowed" in capsys.readouterr().err


def test_a_bundle_is_compared_there_and_the_page_comes_back(
    sshd: Sshd, edge: Path, digits_bundle_copy: Path, tmp_path: Path
) -> None:
    bundle, page = str(digits_bundle_copy), tmp_path / "there.html"
    assert run(["compile", bundle, "--target", "onnxruntime", "--quiet"]) == 0
    words = ["compare", bundle, "--seconds", "0.1", "--html", str(page), "--quiet"]
    assert run([*words, *sshd.options(edge)]) == 0
    assert "Accuracy against latency" in page.read_text()
    recommended = Bundle.open(bundle).recommendation
    assert recommended is not None
    assert recommended.target == "onnxruntime"


def test_what_the_device_says_is_said_here_with_its_exit_code(
    sshd: Sshd, edge: Path, digits_bundle_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["verify", str(digits_bundle_copy), "--target", "torchscript"]
    assert run([*words, *sshd.options(edge)]) == 3
    error = capsys.readouterr().err
    assert "torch" in error
    assert "Traceback" not in error


@pytest.mark.usefixtures("small")
def test_one_command_from_images_to_files_measured_on_the_device(
    sshd: Sshd,
    edge: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    option = next(entry for entry in search_command.params if entry.name == "device_networks")
    monkeypatch.setattr(option, "default", 10)
    folder = tmp_path / "out"
    words = ["run", "--data", "digits", "--max-latency", "200ms", "--out", str(folder), "--device", "cpu"]
    assert run([*words, *sshd.options(edge), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    stages = {stage["stage"]["name"]: stage["result"] for stage in result["stages"]}
    search = folder / "search"
    assert len(json.loads((search / "device-table.json").read_text())["networks"]) == 10
    measures = read_best(search / "best.json").search.measures
    assert 0 < measures["latency_low_ms"] <= measures["latency_ms"] < 200
    assert stages["search"]["latency"]["predicted"] is False, "the pick was measured on the device"
    config = json.loads((search / "config.json").read_text())
    assert config["identity"]["measured"]["device"] == sshd.host
    assert stages["bench"]["machine"]["device"] == sshd.host
    assert stages["compare"]["device"] == sshd.host
    assert result["recommendation"]["target"] == "onnxruntime"
    assert "measured on the device" in (folder / "report.html").read_text()
    assert run([*words, *sshd.options(edge.with_name("nothing")), "--quiet"]) == 3, "it is asked first"


def test_every_step_that_fails_says_so(
    sshd: Sshd, edge: Path, digits_bundle_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["bench", str(digits_bundle_copy), "--target", "onnxruntime", "--quiet"]

    def error(host: str, ssh: str, *more: str, code: int = 3) -> str:
        options = ["--device-host", host, "--device-ssh", ssh, *more]
        assert run([*words, *options]) == code
        return capsys.readouterr().err

    user = sshd.host
    assert "no host" in error("nobody@host.invalid", sshd.ssh)
    assert "cannot be reached" in error(user, sshd.ssh.replace(f"-p {sshd.port}", "-p 1"))
    stranger = sshd.ssh.replace(f"-i {sshd.folder / 'user'}", f"-i {sshd.folder / 'stranger'}")
    assert f"ssh-copy-id {user}" in error(user, stranger)
    unknown = sshd.ssh.replace(str(sshd.folder / "known"), "/dev/null")
    assert "is not known" in error(user, unknown)
    assert "pip install 'smash-export[cpu]'" in error(user, sshd.ssh, "--device-program", "/no/program")
    other = "echo smash-export 0.0.1 #"
    assert "another version" in error(user, sshd.ssh, "--device-program", other)
    assert "openssh-client" in error(user, "no-such-client")
    slow = ("--device-program", str(edge), "--device-timeout", "1", "--seconds", "30")
    assert "did not finish `bench` in time" in error(user, sshd.ssh, *slow)
    assert "user@host" in error("-oProxyCommand=touch", sshd.ssh, code=2)
    assert run([*words, "--device-timeout", "5"]) == 2
    assert run([*words, "--device-host", user, "--adb", "X"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_what_is_cut_off_here_does_not_measure_on_beside_the_next(
    sshd: Sshd, edge: Path, digits_bundle_copy: Path
) -> None:
    """Neither after Ctrl-C nor, where this machine could say nothing, when the command is repeated."""
    words = ["bench", "{bundle}", "--target", "onnxruntime", "--seconds", "60.0"]
    folder = Path.home() / ".cache" / "smash-export" / task_id(words, {"bundle": digits_bundle_copy})
    command = [sys.executable, "-m", "smash_export.cli", "bench", str(digits_bundle_copy), *words[2:]]

    def started() -> tuple[subprocess.Popen[bytes], int]:
        """The command here, and the process there."""
        before = running(folder)
        process = subprocess.Popen(
            [*command, *sshd.options(edge)], stderr=subprocess.DEVNULL, preexec_fn=listens_to_ctrl_c
        )
        deadline = time.monotonic() + 60
        while not (new := lasting(folder) - before):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        return process, new.pop()

    try:
        killed, first = started()
        killed.kill()
        killed.wait()
        interrupted, second = started()
        assert first not in running(folder), "two would measure each other"
        interrupted.send_signal(signal.SIGINT)
        assert interrupted.wait(60) == 130
        assert second not in running(folder)
    finally:
        for process in running(folder):
            os.kill(process, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def listens_to_ctrl_c() -> None:
    """Shells let programs of the background ignore it (POSIX, 2.11), these tests and their children too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def lasting(folder: Path) -> set[int]:
    """Those of :func:`running` but for what one starts: until it runs another program, it looks alike."""
    found = running(folder)
    time.sleep(0.5)
    return found & running(folder)


def running(folder: Path) -> set[int]:
    """Processes of this program that work in a task's folder."""
    found = set()
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = place.read_text().split("\0")
            if "--json" in words and f"{folder}/bundle" in words and words[0].endswith("python"):
                found.add(int(place.parent.name))
    return found


def test_a_copy_over_a_slow_connection_may_take_as_long_as_the_user_says(
    sshd: Sshd,
    edge: Path,
    digits_bundle_copy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    slow = tmp_path / "slow-ssh"
    slow.write_text(f'#!/bin/sh\ncase "$*" in *tar*) sleep 3;; esac\nexec {sshd.ssh} "$@"\n')
    slow.chmod(0o755)
    monkeypatch.setattr("smash_export.remote.device.COPY_SECONDS", 1.0)
    words = ["verify", str(digits_bundle_copy), "--target", "onnxruntime", "--quiet", *sshd.options(edge)]
    words[words.index("--device-ssh") + 1] = str(slow)
    assert run(words) == 3
    assert "--device-timeout gives it longer" in capsys.readouterr().err
    assert run([*words, "--device-timeout", "60"]) == 0


def test_an_answer_counts_though_the_connection_breaks_before_the_device_is_tidied_up(
    sshd: Sshd, edge: Path, digits_bundle_copy: Path, tmp_path: Path
) -> None:
    breaking = tmp_path / "breaking-ssh"
    lost = "*tar*) ;; *'rm -rf'*) echo Connection reset by peer >&2; exit 255;;"
    breaking.write_text(f'#!/bin/sh\ncase "$*" in {lost} esac\nexec {sshd.ssh} "$@"\n')
    breaking.chmod(0o755)
    words = ["verify", str(digits_bundle_copy), "--target", "onnxruntime", "--quiet", *sshd.options(edge)]
    words[words.index("--device-ssh") + 1] = str(breaking)
    assert run(words) == 0
    asked = task_id(["verify", "{bundle}", "--target", "onnxruntime"], {"bundle": digits_bundle_copy})
    left = Path.home() / ".cache" / "smash-export" / asked
    assert left.is_dir()
    shutil.rmtree(left)


def test_files_and_folders_travel_whole(sshd: Sshd, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    content = bytes(range(256)) * 1000
    (source / "deep" / "a file.bin").write_bytes(content)
    transport = SshTransport(sshd.host, sshd.ssh)
    remote = str(tmp_path / "there" / "copy")
    transport.put(source, remote)
    transport.get(f"{remote}/deep/a file.bin", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == content
    device = ReachedDevice(transport=transport)
    assert replace(device, seconds=5).seconds == 5
