"""Results on stdout, everything else on stderr; JSON is pure; progress works without a terminal."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from smash_export.progress import SILENT, Output, to_json


def test_json_leaves_stdout_to_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(json=True)
    output.note("a note")
    output.warn("a warning")
    output.table("Title", ["a"], [[1]])
    output.text("for people")
    with output.progress("working", 3) as advance:
        advance(3, loss=0.5)
    output.result({"a": 1})
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"a": 1}
    assert "a note" in captured.err
    assert "warning: a warning" in captured.err
    assert "working: 3/3" in captured.err
    assert "loss=0.5" in captured.err


def test_quiet_keeps_warnings_and_results(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(quiet=True)
    output.note("a note")
    output.warn("a warning")
    output.table("Title", ["a"], [[1]])
    with output.progress("working", 1) as advance:
        advance()
    captured = capsys.readouterr()
    assert "Title" in captured.out
    assert captured.err == "warning: a warning\n"
    assert SILENT.quiet


def test_tables_show_every_cell_whole_without_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    command = "pip install 'smash-export[onnxruntime]'"  # brackets are not markup
    Output().table("T", ["a", "b", "c"], [[1.23456789, None, command], [39613.4, True, "x" * 60]])
    text = capsys.readouterr().out
    assert command in text
    assert "1.235" in text
    assert "39613" in text
    assert "yes" in text
    assert "x" * 60 in text
    assert "\x1b" not in text, "no colour without a terminal"
    Output().table("a title wider than its table", ["a"], [[1]])
    assert "a title wider than its table" in capsys.readouterr().out


def test_json_takes_numpy_paths_and_dataclasses_and_has_no_nan() -> None:
    @dataclass
    class Point:
        x: float

    value = {
        "array": np.arange(3, dtype=np.int64),
        "number": np.float32(0.5),
        "path": Path("a/b"),
        "point": Point(1.0),
        "nan": float("nan"),
        "inf": np.float64("inf"),
        3: (True, None),
    }
    assert json.loads(to_json(value)) == {
        "array": [0, 1, 2],
        "number": 0.5,
        "path": "a/b",
        "point": {"x": 1.0},
        "nan": None,
        "inf": None,
        "3": [True, None],
    }
    with pytest.raises(TypeError, match="no JSON form"):
        to_json({"what": object()})


def test_progress_of_unknown_length_says_what_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    with Output().progress("compiling", None) as advance:
        advance()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "compiling ..." in captured.err


@pytest.mark.slow
def test_a_terminal_is_told_that_pytorch_loads(tmp_path: Path) -> None:
    shown, terminal = pty.openpty()
    words = ["freeze", "--arch", "resnet-8", "--data", "digits", "--out", str(tmp_path / "b"), "--dry-run"]
    process = subprocess.Popen(
        [sys.executable, "-m", "smash_export.cli", *words], stdin=terminal, stdout=terminal, stderr=terminal
    )
    os.close(terminal)
    said = b""
    with contextlib.suppress(OSError):  # the terminal is closed at the end
        while part := os.read(shown, 1 << 16):
            said += part
    os.close(shown)
    assert process.wait() == 0, said.decode()
    assert b"loading PyTorch" in said
    assert said.index(b"loading PyTorch") < said.index(b"classes")  # the first table
