"""Targets in a process of their own: real child processes that work, crash, hang and answer NaN."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from smash_base.errors import InvalidInputError, SmashError, UsageError, VerificationError
from smash_targets.base import SessionOptions
from smash_targets.isolation.parent import compile_isolated, open_isolated
from tests.deploy_targets.inputs import IMAGES, SIGNATURE
from tests.deploy_targets.networks import Sources

Compiled = Callable[..., Path]
ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _tests_are_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def unruly(name: str) -> str:
    return f"tests.deploy_targets.unruly:{name}"


def no_children() -> bool:
    listed = subprocess.run(
        ["ps", "--ppid", str(os.getpid()), "-o", "args="],
        capture_output=True,
        text=True,
        check=False,
    )
    return "isolation/child.py" not in listed.stdout


def test_progress_of_a_compile_in_a_child_is_heard(sources: Sources, tmp_path: Path) -> None:
    heard: list[tuple[str, int, int]] = []
    result = compile_isolated(
        unruly("TellsProgress"), sources.request(), tmp_path, on_progress=lambda *step: heard.append(step)
    )
    assert heard == [("Building", 1, 3), ("Building", 2, 3), ("Building", 3, 3)]
    assert result.main == "model"
    assert compile_isolated(unruly("TellsProgress"), sources.request(), tmp_path).main == "model"
    assert no_children()


def test_compile_and_run_in_a_child(sources: Sources, tmp_path: Path) -> None:
    result = compile_isolated("onnxruntime", sources.request(), tmp_path)
    path = tmp_path / result.main
    with open_isolated("onnxruntime", path, SIGNATURE, SessionOptions(threads=1)) as session:
        assert session.info.target == "onnxruntime"
        assert session.info.threads == 1
        for size in (1, 7, 32):
            np.testing.assert_allclose(session.run(IMAGES[:size]), sources.logits[:size], rtol=0, atol=1e-4)
        first = session.run(IMAGES[:2])
        kept = first.copy()
        session.run(IMAGES[2:4])
        np.testing.assert_array_equal(first, kept)
        first[:] = 0  # writable
        assert 0 < session.last_seconds < 5
    assert no_children()


@pytest.mark.parametrize(("given", "expected"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_of_a_child_do_not_spin_unless_the_user_says_so(
    given: str | None, expected: str, sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_WAIT_POLICY", given)
    result = compile_isolated(unruly("TellsItsWaitPolicy"), sources.request(), tmp_path)
    assert result.notes["OMP_WAIT_POLICY"] == expected


def test_batches_larger_than_a_pipe(compiled: Compiled, sources: Sources) -> None:
    with open_isolated(
        "onnxruntime", compiled("onnxruntime"), SIGNATURE, SessionOptions(threads=1)
    ) as session:
        many = np.tile(IMAGES[:32], (32, 1, 1, 1))  # 1.8 MB
        np.testing.assert_allclose(
            session.run(many), np.tile(sources.logits[:32], (32, 1)), rtol=0, atol=1e-4
        )


def test_a_process_with_thousands_of_open_files_opens_one_more(compiled: Compiled) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2048:
        pytest.skip("the system allows fewer open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    with contextlib.ExitStack() as held:
        held.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        for _ in range(1100):  # connections of a server
            held.callback(os.close, os.open(os.devnull, os.O_RDONLY))
        path = compiled("onnxruntime")
        with open_isolated("onnxruntime", path, SIGNATURE, SessionOptions(threads=1)) as session:
            assert session.run(IMAGES[:2]).shape == (2, 10)


def test_errors_of_the_target_come_back_as_they_were(
    sources: Sources, compiled: Compiled, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="wrong_option") as caught:
        compile_isolated("onnxruntime", sources.request(wrong_option=1), tmp_path)
    assert caught.value.received == "wrong_option"
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(compiled("onnxruntime").read_bytes()[:-100])
    with pytest.raises(InvalidInputError):
        open_isolated("onnxruntime", damaged, SIGNATURE, SessionOptions())
    with pytest.raises(UsageError, match="there is no target"):
        compile_isolated("nothing", sources.request(), tmp_path)
    assert no_children()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("CrashesAtRun", "SIGSEGV.*at run"),
        ("LeavesAtRun", "exit code 7.*at run.*the last words"),
        ("HangsAtRun", "within 1 seconds at run"),
        ("AnswersNan", "not numbers"),
        ("AnswersTooFew", "no logits for every image"),
        ("RaisesAtRun", "ZeroDivisionError"),
    ],
)
def test_runtimes_that_fail_at_run(name: str, expected: str, tmp_path: Path) -> None:
    session = open_isolated(unruly(name), tmp_path, SIGNATURE, SessionOptions(), run_seconds=1)
    started = time.monotonic()
    with session, pytest.raises(VerificationError, match=expected) as caught:
        session.run(IMAGES[:2])
    assert caught.value.exit_code == 4
    assert len(str(caught.value).splitlines()) == 1
    assert time.monotonic() - started < 5
    assert no_children()


def test_after_a_crash_the_session_says_so(tmp_path: Path) -> None:
    with open_isolated(unruly("CrashesAtRun"), tmp_path, SIGNATURE, SessionOptions()) as session:
        for _ in range(2):
            with pytest.raises(VerificationError):
                session.run(IMAGES[:1])


def test_a_lasting_session_answers_again_after_a_crash(tmp_path: Path) -> None:
    options = SessionOptions()
    with open_isolated(unruly("CrashesAtTwo"), tmp_path, SIGNATURE, options, lasting=True) as session:
        for _ in range(2):
            with pytest.raises(VerificationError, match="SIGSEGV"):
                session.run(IMAGES[:2])
            for _ in range(2):
                assert session.run(IMAGES[:1]).shape == (1, 10)
    with pytest.raises(VerificationError, match="has ended"):
        session.run(IMAGES[:1])
    assert no_children()


def test_a_lasting_session_hands_on_what_is_not_finite(tmp_path: Path) -> None:
    with open_isolated(unruly("AnswersNan"), tmp_path, SIGNATURE, SessionOptions(), lasting=True) as session:
        assert np.isnan(session.run(IMAGES[:2])).sum() == 1


@pytest.mark.parametrize(
    ("name", "expected"), [("CrashesAtCompile", "SIGABRT.*at compile"), ("HangsAtCompile", "at compile")]
)
def test_runtimes_that_fail_at_compile(name: str, expected: str, sources: Sources, tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match=expected):
        compile_isolated(unruly(name), sources.request(), tmp_path, seconds=3)
    assert no_children()


def test_a_target_that_prints_on_stdout_does_not_disturb(tmp_path: Path) -> None:
    with open_isolated(unruly("Chatters"), tmp_path, SIGNATURE, SessionOptions()) as session:
        assert session.run(IMAGES[:3]).shape == (3, 10)


def test_an_interpreter_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises((SmashError, FileNotFoundError)):
        open_isolated("onnxruntime", tmp_path, SIGNATURE, SessionOptions(), python=tmp_path / "python")


_PARENT = """
import sys
from pathlib import Path
from smash_targets.base import SessionOptions
from smash_targets.isolation.parent import open_isolated
from tests.deploy_targets.inputs import IMAGES, SIGNATURE

session = open_isolated("tests.deploy_targets.unruly:HangsAtRun", Path("."), SIGNATURE, SessionOptions())
print(session._child._process.pid, flush=True)
session.run(IMAGES[:1])
"""


def test_a_hanging_child_does_not_outlive_a_killed_parent() -> None:
    parent = subprocess.Popen([sys.executable, "-c", _PARENT], stdout=subprocess.PIPE, cwd=ROOT)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    for _ in range(100):
        if not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split()[2]:
            return
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    pytest.fail("the child went on")
