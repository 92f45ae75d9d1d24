"""Ctrl-C in a real terminal: the bars are gone, a sentence says how to go on, the cursor is back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.terminal import in_terminal

SMALL = ["--space", "edge-tiny", "--device", "cpu"]
_OTHERS = ["--candidates", "6", "--images", "20", "--finalists", "2", "--rungs", "1"]
SEARCH = ["search", *SMALL, *_OTHERS, "--run", "out", "--steps"]
WORKERS = ["--executor", "process", "--workers", "2"]
SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
PATIENCE = 10.0  # seconds from Ctrl-C to the prompt, on a busy machine


def test_an_interruption_while_code_is_generated_ends_with_the_documented_code(tmp_path: Path) -> None:
    """As a dataclass does it, in the middle of an import."""
    lines = [
        "from smash_export import cli",
        "cli.cli.main = lambda *_, **__: exec('raise KeyboardInterrupt')",
        "cli.main(['targets'])",
    ]
    (tmp_path / "interrupted.py").write_text("\n".join(lines))
    program = [sys.executable, "-m", "interrupted"]
    ended = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 130
    assert ended.stderr.startswith("smash-export: interrupted")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "at", "later"),
    [
        ([*SEARCH, "5000"], "loss=", 0.0),
        ([*SEARCH, "5", *WORKERS], "candidates", 1.5),  # meanwhile they import PyTorch
        (["run", *SMALL, "--out", "out"], "measuring a few steps", 0.0),
        (["run", *SMALL, "--out", "out"], "loss=", 0.0),
        (["train", "resnet-8", "--epochs", "500", "--device", "cpu"], "loss=", 0.0),
    ],
    ids=["a search", "workers", "the plan of a run", "a run", "a training"],
)
def test_ctrl_c_leaves_a_clean_terminal_and_says_how_to_go_on(
    words: list[str], at: str, later: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    program = [sys.executable, "-m", "smash_export.cli"]
    ended = in_terminal([*program, words[0], "--data", "digits", *words[1:]], interrupt_at=at, later=later)
    assert ended.code == 130
    assert ended.screen[-1] == "smash-export: interrupted; repeat the command to go on"
    assert not set(SPINNER) & set("".join(ended.screen)), "no bar is left"
    assert "Traceback" not in ended.written
    assert ended.cursor_is_shown
    assert ended.seconds < PATIENCE
