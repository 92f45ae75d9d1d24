"""Silence of a command in a terminal is measured, its exit code told, and a program that is none refused."""

from __future__ import annotations

import sys

from benchmarks.terminal import in_terminal


def test_the_longest_silence_and_what_stood_before_it() -> None:
    script = (
        "import sys, time; print(sys.stdout.isatty(), flush=True); time.sleep(1.5); print('end'); sys.exit(3)"
    )
    ended = in_terminal([sys.executable, "-c", script])
    assert ended.code == 3
    assert ended.text == "True\nend"
    assert 1 <= ended.silence.seconds <= ended.seconds  # a busy machine may see the first word late
    assert ended.to_json()["exit_code"] == 3


def test_a_program_that_does_not_exist() -> None:
    assert in_terminal(["no-such-program"]).code == 127
