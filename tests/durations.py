"""How long tests take, measured: what ``make check`` leaves out, and what is called slow.

``durations.txt`` holds the tests that took longest when ``make durations`` ran last. A test that is not in it
is new or quick, and runs. So nobody has to keep a list of quick tests, and "slow" is a fact.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

FILE = Path(__file__).with_name("durations.txt")
RECORDED = 0.3  # seconds; quicker ones are not listed
FAST = 0.5  # make check runs what takes no longer
SLOW = 5.0  # gets the mark "slow"
_LINE = re.compile(r"^([\d.]+)s call\s+(\S.*?)\s*$")


def read(file: Path = FILE) -> dict[str, float]:
    """Test -> seconds."""
    pairs = (line.split(" ", 1) for line in file.read_text().splitlines() if not line.startswith("#"))
    return {name: float(seconds) for seconds, name in pairs}


def select(config: pytest.Config, items: list[pytest.Item], file: Path = FILE) -> None:
    """Mark what is slow; with ``--fast`` leave out whatever is not fast."""
    seconds = read(file)
    for item in items:
        if seconds.get(item.nodeid, 0.0) > SLOW:
            item.add_marker(pytest.mark.slow)
    if config.getoption("--fast"):
        kept = [item for item in items if not _is_long(item, seconds)]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
        items[:] = kept


def _is_long(item: pytest.Item, seconds: dict[str, float]) -> bool:
    marked = any(item.get_closest_marker(name) for name in ("slow", "wheel", "gpu"))
    return marked or seconds.get(item.nodeid, 0.0) > FAST


def record(report: Iterable[str], file: Path = FILE) -> int:
    """Write the file from what ``pytest --durations=0`` printed; returns the number of tests listed."""
    found = {match[2]: float(match[1]) for line in report if (match := _LINE.match(line))}
    lines = [f"{seconds:.1f} {name}" for name, seconds in sorted(found.items()) if seconds >= RECORDED]
    head = f"# Seconds of every test that takes {RECORDED} or more; written by make durations."
    file.write_text("\n".join([head, *lines]) + "\n")
    return len(lines)


if __name__ == "__main__":
    print(f"{record(sys.stdin)} tests take {RECORDED} seconds or more")
