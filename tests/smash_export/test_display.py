"""Time left of bars and of whole jobs, and a terminal that is never still."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time

import pytest

from smash_export.cli.console import Output
from smash_export.display import Pace, Part, Schedule, clock
from tests.terminal import in_terminal


class Hand:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_steps_of_a_minute_have_a_time_left_that_counts_down() -> None:
    hand = Hand()
    pace = Pace(10, clock=hand)
    assert pace.left() is None
    hand.now += 60
    pace.step()
    assert pace.left() == pytest.approx(540)
    hand.now += 40
    assert pace.left() == pytest.approx(500), "between two steps it counts down"
    hand.now += 40  # the step takes longer than the first one: 80 s so far
    assert pace.left() == pytest.approx(8 * 70)


def test_what_an_earlier_process_did_does_not_count_as_fast() -> None:
    hand = Hand()
    pace = Pace(100, clock=hand)
    hand.now += 0.1
    pace.step(50)
    assert pace.left() is None
    hand.now += 10
    pace.step()
    assert pace.left() == pytest.approx(490)


def test_the_pace_of_a_training_that_goes_on_is_that_of_its_own_steps() -> None:
    hand = Hand()
    pace = Pace(25, clock=hand)
    hand.now += 4  # reading the checkpoint took longer than a moment
    pace.step(20.25, before=20)
    hand.now += 4
    pace.step(0.25)
    assert pace.left() == pytest.approx(4.5 / 0.5 * 8)


def test_a_bar_shows_the_time_left_that_its_work_knows() -> None:
    hand = Hand()
    pace = Pace(25, clock=hand)
    hand.now += 10
    pace.step(1, left=30)  # a limit of time, far below 24 steps of ten seconds
    hand.now += 4
    assert pace.left() == pytest.approx(26)
    pace.step(0)  # a figure is shown beside the bar
    assert pace.left() == pytest.approx(26)
    hand.now += 10
    pace.step(1)
    assert pace.left() == pytest.approx(23 * 12), "and its pace again, where it knows nothing"


def test_a_job_corrects_its_estimate_by_the_parts_that_are_over() -> None:
    hand = Hand()
    schedule = Schedule([Part("training", 10), Part("scoring", 20), Part("freezing", 30)], hand)
    assert schedule.left() == 60
    pace = schedule.begin("training the HyperNet", 2)
    hand.now += 20  # twice as long as expected
    pace.step(2)
    schedule.end(pace)
    assert schedule.left() == pytest.approx(100)
    assert schedule.share() == pytest.approx(20 / 120)
    unknown = schedule.begin("something else", 3)
    assert unknown.left() is None
    pace = schedule.begin("freezing", 5)  # scoring was done before: it is skipped
    assert schedule.left() == pytest.approx(60)
    assert pace.left() == pytest.approx(60), "expected before the first step"


def test_logs_say_what_is_left_of_all(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smash_export.display.PLAIN_SECONDS", 0.0)
    output = Output()
    with output.job("run", [Part("one", 1), Part("two", 7200)]), output.progress("one", 2) as advance:
        advance()
        time.sleep(0.01)
        advance()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("one: 1/2")
    assert re.search(r"\(\d:\d\d:\d\d of all\)", lines[0])
    assert clock(3723) == "1:02:03"


@pytest.mark.slow
def test_a_terminal_is_never_still_and_bars_share_one_display() -> None:
    """Two seconds of work that reports nothing, in a real terminal."""
    script = (
        "import time\n"
        "from smash_export.cli.console import Output\n"
        "from smash_export.display import Part\n"
        "output = Output()\n"
        "with output.job('the whole', [Part('training', 2.0), Part('rest', 2.0)]):\n"
        "    time.sleep(1)\n"
        "    with output.progress('training', 3) as advance:\n"
        "        time.sleep(1.5)\n"
        "        advance(1, loss=0.5)\n"
        "        time.sleep(0.5)\n"
    )
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=child, stderr=child, env=dict(os.environ)
    )
    os.close(child)
    text, last, longest = "", None, 0.0
    while select.select([parent], [], [], 10)[0]:
        try:
            data = os.read(parent, 65536)
        except OSError:  # the terminal is closed
            break
        now = time.monotonic()
        longest, last = max(longest, now - (last or now)), now
        text += data.decode()
    assert process.wait() == 0
    os.close(parent)
    assert longest < 1.5
    assert "the whole" in text
    assert "1/3" in text
    assert "-:--:--" not in text
    assert "loss=0.5" in text
    assert re.search(r"0:0\d, 0:0\d left", text)


@pytest.mark.slow
def test_lines_and_tables_stand_whole_above_the_bars_of_a_terminal() -> None:
    """What goes past rich is written into the line of a bar, and the next drawing takes its last line."""
    script = (
        "import time\n"
        "from smash_export.progress import Output\n"
        "output = Output()\n"
        "with output.job('the whole'):\n"
        "    with output.progress('training', 2) as advance:\n"
        "        time.sleep(0.3)\n"
        "        output.table('Images', ['what', 'value'], [['images', 7]])\n"
        "        output.note('a [note] of the job')\n"
        "        output.text('a result')\n"
        "        output.warn('a warning')\n"
        "        time.sleep(0.3)\n"
        "with output.progress('loading', None):\n"
        "    time.sleep(0.3)\n"
        "output.note('the end')\n"
    )
    ended = in_terminal([sys.executable, "-c", script])
    assert ended.code == 0
    table = [
        "Images",
        "┏━━━━━━━━┳━━━━━━━┓",
        "┃ what   ┃ value ┃",
        "┡━━━━━━━━╇━━━━━━━┩",
        "│ images │     7 │",
        "└────────┴───────┘",
    ]
    assert ended.screen[:6] == table
    assert ended.screen[6:9] == ["a [note] of the job", "a result", "warning: a warning"]
    (whole, last) = ended.screen[9:]
    assert re.search(r"^\s+the whole ━+\s+100% 0:0\d$", whole), "a bar that is over has no spinner"
    assert last == "the end", "what nobody could count leaves no bar"
